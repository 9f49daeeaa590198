"""The embedding's norm, activation and dropout; and the head of the challenge's baseline as it was published."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import WavLMConfig

from ccts_dist.config import ModelConfig, read_run
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.model.emotion import EmotionModel, EncoderConfigs, describe, rebuild_model
from tests.helpers.models.model_shapes import speech_config, utterances

PLAIN = ModelConfig(embedding_dim=6, categories=("calm", "tense"), speech=speech_config(pooling="mean"))


def built(**changes: object) -> EmotionModel:
    torch.manual_seed(0)
    return build_model(replace(PLAIN, **changes))


def received(model: EmotionModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        output = model(*utterances([2_000, 3_000, 4_000]))
    assert output.categories is not None
    return output.embedding, output.prediction, output.categories


ACTIVATIONS = {"none": lambda values: values, "relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_embedding_is_normalized_and_then_activated_and_heads_read_it(norm: str, activation: str):
    model = built(embedding_norm=norm, embedding_activation=activation).eval()
    linear = built().eval()
    linear.load_state_dict(model.state_dict(), strict=False)
    embedding, prediction, categories = received(model)
    expected = received(linear)[0]
    if norm == "layer":
        assert model.embedding_norm is not None
        torch.nn.init.normal_(model.embedding_norm.weight, 1.0, 0.1)
        expected = F.layer_norm(expected, (6,), model.embedding_norm.weight, model.embedding_norm.bias)
        embedding, prediction, categories = received(model)
    torch.testing.assert_close(embedding, ACTIVATIONS[activation](expected).detach())
    torch.testing.assert_close(prediction, model.prediction(embedding).detach())
    assert model.categories is not None
    torch.testing.assert_close(categories, model.categories(embedding).detach())


def test_dropout_behind_the_embedding_reaches_the_heads_and_not_the_embedding():
    model = built(embedding_dropout=0.5).train()
    (one, first, scores), (other, second, other_scores) = received(model), received(model)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(first, second)
    assert not torch.allclose(scores, other_scores)
    model.eval()
    torch.testing.assert_close(received(model)[1], received(model)[1])


def test_model_with_a_norm_and_an_activation_comes_back_from_its_folder(tmp_path: Path):
    model = built(embedding_norm="layer", embedding_activation="relu").eval()
    assert model.embedding_norm is not None
    torch.nn.init.normal_(model.embedding_norm.weight)
    save_model(
        tmp_path / "model", model.state_dict(), model.config, encoders=model.encoder_configs, tokenizer=None,
        scale=(1.0, 7.0), extra={},
    )  # fmt: skip
    loaded = load_model(tmp_path / "model").model.eval()
    for ours, theirs in zip(received(model), received(loaded), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert describe(model)["head"].parameters == describe(built())["head"].parameters + 12


def test_run_file_of_the_challenges_baseline_has_the_published_architecture():
    run = read_run(Path("launch/runs/challenge/odyssey2024.toml"))
    shape = WavLMConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        feat_extract_norm="layer", do_stable_layer_norm=True, layerdrop=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        model = rebuild_model(run.model, EncoderConfigs(speech=shape, do_normalize=True))
    # net/ser.py: Linear(2048, 1024), LayerNorm(1024), ReLU, Dropout, Linear(1024, 3).
    assert describe(model)["head"].parameters == 2048 * 1024 + 1024 + 2 * 1024 + 1024 * 3 + 3
    # net/pooling.py: Linear(1024, 1024), and a vector of 1024 that weighs it.
    assert model.speech is not None
    assert sum(one.numel() for one in model.speech.pooling.parameters()) == 1024 * 1024 + 1024 + 1024
    assert model.dropout.p == model.embedding_dropout.p == 0.5
    assert run.model.embedding_activation == "relu"
    # run_dim.sh: batches of 32 in four accumulated parts, each with a CCC of its own, summed over the dimensions.
    assert run.loss.scope == "micro-batch"
    assert (run.batch.gradient_accumulation_steps(1), run.batch.micro_batch_size) == (4, 8)
    assert run.loss.target_weights == (1.0, 1.0, 1.0)
    assert (run.optim.name, run.optim.learning_rate, run.train.epochs) == ("adamw", 1e-5, 20)
