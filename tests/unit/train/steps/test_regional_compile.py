"""Compiled layers compute what they computed before, under the names they had before."""

import copy

import pytest
import torch
from torch import Tensor

from ccts_dist.config import ModelConfig
from ccts_dist.model.emotion import EmotionModel, build_model
from ccts_dist.train.steps.regional_compile import compile_layers
from tests.helpers.models.model_shapes import LAYER_NORM, speech_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
"""Of the compiler's own parts."""

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


def run(model: EmotionModel, samples: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The prediction of a training pass, its gradients, and the prediction of the same pass without gradient."""
    generator = torch.Generator().manual_seed(samples)
    audio, num_samples = torch.randn(3, samples, generator=generator), torch.tensor([samples, samples - 1600, samples])
    model.zero_grad()
    torch.manual_seed(5)
    output = model(audio, num_samples)
    (output.prediction.square().sum() + output.embedding.square().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    torch.manual_seed(5)
    with torch.no_grad():
        again = model(audio, num_samples).prediction
    return output.prediction.detach(), gradients, again


@pytest.mark.long  # a C++ compiler is called several times
def test_outputs_and_gradients_agree_with_dropout_at_any_length_and_names_stay():
    torch.manual_seed(0)
    plain = build_model(
        ModelConfig(embedding_dim=8, speech=speech_config(shape=LAYER_NORM | DROPOUT, pooling="mean")),
        vocabulary_size=None,
    ).train()  # fmt: skip
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled) == 2
    for samples in (8_000, 9_600, 12_320):
        expected, gradients, _ = run(plain, samples)
        prediction, own_gradients, again = run(compiled, samples)
        assert torch.allclose(prediction, expected, atol=1e-5)
        assert torch.allclose(again, prediction, atol=1e-6), "the round without gradient drops the same"
        assert own_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(own_gradients[name], gradient, atol=1e-5, rtol=1e-5), name
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"


def test_layers_with_attention_are_compiled_and_convolutions_are_not():
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config(pooling="mean")), vocabulary_size=None)
    names = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert names == []
    number = compile_layers(model)
    names = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert len(names) == number > 0
    assert all(".layers." in name for name in names)
    assert not any("_orig_mod" in name for name in model.state_dict())
