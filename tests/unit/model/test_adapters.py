"""Low-rank adapters: what of an encoder they train, and that a saved model without them computes the same."""

import sys
from dataclasses import replace

import jaxtyping
import pytest
import torch

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig, parse_model
from ccts_dist.errors import ConfigError, run_main
from ccts_dist.export.command import export_model
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.model.adapters import merged_weights
from tests.helpers.models.model_shapes import (
    EXTRACTED_FAMILIES,
    SPEECH_FAMILIES,
    TEXT_FAMILIES,
    VOCABULARY,
    save_extracted_encoder,
    save_speech_encoder,
    save_text_encoder,
    speech_config,
    transcripts,
    utterances,
)
from tests.tiers import with_long

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own

NUM_LAYERS, RANK = 2, 3
WITHOUT_ATTENTION = "modified-cpc"
SPEECH = with_long(("hubert, layer norm", "wavlm"), sorted({*SPEECH_FAMILIES} - {WITHOUT_ATTENTION}))
TEXT = with_long(("bert",), sorted(TEXT_FAMILIES))


def gradients(model, *inputs):
    """Of the model's trained parameters, by name; of which none may be without."""
    model(*inputs).prediction.square().sum().backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    return trained


def check_adapters(trained, encoder, *, num_adapted):
    """Nothing of the encoder but adapters is trained, and all of them learn."""
    inside = {name for name in trained if name.startswith(encoder)}
    up = {name for name in inside if name.endswith(".lora_B.default.weight")}
    assert inside - up == {name.replace("lora_B", "lora_A") for name in up}
    assert len(up) == num_adapted
    assert all(trained[name].abs().max() > 0 for name in up)  # those of A begin at zero, as B does
    assert {name.partition(".")[0] for name in trained.keys() - inside} >= {"embedding", "prediction"}


@pytest.mark.parametrize("family", SPEECH)
def test_only_adapters_and_head_of_a_speech_model_are_trained(tmp_path, family):
    save_speech_encoder(tmp_path / "encoder", family)
    speech = SpeechConfig(encoder=str(tmp_path / "encoder"), gru_hidden=16, trainable=f"lora:{RANK}")
    model = build_model(ModelConfig(embedding_dim=8, gradient_checkpointing=True, speech=speech))
    num_adapted = NUM_LAYERS if family == "emotion2vec" else 2 * NUM_LAYERS  # it has one projection for all three
    check_adapters(gradients(model, *utterances([1000, 2500])), "speech.encoder.", num_adapted=num_adapted)


@pytest.mark.parametrize("family", with_long(("whisper",), sorted(EXTRACTED_FAMILIES)))
def test_only_adapters_and_head_of_a_model_with_a_feature_extractor_are_trained(tmp_path, family):
    save_extracted_encoder(tmp_path / "encoder", family)
    speech = SpeechConfig(encoder=str(tmp_path / "encoder"), gru_hidden=16, trainable=f"lora:{RANK}")
    model = build_model(ModelConfig(embedding_dim=8, speech=speech))
    check_adapters(gradients(model, *utterances([4000, 8000])), "speech.encoder.", num_adapted=2 * NUM_LAYERS)


@pytest.mark.parametrize("family", TEXT)
def test_only_adapters_and_head_of_a_text_model_are_trained(tmp_path, family):
    save_text_encoder(tmp_path / "encoder", family)
    text = TextConfig(encoder=str(tmp_path / "encoder"), max_tokens=32, gru_hidden=16, trainable=f"lora:{RANK}")
    model = build_model(ModelConfig(embedding_dim=8, text=text), vocabulary_size=VOCABULARY)
    shared = family == "albert"  # one layer's weights for all layers
    num_adapted = 2 if shared else 2 * NUM_LAYERS
    check_adapters(
        gradients(model, *utterances([500, 500]), *transcripts([5, 9])), "text.encoder.", num_adapted=num_adapted
    )


def with_trained_adapters(config):
    """A model whose adapters change what it computes."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    audio = utterances([1000, 2500])
    with torch.no_grad():
        before = model(*audio).prediction
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.5)
        assert (model(*audio).prediction - before).abs().max() > 1e-3
    return model


def save_merged(folder, config):
    """The folder of a model with trained adapters, as training writes it, and that model."""
    model = with_trained_adapters(config)
    state = merged_weights(model.state_dict())
    save_model(folder, state, config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    return model


@pytest.mark.parametrize("layers", ["last", "weighted", "layer:1"])
def test_saved_model_has_merged_weights_and_needs_no_peft(tmp_path, monkeypatch, layers):
    config = ModelConfig(embedding_dim=8, speech=speech_config(layers=layers, trainable="lora:2"))
    model = save_merged(tmp_path / "model", config)
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = load_model(tmp_path / "model").model
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    audio = utterances([1000, 2500, 4000])
    with torch.no_grad():
        torch.testing.assert_close(loaded(*audio).prediction, model(*audio).prediction, atol=1e-5, rtol=0)


def test_merged_model_is_exported(tmp_path):
    config = ModelConfig(embedding_dim=8, speech=speech_config(trainable="lora:2"))
    save_merged(tmp_path / "model", config)
    jaxtyping.config.update("jaxtyping_disable", True)  # while torch traces a model, sizes are tensors
    try:
        report = export_model(str(tmp_path / "model"), "onnx", tmp_path / "out")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert report.largest_difference < 1e-4


def test_merged_weights_by_hand():
    state = {
        "a.q.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "a.q.base_layer.bias": torch.tensor([5.0, 6.0]),
        "a.q.lora_A.default.weight": torch.tensor([[10.0, 20.0]]),
        "a.q.lora_B.default.weight": torch.tensor([[1.0], [2.0]]),
        "b.weight": torch.tensor([7.0]),
    }
    merged = merged_weights(state)
    assert merged.keys() == {"a.q.weight", "a.q.bias", "b.weight"}
    assert merged["a.q.weight"].tolist() == [[11.0, 22.0], [23.0, 44.0]]
    assert merged["a.q.bias"].tolist() == [5.0, 6.0]


def test_model_begins_as_the_pretrained_one():
    plain = ModelConfig(embedding_dim=8, speech=speech_config())
    adapted = replace(plain, speech=replace(speech_config(), trainable="lora:2"))
    predictions = []
    for config in (plain, adapted):
        torch.manual_seed(1)
        predictions.append(build_model(config).eval()(*utterances([1000])).prediction)
    assert torch.equal(*predictions)


def test_encoder_without_attention_is_refused(tmp_path):
    save_speech_encoder(tmp_path / "cpc", WITHOUT_ATTENTION)
    config = ModelConfig(speech=SpeechConfig(encoder=str(tmp_path / "cpc"), trainable="lora:4"))
    with pytest.raises(ConfigError, match=r"model\.speech\.trainable = 'lora:4': no attention projections are found"):
        build_model(config)


@pytest.mark.parametrize("value", ["lora", "lora:", "lora:0", "lora:-1", "lora:x"])
def test_rank_that_is_no_number_of_at_least_1_is_refused(value):
    with pytest.raises(ConfigError, match=r"must be 'none', 'all', 'top:N' or 'lora:R'"):
        parse_model({"speech": {"encoder": "folder", "trainable": value}}, source="run.toml")


def test_missing_peft_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    config = ModelConfig(speech=speech_config(trainable="lora:4"))
    assert run_main(lambda _: build_model(config) and 0) == 2
    assert "pip install 'ccts-dist[lora]'" in capsys.readouterr().err
