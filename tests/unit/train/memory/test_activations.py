"""Memory of a pass found on shapes alone, against what torch's allocator gave for the same pass."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from ccts_dist.config import ModelConfig
from ccts_dist.model.emotion import EmotionModel, build_model
from ccts_dist.train.memory.activations import BatchShape, trace_pass, trace_peak
from tests.helpers.models.model_shapes import LAYER_NORM, SPEECH_FAMILIES, VOCABULARY, both, speech_config, text_config
from tests.tiers import with_long

SHAPE = BatchShape(rows=4, samples=32_000)
WIDE = {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 256}


def speech_model(**changes) -> ModelConfig:
    return ModelConfig(embedding_dim=8, speech=speech_config(shape=LAYER_NORM | WIDE, **{"pooling": "mean"} | changes))


def build(config: ModelConfig) -> EmotionModel:
    torch.manual_seed(0)
    return build_model(config, vocabulary_size=VOCABULARY if config.text else None)


def trace(config: ModelConfig, shape: BatchShape = SHAPE, **changes) -> int:
    settings = {"precision": "fp32", "training": True, "on_gpu": False} | changes
    peak = trace_peak(config, build(config).encoder_configs, shape, **settings)
    assert peak is not None
    return peak


def allocated_peak(config: ModelConfig, *shapes: BatchShape) -> int:
    """Most bytes that torch's allocator had given out during real forward and backward passes, gradients of weights
    handed back at once.

    All forward passes come before the first backward pass.
    """
    model = build(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batches = []
    for shape in shapes:
        num_samples = torch.full((shape.rows,), shape.samples)
        num_samples[-1] -= 1_600  # with nothing padded there would be no mask
        batches.append((torch.randn(shape.rows, shape.samples), num_samples))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        outputs = [model(*batch) for batch in batches]
        while outputs:
            output = outputs.pop(0)
            (output.prediction.sum() + output.embedding.sum()).backward()
            del output
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + sum(audio.nbytes for audio, _ in batches)


@pytest.mark.parametrize(
    ("pooling", "checkpointing", "poolings"),
    with_long([("gru", True, "per-target")], product(["mean", "gru"], [False, True], ["shared", "per-target"])),
)
def test_peak_is_what_the_allocator_gave(checkpointing, pooling, poolings):
    config = replace(speech_model(pooling=pooling), gradient_checkpointing=checkpointing, poolings=poolings)
    assert trace(config) == pytest.approx(allocated_peak(config, SHAPE), rel=0.02)


@pytest.mark.parametrize(("pooling", "checkpointing"), [("mean", False), ("gru", True)])
def test_graphs_of_several_micro_batches_take_what_the_allocator_gave(pooling, checkpointing):
    config = replace(speech_model(pooling=pooling), gradient_checkpointing=checkpointing)
    shapes = [BatchShape(rows=2, samples=32_000), BatchShape(rows=4, samples=12_000)]
    encoders = build(config).encoder_configs
    first, second = (trace_pass(config, encoders, s, precision="fp32", training=True, on_gpu=False) for s in shapes)
    assert first is not None
    assert second is not None
    # The second graph waits for the first one's backward pass, or the first for the second one's forward pass.
    foreseen = max(first.peak + second.retained, first.retained + second.retained, second.peak)
    assert foreseen == pytest.approx(allocated_peak(config, *shapes), rel=0.04)
    assert foreseen > max(first.peak, second.peak)


def test_peak_grows_with_the_rows():
    one, two, three = (trace(speech_model(), BatchShape(rows=rows, samples=32_000)) for rows in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.02)
    assert two > 1.8 * one


def test_recomputing_layers_needs_less():
    config = speech_model()
    assert trace(replace(config, gradient_checkpointing=True)) < 0.8 * trace(config)


def test_bf16_needs_less_and_no_gradient_less_still():
    config = speech_model()
    training = trace(config)
    assert trace(config, precision="bf16") < 0.7 * training
    assert trace(config, training=False) < 0.5 * training


def test_dropout_on_attention_costs_a_number_for_each_pair_of_frames_on_a_cpu_alone():
    config = speech_model()
    dropped = ModelConfig(
        embedding_dim=8, speech=speech_config(shape=LAYER_NORM | WIDE | {"attention_dropout": 0.1}, pooling="mean")
    )
    frames, heads, layers = 199, 4, 6  # of 2 s
    pairs = 4 * SHAPE.rows * heads * layers * frames**2
    assert trace(dropped, on_gpu=True) == pytest.approx(trace(config), rel=0.01)
    assert trace(dropped) - trace(config) > pairs


def test_frozen_encoder_keeps_next_to_nothing():
    assert trace(speech_model(trainable="none")) < 0.5 * trace(speech_model(train_feature_encoder=True))


# torch reports so of WavLM's attention in every training too.
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
@pytest.mark.parametrize("family", sorted(SPEECH_FAMILIES))
def test_every_known_speech_encoder_can_be_traced(family):
    config = ModelConfig(embedding_dim=8, speech=speech_config(shape=SPEECH_FAMILIES[family]))
    assert trace(config, BatchShape(rows=2, samples=8_000)) > 2 * 8_000 * 4


def test_text_branch_and_augmentation_can_be_traced():
    shape = BatchShape(rows=2, samples=16_000, tokens=32)
    both_branches = trace(both(speech=speech_config(shape={"apply_spec_augment": True, "mask_time_prob": 0.2})), shape)
    assert both_branches > trace(ModelConfig(embedding_dim=8, text=text_config()), shape) > 0


def test_tracing_draws_no_random_number():
    config = speech_model()
    encoders = build(config).encoder_configs
    before = torch.get_rng_state()
    trace_peak(config, encoders, SHAPE, precision="fp32", training=True, on_gpu=False)
    assert torch.equal(before, torch.get_rng_state())
