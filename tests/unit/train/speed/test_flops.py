"""Floating-point operations by hand-worked numbers."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.model.emotion import EncoderConfigs, build_model
from ccts_dist.train.speed.flops import _FORMULAS, ModelFlops, RowFlops, count_flops
from tests.helpers.models.large_student import LARGE
from tests.helpers.models.model_shapes import LAYER_NORM, VOCABULARY, speech_config, text_config

LENGTH = 16_025
"""100 frames of the small encoder: 3,204 after its first convolution, 800 after the second, 100 after the third."""


def speech_model(**changes) -> ModelConfig:
    settings = {"pooling": "mean", "shape": LAYER_NORM, "train_feature_encoder": True} | changes
    return ModelConfig(embedding_dim=8, speech=speech_config(**settings))


def counted(config: ModelConfig, **settings) -> ModelFlops:
    """Each once: it takes a second."""
    key = repr((config, settings))
    if key not in _COUNTED:
        _COUNTED[key] = count(config, **settings)
    return _COUNTED[key]


_COUNTED: dict[str, ModelFlops] = {}


def count(config: ModelConfig, **settings) -> ModelFlops:
    model = build_model(config, vocabulary_size=VOCABULARY if config.text else None)
    flops = count_flops(config, model.encoder_configs, **({"samples": LENGTH} | settings))
    assert flops is not None
    return flops


def test_row_is_a_polynomial_of_its_lengths():
    row = RowFlops(base=5.0, per_sample=2.0, per_squared_sample=0.5, per_token=3.0, per_squared_token=1.0)
    assert row.of_row(10, 4) == 5 + 20 + 50 + 12 + 16
    # Rows of 10 and 2 samples with 4 tokens and 1.
    assert row.of(2.0, 12.0, 104.0, 5.0, 17.0) == row.of_row(10, 4) + row.of_row(2, 1)


def test_forward_pass_is_the_sum_of_its_products():
    convolutions = 2 * (3_204 * 10 * 16 + 800 * 8 * 16 * 16 + 100 * 8 * 16 * 24)
    # A kernel of 16 in 4 groups of 8 channels; with its even kernel it gives a frame more, which is dropped.
    positions = 2 * 101 * 16 * 32 * 8
    layer = 2 * 100 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 100 * 100 * 32
    head = 2 * (32 * 8 + 8 * 3)
    expected = convolutions + 2 * 100 * 24 * 32 + positions + 2 * layer + head
    assert counted(speech_model()).forward.of_row(LENGTH) == pytest.approx(expected, rel=1e-9)


def test_training_is_three_forward_passes_but_for_the_gradient_of_the_audio():
    flops = counted(speech_model())
    first_convolution = 2 * 3_204 * 10 * 16
    expected = 3 * flops.forward.of_row(LENGTH) - first_convolution
    assert flops.training.of_row(LENGTH) == pytest.approx(expected, rel=1e-9)


def test_frozen_encoder_costs_one_forward_pass():
    flops = counted(speech_model(trainable="none", train_feature_encoder=False))
    head = 2 * (32 * 8 + 8 * 3)
    # The gradient of the head's input is not asked for.
    assert flops.training.of_row(LENGTH) - flops.forward.of_row(LENGTH) == pytest.approx(
        2 * head - 2 * 32 * 8, rel=1e-6
    )


def test_gru_of_each_target_counts():
    shared = speech_model(pooling="gru")
    one, three = counted(shared), counted(replace(shared, poolings="per-target"))
    gru = 2 * 3 * 16 * 100 * ((32 + 16) + (16 + 16))
    assert three.forward.of_row(LENGTH) - one.forward.of_row(LENGTH) == pytest.approx(2 * gru, rel=0.01)


def test_gru_is_three_gates_of_two_products():
    plain, with_gru = counted(speech_model()), counted(speech_model(pooling="gru"))
    # Two layers of 16 units over 100 frames.
    gru = 2 * 3 * 16 * 100 * ((32 + 16) + (16 + 16))
    assert with_gru.forward.of_row(LENGTH) - plain.forward.of_row(LENGTH) == pytest.approx(gru, rel=1e-6)
    assert with_gru.training.of_row(LENGTH) - plain.training.of_row(LENGTH) == pytest.approx(3 * gru, rel=1e-6)


def test_recomputed_layers_are_counted_only_where_they_are_asked_for():
    plain = counted(speech_model(train_feature_encoder=False))
    recomputed = replace(speech_model(train_feature_encoder=False), gradient_checkpointing=True)
    assert counted(recomputed) == plain
    # The last product of a layer is nobody's input within it, and is not repeated.
    layers = 2 * (2 * 100 * (4 * 32 * 32 + 32 * 64) + 2 * 2 * 100 * 100 * 32)
    twice = counted(recomputed, recomputation=True)
    assert twice.forward == plain.forward
    assert twice.training.of_row(LENGTH) - plain.training.of_row(LENGTH) == pytest.approx(layers, rel=0.01)
    assert twice.training_kernels > plain.training_kernels


def test_fit_holds_between_its_lengths_but_for_the_rounding_of_frames():
    fitted, exact = counted(speech_model(), samples=64_000), counted(speech_model())
    assert fitted.training.of_row(LENGTH) == pytest.approx(exact.training.of_row(LENGTH), rel=0.02)


def test_transcript_is_counted_by_its_tokens():
    flops = counted(ModelConfig(embedding_dim=8, text=text_config(pooling="mean")), tokens=32)
    layer = 2 * 32 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 32 * 32 * 32
    assert flops.forward.of_row(0, 32) == pytest.approx(2 * layer + 2 * (32 * 8 + 8 * 3), rel=1e-6)
    assert flops.forward.of_row(LENGTH, 32) == pytest.approx(flops.forward.of_row(0, 32), rel=1e-6)


def test_frames_that_are_read_cost_nothing_of_their_encoder():
    config = speech_model(trainable="none", train_feature_encoder=False)
    cached = counted(config, cached=["speech"])
    assert cached.forward.of_row(LENGTH) == pytest.approx(2 * (32 * 8 + 8 * 3), rel=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_of_a_grouped_convolution_cost_two_of_it(groups):
    weight = torch.randn(8, 8 // groups, 3, requires_grad=True)
    audio = torch.randn(2, 8, 12, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        output = functional.conv1d(audio, weight, groups=groups)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * 2 * 10 * 8 * (8 // groups) * 3
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_costs_the_same_with_every_kernel(kernel):
    query, key, value = (torch.randn(2, 4, 6, 16, requires_grad=True) for _ in range(3))
    with sdpa_kernel(kernel), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        output = functional.scaled_dot_product_attention(query, key, value)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * 2 * (2 * 4 * 6 * 6 * 16)
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.integration
def test_hubert_large_takes_056_teraflop_for_an_utterance_of_five_and_a_half_seconds():
    """Of 24 layers, from what one and two cost."""
    config = ModelConfig(embedding_dim=128, speech=SpeechConfig(encoder="hubert", trainable="all", pooling="gru"))

    def layers(number: int) -> float:
        shape = HubertConfig(**LARGE | {"layerdrop": 0.0, "num_hidden_layers": number})
        flops = count_flops(config, EncoderConfigs(speech=shape, do_normalize=True), samples=88_000)
        assert flops is not None
        return flops.training.of_row(88_000)

    one, two = layers(1), layers(2)
    assert one + 23 * (two - one) == pytest.approx(0.56e12, rel=0.01)
