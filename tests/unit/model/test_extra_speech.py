"""Several speech encoders side by side, heads, and what an optimizer is given of them."""

import json

import pytest
import torch
from torch.nn import functional as F

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, describe, load_model, parameter_groups, save_model
from ccts_dist.train.memory.activations import BatchShape, trace_peak
from tests.helpers.models.model_shapes import (
    VOCABULARY,
    both,
    save_speech_encoder,
    speech_config,
    text_config,
    utterances,
)

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention

LENGTHS = [1000, 4000, 2500]


def three(**changes) -> ModelConfig:
    wide = speech_config(shape={"hidden_size": 48, "model_type": "wav2vec2"}, pooling="statistics", do_normalize="on")
    bank = SpeechConfig(encoder="filterbank", gru_hidden=16)
    return ModelConfig(embedding_dim=8, speech=speech_config(pooling="mean"), extra_speech=(wide, bank), **changes)


def build(config, **arguments):
    torch.manual_seed(0)
    return build_model(config, **arguments)


def test_the_vectors_stand_side_by_side_each_pooled_its_own_way():
    model = build(three()).eval()
    audio, num_samples = utterances(LENGTHS)
    with torch.no_grad():
        vectors = [branch(audio, num_samples) for branch in (model.speech, *model.extra_speech)]
        assert [vector.shape[1] for vector in vectors] == [32, 2 * 48, 16]
        expected = F.linear(torch.cat(vectors, dim=1), model.embedding.weight, model.embedding.bias)
        torch.testing.assert_close(model(audio, num_samples).embedding, expected)


def test_predictions_are_the_same_alone_and_in_a_batch():
    model = build(three()).eval()
    audio, num_samples = utterances(LENGTHS)
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_each_encoder_has_its_own_normalisation():
    banks = [SpeechConfig(encoder="filterbank", pooling="mean", do_normalize=word) for word in ("off", "on", "auto")]
    model = build(ModelConfig(embedding_dim=8, speech=banks[0], extra_speech=(banks[1], banks[2]))).eval()
    audio, num_samples = utterances(LENGTHS)
    quiet = [branch(audio, num_samples) for branch in (model.speech, *model.extra_speech)]
    loud = [branch(4 * audio, num_samples) for branch in (model.speech, *model.extra_speech)]
    changed = [bool((a - b).abs().max() > 1e-3) for a, b in zip(quiet, loud, strict=True)]
    assert changed == [True, False, True]


def test_all_of_them_are_trained_unless_frozen():
    config = three()
    frozen = ModelConfig(
        embedding_dim=8, speech=config.speech, extra_speech=(speech_config(trainable="none"), config.extra_speech[1])
    )
    model = build(frozen)
    model(*utterances(LENGTHS)).prediction.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert not any(name.startswith(("also.0.encoder", "also.0.front_end")) for name in trained)
    speech = {id(p) for p in parameter_groups(model)["speech"]}
    inside = (model.speech.encoder, model.extra_speech[1].encoder)
    assert speech == {id(p) for encoder in inside for p in encoder.parameters() if p.requires_grad}


def test_they_come_back_from_their_folder(tmp_path):
    save_speech_encoder(tmp_path / "e", "wavlm", do_normalize=True)
    config = ModelConfig(
        embedding_dim=8,
        speech=speech_config(),
        extra_speech=(SpeechConfig(encoder=str(tmp_path / "e")), *three().extra_speech),
    )
    model = build(config).eval()
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    loaded = load_model(tmp_path / "m")
    assert loaded.config == config
    assert [branch.do_normalize for branch in loaded.model.extra_speech] == [True, True, False]
    batch = utterances(LENGTHS)
    with torch.no_grad():
        assert torch.equal(loaded.model(*batch).prediction, model(*batch).prediction)


