"""Which of an encoder's frames are pooled."""

import copy

import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, load_model, parameter_groups, save_model
from ccts_dist.model import layers as layers_module
from ccts_dist.model.layers import EncoderLayers, LayerMixture
from tests.helpers.models.model_shapes import (
    SPEECH_FAMILIES,
    SPEECH_MECHANISMS,
    TEXT_FAMILIES,
    TEXT_MECHANISMS,
    VOCABULARY,
    save_speech_encoder,
    save_text_encoder,
    speech_config,
    text_config,
    transcripts,
    utterances,
)
from tests.tiers import with_long

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")

SPEECH_LAYERED = with_long(
    SPEECH_MECHANISMS, sorted(family for family in SPEECH_FAMILIES if not family.startswith("sew"))
)
TEXT_LAYERED = with_long(TEXT_MECHANISMS, sorted(TEXT_FAMILIES))
ONE = [185 + 11 * 160]


def speech_model(folder, layers, **changes):
    speech = SpeechConfig(encoder=str(folder), pooling="mean", layers=layers, **changes)
    return build_model(ModelConfig(embedding_dim=8, speech=speech)).eval()


def text_model(folder, layers, **changes):
    text = TextConfig(encoder=str(folder), pooling="mean", layers=layers, max_tokens=32, **changes)
    return build_model(ModelConfig(embedding_dim=8, text=text), vocabulary_size=VOCABULARY).eval()


def states_of(theirs, **inputs):
    with torch.no_grad():
        output = theirs(**inputs, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


def test_mixture_by_hand():
    mixture = LayerMixture(3)
    states = [torch.full((1, 1, 1), value) for value in (1.0, 2.0, 6.0)]
    assert mixture(states).item() == pytest.approx(3.0)
    with torch.no_grad():
        mixture.scores.copy_(torch.tensor([0.0, torch.log(torch.tensor(3.0)), -torch.inf]))
    assert mixture(states).item() == pytest.approx(0.25 * 1 + 0.75 * 2)


def test_mixture_of_bfloat16_frames_is_float32():
    assert LayerMixture(2).bfloat16()([torch.ones(1, 2, 3).bfloat16()] * 2).dtype == torch.float32


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("family", SPEECH_LAYERED)
def test_a_layer_of_a_speech_encoder_is_what_transformers_gives_there(tmp_path, family, number):
    theirs = save_speech_encoder(tmp_path, family)
    if family == "emotion2vec" and number == 0:
        with pytest.raises(ConfigError, match="the encoder has layers 1 to 2"):
            speech_model(tmp_path, "layer:0")
        return
    audio, num_samples = utterances(ONE)
    expected = states_of(theirs, input_values=audio)[number].mean(dim=1)
    model = speech_model(tmp_path, f"layer:{number}")
    with torch.no_grad():
        torch.testing.assert_close(model.speech(audio, num_samples), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SPEECH_LAYERED)
def test_weighted_layers_start_as_their_plain_mean_and_are_learnt(tmp_path, family):
    theirs = save_speech_encoder(tmp_path, family)
    audio, num_samples = utterances(ONE)
    expected = torch.stack(states_of(theirs, input_values=audio)).mean(dim=0).mean(dim=1)
    model = speech_model(tmp_path, "weighted", trainable="none")
    with torch.no_grad():
        torch.testing.assert_close(model.speech(audio, num_samples), expected, atol=1e-5, rtol=1e-5)
    model(audio, num_samples).prediction.sum().backward()
    assert model.speech.mixture.scores.grad.abs().sum() > 0
    assert any(p is model.speech.mixture.scores for p in parameter_groups(model)["head"])


@pytest.mark.parametrize("layers", ["layer:1", "weighted"])
@pytest.mark.parametrize("family", SPEECH_LAYERED)
def test_chosen_layers_do_not_see_padding(tmp_path, family, layers):
    save_speech_encoder(tmp_path, family)
    model = speech_model(tmp_path, layers)
    lengths = [1000, 4000, 2500]
    audio, num_samples = utterances(lengths)
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layers", "trainable", "checkpointing"),
    [("layer:0", "all", False), ("layer:1", "top:1", True), ("weighted", "all", True), ("weighted", "top:1", False)],
)
@pytest.mark.parametrize("family", SPEECH_LAYERED)
def test_all_that_is_trained_below_the_chosen_layers_gets_a_gradient(
    tmp_path, family, layers, trainable, checkpointing
):
    if family == "emotion2vec" and layers == "layer:0":
        return  # refused: see above
    save_speech_encoder(tmp_path, family)
    speech = SpeechConfig(encoder=str(tmp_path), layers=layers, trainable=trainable)
    model = build_model(ModelConfig(embedding_dim=8, gradient_checkpointing=checkpointing, speech=speech))
    model(*utterances([1000, 2500])).prediction.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("family", TEXT_LAYERED)
