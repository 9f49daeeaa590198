"""Every family of speech encoders, saved as a folder in the shape of the real ones: what each promises, of each."""

import pytest
import torch

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.model.encoders import SPEECH_TYPES
from ccts_dist.model.layers import _speech_layers
from tests.helpers.models.model_shapes import (
    SPEECH,
    SPEECH_FAMILIES,
    SPEECH_MECHANISMS,
    most_calls,
    save_speech_encoder,
    speech_config,
    utterances,
)
from tests.tiers import with_long

# WavLM's own attention.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")

FAMILIES = with_long(SPEECH_MECHANISMS, sorted(SPEECH_FAMILIES))
LENGTHS = [1000, 4000, 2500, 3200]
ABOVE = {
    "hubert, layer norm": "encoder.layer_norm.",
    "wav2vec2, layer norm": "encoder.layer_norm.",
    "wavlm, layer norm": "encoder.layer_norm.",
    "unispeech-sat, layer norm": "encoder.layer_norm.",
    "conformer": "encoder.layer_norm.",
    "conformer, rotary": "encoder.layer_norm.",
    "sew": "encoder.upsample.",
    "sew-d": "encoder.upsample.",
}
"""What lies above the top layer."""


def build(folder, family, *, checkpointing=False, **changes):
    save_speech_encoder(folder / family, family)
    speech = SpeechConfig(encoder=str(folder / family), gru_hidden=16, **changes)
    return build_model(ModelConfig(embedding_dim=8, gradient_checkpointing=checkpointing, speech=speech))


def gradients(model):
    model.train()
    model(*utterances(LENGTHS[:2])).prediction.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_known_type_has_a_family_here():
    assert {SPEECH_FAMILIES[family].get("model_type", "hubert") for family in SPEECH_FAMILIES} == set(SPEECH_TYPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_frames_that_transformers_gives(tmp_path, family):
    theirs = save_speech_encoder(tmp_path / family, family)
    speech = SpeechConfig(encoder=str(tmp_path / family), pooling="mean")
    branch = build_model(ModelConfig(speech=speech)).eval().speech
    audio, num_samples = utterances([185 + 11 * 160])
    with torch.no_grad():
        frames = theirs(audio).last_hidden_state
        assert branch.num_frames(num_samples).tolist() == [frames.shape[1]] == [12]
        torch.testing.assert_close(branch(audio, num_samples), frames.mean(dim=1), atol=1e-5, rtol=1e-5)
    assert frames.std() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_lie_wholly_on_real_samples(tmp_path, family):
    branch = build(tmp_path, family).speech
    # 185 samples for the first and 160 for each further one; SEW's layers see them in pairs. Modified CPC sees zeros
    # beyond the ends: 3, 5 * 2 and 20 * 2 samples of them before the first sample, and as many after the last.
    by_hand = {"sew": [2, 10, 12, 12], "sew-d": [2, 10, 12, 12], "modified-cpc": [2, 12, 12, 13]}
    by_hand = by_hand.get(family, [2, 11, 12, 13])
    assert branch.num_frames(torch.tensor([345, 1944, 1945, 2105])).tolist() == by_hand


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_the_same_alone_and_in_a_batch(tmp_path, family):
    model = build(tmp_path, family, pooling="attentive-statistics").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()  # so that normalised silence is not zero
    lengths = [*LENGTHS, 185, 345]
    audio, num_samples = utterances(lengths)
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert together.std(dim=0).min() > 1e-4  # else equality would state nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_see_padding(tmp_path, family):
    model = build(tmp_path, family, checkpointing=True, pooling="mean", train_feature_encoder=True).double()
    audio, num_samples = utterances([1000, 2500])
    audio = audio.double()
    torch.autograd.backward(model(audio, num_samples).prediction.sum())
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    # Both forward passes first: layers that are recomputed must silence the padding of their own.
    losses = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction.sum() for i, n in enumerate([1000, 2500])]
    for loss in losses:
        torch.autograd.backward(loss)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(together[name], p.grad, atol=1e-8, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["conformer", "hubert, batch norm"])
def test_statistics_of_batch_norm_stay_and_are_not_rounded_with_the_weights(tmp_path, family):
    model = build(tmp_path, family)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.running_mean.normal_()
    before = [norm.running_mean.clone() for norm in norms]
    wide = model(*utterances(LENGTHS)).prediction
    for parameter in model.parameters():  # as DeepSpeed does in bf16
        parameter.data = parameter.data.bfloat16()
    rounded = model(*utterances(LENGTHS)).prediction
    torch.testing.assert_close(rounded, wide, atol=0.05, rtol=0)
    assert norms
    for norm, mean in zip(norms, before, strict=True):
        assert norm.running_mean.dtype == torch.float32
        assert torch.equal(norm.running_mean, mean)


@pytest.mark.parametrize("trainable", ["none", "top:1", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_just_what_is_named_is_trained_and_all_of_it_gets_a_gradient(tmp_path, family, trainable):
    model = build(tmp_path, family, trainable=trainable, checkpointing=trainable == "top:1")
    names = [name for name, _ in model.speech.encoder.named_parameters()]
    top = "encoder.encoder.layer.1." if family == "sew-d" else "encoder.layers.1."
    expected = {
        "none": [],
        "top:1": [name for name in names if name.startswith((top, ABOVE.get(family, top)))],
        # A conformer has positional convolutions and does not use them; SpecAugment is off, and its filler unused.
        "all": [
            name
            for name in names
            if not (family.startswith("conformer") and "pos_conv_embed" in name) and name != "masked_spec_embed"
        ],
    }[trainable]
    assert trainable == "none" or expected
    trained = {name for name, p in model.speech.encoder.named_parameters() if p.requires_grad}
    assert trained == set(expected)
    got = {name.removeprefix("speech.encoder.") for name in gradients(model) if name.startswith("speech.encoder.")}
    assert got == set(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_give_the_gradient_of_those_that_are_kept(tmp_path, family):
    torch.manual_seed(0)
    plain = build(tmp_path / "a", family)
    frugal = build(tmp_path / "b", family, checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    expected = gradients(plain)
    for name, gradient in gradients(frugal).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    top, top_recomputed = (_speech_layers(model.speech.encoder)[-1] for model in (plain, frugal))
    once, twice = most_calls(top, lambda: gradients(plain)), most_calls(top_recomputed, lambda: gradients(frugal))
    assert once > 0
    assert twice == 2 * once


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_predicts_the_same_without_the_encoders_folder(tmp_path, family):
    model = build(tmp_path, family).eval()
    save_model(
        tmp_path / "model", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    for path in (tmp_path / family).iterdir():
        path.unlink()
    loaded = load_model(tmp_path / "model").model
    with torch.no_grad():
        assert torch.equal(loaded(*utterances(LENGTHS)).prediction, model(*utterances(LENGTHS)).prediction)


@pytest.mark.parametrize("family", ["sew", "sew-d"])
def test_a_clip_shorter_than_what_sew_squeezes_into_one_frame_predicts_the_same_in_a_batch(family):
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config(shape=SPEECH_FAMILIES[family]))).eval()
    audio, num_samples = utterances([100, 2500])
    with torch.no_grad():
        together, alone = model(audio, num_samples).prediction, model(audio[:1, :100], num_samples[:1]).prediction
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_more_top_layers_than_are_used_is_refused():
    speech = speech_config(shape=SPEECH | {"num_hidden_layers": 3}, layers="layer:1", trainable="top:2")
    with pytest.raises(ConfigError, match=r"model.speech.trainable = 'top:2': the encoder has 1 layers"):
        build_model(ModelConfig(speech=speech))