def test_a_folder_of_before_there_were_several_still_loads(tmp_path):
    model = build(ModelConfig(embedding_dim=8, speech=speech_config())).eval()
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    path = tmp_path / "m" / "model.json"
    description = json.loads(path.read_text())
    for key in ("also_normalise", "files", "seal"):
        del description[key]
    for key in ("extra_speech", "heads", "head_hidden_dim"):
        del description["model"][key]
    for key in ("layers", "attention_hidden"):
        del description["model"]["speech"][key]
    path.write_text(json.dumps(description))
    batch = utterances(LENGTHS)
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded.model(*batch).prediction, model(*batch).prediction)


def test_mistakes_in_their_tables_are_reported_by_the_tables_own_name(tmp_path):
    def refused(**changes):
        with pytest.raises(ConfigError) as error:
            build(ModelConfig(speech=speech_config(), extra_speech=(speech_config(), speech_config(**changes))))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "model.extra_speech[1].encoder = '/no/such/folder': no such folder" in refused(
        encoder="/no/such/folder", scratch={}
    )
    assert "model.extra_speech[1].trainable = 'top:9': the encoder has 2 layers" in refused(trainable="top:9")
    assert "model.extra_speech[1].layers = 'layer:3'" in refused(layers="layer:3")
    assert "model.extra_speech[1].train_feature_encoder" in refused(train_feature_encoder=True, trainable="none")


def test_their_memory_is_foreseen():
    shape = BatchShape(rows=2, samples=16_000)

    def trace(config):
        encoders = build(config).encoder_configs
        return trace_peak(config, encoders, shape, precision="fp32", training=True, on_gpu=False)

    one = trace(ModelConfig(embedding_dim=8, speech=speech_config(pooling="mean")))
    assert trace(three()) > one > 0


def test_heads_by_hand():
    model = build(
        ModelConfig(embedding_dim=2, targets=("a", "b"), heads="per-target", head_hidden_dim=2, speech=speech_config())
    )
    heads = model.prediction
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        for head, sign in zip(heads.heads, (1.0, -1.0), strict=True):
            head[0].weight.copy_(torch.tensor([[sign, 0.0], [0.0, sign]]))
            head[2].weight.copy_(torch.tensor([[1.0, 10.0]]))
            head[2].bias.fill_(0.5)
    # relu(1), relu(-2) -> 1 * 1 + 10 * 0 + 0.5; relu(-1), relu(2) -> 1 * 0 + 10 * 2 + 0.5
    assert heads(torch.tensor([[1.0, -2.0]])).tolist() == [[1.5, 20.5]]


def test_each_target_has_a_head_of_its_own_in_float32():
    model = build(ModelConfig(embedding_dim=8, heads="per-target", head_hidden_dim=5, speech=speech_config()))
    batch = utterances(LENGTHS)
    model(*batch).prediction[:, 1].sum().backward()
    heads = model.prediction.heads
    assert len(heads) == 3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads[1][2].parameters())
    assert all(p.grad is None or not p.grad.any() for head in (heads[0], heads[2]) for p in head.parameters())
    assert [head[2].bias.item() for head in heads] == [0.5] * 3
    assert describe(model)["head"].parameters == (16 * 8 + 8) + 3 * (8 * 5 + 5 + 5 + 1)
    assert model.bfloat16()(*batch).prediction.dtype == torch.float32


def test_heads_come_back_from_their_folder(tmp_path):
    model = build(ModelConfig(embedding_dim=8, heads="per-target", speech=speech_config())).eval()
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    batch = utterances(LENGTHS)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m").model(*batch).prediction, model(*batch).prediction)


def test_groups_report_speech_and_text_apart():
    model = build(both(speech=speech_config(trainable="top:1"), text=text_config()), vocabulary_size=VOCABULARY)
    groups = parameter_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".layers.1.")[0] for p in groups["speech"]} == {"speech.encoder.encoder"}
    assert {names[id(p)][:13] for p in groups["text"]} == {"text.encoder."}
    assert not any(names[id(p)].startswith(("speech.encoder", "text.encoder")) for p in groups["head"])