@pytest.mark.parametrize("number", [1, 2])
def test_a_layer_of_a_text_encoder_is_what_transformers_gives_there(tmp_path, family, number):
    theirs = save_text_encoder(tmp_path, family)
    tokens, num_tokens = transcripts([9])
    expected = states_of(theirs, input_ids=tokens)[number].mean(dim=1)
    with torch.no_grad():
        got = text_model(tmp_path, f"layer:{number}").text(tokens, num_tokens)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", TEXT_LAYERED)
def test_weighted_layers_of_a_text_encoder_start_as_their_plain_mean(tmp_path, family):
    theirs = save_text_encoder(tmp_path, family)
    tokens, num_tokens = transcripts([9])
    expected = torch.stack(states_of(theirs, input_ids=tokens)).mean(dim=0).mean(dim=1)
    with torch.no_grad():
        got = text_model(tmp_path, "weighted").text(tokens, num_tokens)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", ["layer:0", "layer:1", "weighted"])
@pytest.mark.parametrize("family", TEXT_LAYERED)
def test_all_that_is_trained_of_a_text_encoder_gets_a_gradient(tmp_path, family, layers):
    save_text_encoder(tmp_path, family)
    if family in ("albert", "deberta-v3") and layers == "layer:0":
        with pytest.raises(ConfigError, match=r"model.text.layers = 'layer:0': the encoder has layers 1 to 2"):
            text_model(tmp_path, layers)
        return
    model = text_model(tmp_path, layers).train()
    audio, num_samples = utterances([200])
    model(audio, num_samples, *transcripts([9])).prediction.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_no_layer_above_the_chosen_one_is_there():
    model = build_model(ModelConfig(speech=speech_config(layers="layer:1"), text=text_config(layers="layer:1")),
                        vocabulary_size=VOCABULARY)  # fmt: skip
    assert len(model.speech.encoder.encoder.layers) == 1
    assert len(model.text.encoder.encoder.layer) == 1


@pytest.mark.parametrize("layers", ["layer:1", "weighted"])
def test_a_model_of_chosen_layers_comes_back_from_its_folder(tmp_path, layers):
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config(layers=layers))).eval()
    if model.speech.mixture is not None:
        torch.nn.init.normal_(model.speech.mixture.scores)
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    batch = utterances([1000, 2500])
    with torch.no_grad():
        expected = model(*batch).prediction
        assert torch.equal(load_model(tmp_path / "m").model(*batch).prediction, expected)
        assert torch.equal(copy.deepcopy(model)(*batch).prediction, expected)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"model.speech.layers = 'layer:3': the encoder has layers 0 to 2. Name one"):
        build_model(ModelConfig(speech=speech_config(layers="layer:3")))
    with pytest.raises(ConfigError, match=r"model.text.layers = 'layer:3': the encoder has layers 0 to 2"):
        build_model(ModelConfig(text=text_config(layers="layer:3")), vocabulary_size=VOCABULARY)
    with pytest.raises(ConfigError, match=r"model.speech.layers = 'weighted': must be 'last' for a sew encoder"):
        build_model(ModelConfig(speech=speech_config(layers="weighted", shape={"model_type": "sew"})))


def test_layers_under_no_usual_name_and_layers_that_are_not_reported_are_refused():
    class Bare(PreTrainedModel):  # transformers keeps what it finds out about a class in that class
        pass

    layers = EncoderLayers(Bare(PretrainedConfig()), table="model.speech", is_known=False)
    with pytest.raises(
        ConfigError, match=r"speech.layers = 'layer:1': must be 'last' for a .*not found under any usual"
    ):
        layers.choose("layer:1")
    with pytest.raises(ConfigError, match="this encoder does not report what leaves each of its layers"):
        layers_module.states_of(BaseModelOutput(last_hidden_state=torch.zeros(1, 2, 3)))
