"""Frames of all layers at once: those of each layer, whatever the padding."""

from dataclasses import replace

import pytest
import torch

from ccts_dist.config import FilterbankConfig, ModelConfig, SpeechConfig, TextConfig
from ccts_dist.model import build_model
from tests.helpers.models.model_shapes import (
    SPEECH_FAMILIES,
    SPEECH_MECHANISMS,
    TEXT_FAMILIES,
    TEXT_MECHANISMS,
    VOCABULARY,
    save_speech_encoder,
    save_text_encoder,
    transcripts,
    utterances,
)
from tests.tiers import with_long

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


def speech_model(folder, layers="last"):
    speech = SpeechConfig(encoder=str(folder), pooling="mean", layers=layers)
    return build_model(ModelConfig(embedding_dim=8, speech=speech)).eval()


def text_model(folder, layers="last"):
    text = TextConfig(encoder=str(folder), pooling="mean", layers=layers, max_tokens=32)
    return build_model(ModelConfig(embedding_dim=8, text=text), vocabulary_size=VOCABULARY).eval()


def mean(layer, row=0):
    return layer.frames[row, : layer.num_frames[row]].mean(dim=0)


def assert_same_alone_and_in_company(layers_of, lengths, make):
    things, nums = make(lengths)
    together = layers_of(things, nums)
    for row, length in enumerate(lengths):
        alone = layers_of(things[row : row + 1, :length], nums[row : row + 1])
        assert len(alone) == len(together)
        for one, among in zip(alone, together, strict=True):
            assert one.num_frames[0] == among.num_frames[row] > 0
            assert one.frames.shape[1] >= one.num_frames[0]
            torch.testing.assert_close(mean(one), mean(among, row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", with_long(SPEECH_MECHANISMS, SPEECH_FAMILIES))
def test_layers_of_a_speech_encoder_do_not_depend_on_padding(family, tmp_path):
    save_speech_encoder(tmp_path / "e", family)
    branch = speech_model(tmp_path / "e").speech
    assert_same_alone_and_in_company(branch.layer_frames, [900, 4_000, 2_300], utterances)


@pytest.mark.parametrize("family", with_long(TEXT_MECHANISMS, TEXT_FAMILIES))
def test_layers_of_a_text_encoder_do_not_depend_on_padding(family, tmp_path):
    save_text_encoder(tmp_path / "e", family)
    assert_same_alone_and_in_company(text_model(tmp_path / "e").text.layer_frames, [3, 12, 7], transcripts)


def test_layers_of_a_filter_bank_do_not_depend_on_padding():
    torch.manual_seed(0)
    bank = FilterbankConfig(num_mel_bins=20, channels=(12, 8))
    branch = build_model(
        ModelConfig(embedding_dim=8, speech=SpeechConfig(encoder="filterbank", filterbank=bank))
    ).speech
    assert_same_alone_and_in_company(branch.layer_frames, [4_000, 9_000, 6_001], utterances)
    assert [layer.frames.shape[2] for layer in branch.layer_frames(*utterances([9_000]))] == [20, 12, 8]


@pytest.mark.parametrize(
    "family",
    with_long(SPEECH_MECHANISMS, sorted(family for family in SPEECH_FAMILIES if not family.startswith("sew"))),
)
def test_each_layer_is_what_a_run_file_gets_by_its_number(family, tmp_path):
    save_speech_encoder(tmp_path / "e", family)
    audio = utterances([3_000, 1_500])
    layers = speech_model(tmp_path / "e").speech.layer_frames(*audio)
    assert len(layers) == 3
    with torch.no_grad():
        lowest = 1 if family == "emotion2vec" else 0
        for number, layer in list(enumerate(layers))[lowest:]:
            pooled = speech_model(tmp_path / "e", f"layer:{number}").speech(*audio)
            torch.testing.assert_close(torch.stack([mean(layer), mean(layer, 1)]), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sew", "sew-d"])
def test_top_layer_of_an_encoder_that_squeezes_is_what_leaves_it(family, tmp_path):
    save_speech_encoder(tmp_path / "e", family)
    branch, audio = speech_model(tmp_path / "e").speech, utterances([3_000, 1_500])
    *within, top = branch.layer_frames(*audio)
    assert len(within) == 2
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([mean(top), mean(top, 1)]), branch(*audio), rtol=1e-4, atol=1e-5)
    assert all((2 * layer.num_frames == top.num_frames).all() for layer in within)


def test_each_layer_of_a_text_encoder_is_what_a_run_file_gets_by_its_number(tmp_path):
    save_text_encoder(tmp_path / "e", "bert")
    tokens = transcripts([9, 4])
    layers = text_model(tmp_path / "e").text.layer_frames(*tokens)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            pooled = text_model(tmp_path / "e", f"layer:{number}").text(*tokens)
            torch.testing.assert_close(torch.stack([mean(layer), mean(layer, 1)]), pooled, rtol=1e-4, atol=1e-5)


def test_frozen_and_trained_branches_give_the_same_frames_and_no_gradient(tmp_path):
    save_speech_encoder(tmp_path / "e", "hubert, layer norm")
    audio = utterances([3_000])
    config = SpeechConfig(encoder=str(tmp_path / "e"), pooling="mean")
    for changed in (config, replace(config, trainable="none"), replace(config, train_feature_encoder=True)):
        branch = build_model(ModelConfig(embedding_dim=8, speech=changed)).eval().speech
        assert not any(layer.frames.requires_grad for layer in branch.layer_frames(*audio))
