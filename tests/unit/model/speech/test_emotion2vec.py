"""emotion2vec: frames of a published checkpoint against an independent reading of its description; what is refused."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ccts_dist.config import ModelConfig, SpecAugmentConfig, SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model
from ccts_dist.model.speech.emotion2vec import Emotion2vecConfig, alibi_slopes
from ccts_dist.model.speech.emotion2vec_checkpoint import convert, main
from tests.helpers.models.model_shapes import utterances
from tests.helpers.models.published_emotion2vec import (
    AUDIO,
    CONVOLUTIONS,
    GROUPS,
    HEADS,
    SIZE,
    published,
    write_checkpoint,
)


def of_plus(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same encoder in a file of an emotion2vec+ model, with its classifier."""
    classifier = {"proj.weight": torch.zeros(9, SIZE), "proj.bias": torch.zeros(9)}
    return {f"d2v_model.{name}": tensor for name, tensor in weights.items()} | classifier


def frames_by_description(weights: dict[str, Tensor], audio: Tensor) -> Tensor:
    """[frames features] of one waveform, step by step with loops over heads and pairs of frames."""
    centred = audio - audio.mean()
    hidden = (centred / (centred.square().mean() + 1e-5).sqrt())[None]

    def affine(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normal(value: Tensor, name: str = "") -> Tensor:
        off = value - value.mean(-1, keepdim=True)
        unit = off / (off.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"] if name else unit

    def gelu(value: Tensor) -> Tensor:
        return value * 0.5 * (1 + torch.erf(value / math.sqrt(2)))

    for number, (_, stride) in enumerate(CONVOLUTIONS):
        place = f"{AUDIO}local_encoder.conv_layers.{number}"
        convolved = F.conv1d(hidden[None], weights[f"{place}.0.weight"], stride=stride)[0]
        hidden = gelu(normal(convolved.T, f"{place}.2.1").T)
    frames = affine(f"{AUDIO}project_features.2", normal(hidden.T, f"{AUDIO}project_features.1"))
    positions = frames
    for number in range(1, 6):
        place = f"{AUDIO}relative_positional_encoder.{number}.0"
        convolved = F.conv1d(
            positions.T[None], weights[f"{place}.weight"], weights[f"{place}.bias"], padding=9, groups=GROUPS
        )[0]
        positions = gelu(normal(convolved.T))
    hidden = torch.cat([weights[f"{AUDIO}extra_tokens"][0], frames + positions])
    hidden = normal(hidden, f"{AUDIO}context_encoder.norm")
    # Three heads: those of two, 1/16 and 1/256, and the first of four, 1/4; times the learnt scale, 0 where negative.
    slopes = [1.5 / 16, 0.0, 0.7 / 4]
    bias = torch.zeros(HEADS, len(hidden), len(hidden))
    for head in range(HEADS):
        for i in range(10, len(hidden)):
            for j in range(10, len(hidden)):
                bias[head, i, j] = -slopes[head] * abs(i - j)
    for place in (*(f"{AUDIO}context_encoder.blocks.{n}" for n in range(4)), *(f"blocks.{n}" for n in range(8))):
        query, key, value = affine(f"{place}.attn.qkv", hidden).split(SIZE, dim=1)
        heads = []
        for head in range(HEADS):
            own = slice(head * SIZE // HEADS, (head + 1) * SIZE // HEADS)
            scores = query[:, own] @ key[:, own].T / math.sqrt(SIZE // HEADS) + bias[head]
            heads.append(scores.softmax(dim=1) @ value[:, own])
        hidden = normal(hidden + affine(f"{place}.attn.proj", torch.cat(heads, dim=1)), f"{place}.norm1")
        wide = gelu(affine(f"{place}.mlp.fc1", hidden))
        hidden = normal(hidden + affine(f"{place}.mlp.fc2", wide), f"{place}.norm2")
    return hidden[10:]


@pytest.fixture(params=["base", "plus"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    weights = published() if request.param == "base" else of_plus(published())
    convert(write_checkpoint(tmp_path / "model.pt", weights), tmp_path / "encoder")
    return tmp_path / "encoder"


def test_published_checkpoint_gives_the_frames_of_the_description(folder: Path):
    branch = build_model(ModelConfig(speech=SpeechConfig(encoder=str(folder), pooling="mean"))).eval().speech
    assert branch.do_normalize
    audio, num_samples = utterances([8_000, 12_345])
    audio = audio * 0.02 + 0.01  # quiet, and not centred: what is added to the variance counts
    with torch.no_grad():
        frames, num_frames = branch.encode(audio, num_samples)
        for row, count in enumerate(num_samples):
            expected = frames_by_description(published(), audio[row, :count])
            assert len(expected) == num_frames[row]
            torch.testing.assert_close(frames[row, : num_frames[row]], expected, atol=1e-5, rtol=1e-5)
            assert expected.std() > 0.3
    assert num_frames.tolist() == [24, 38]  # one each 20 ms


def test_every_weight_of_the_checkpoint_is_in_the_encoder(folder: Path):
    encoder = build_model(ModelConfig(speech=SpeechConfig(encoder=str(folder)))).speech
    ours = {**encoder.front_end.state_dict(), **encoder.encoder.state_dict()}
    theirs = published()
    assert len(ours) == len(theirs)
    unmatched = [name for name, tensor in theirs.items() if not any(torch.equal(tensor, one) for one in ours.values())]
    assert unmatched == [f"{AUDIO}alibi_scale"], "which is multiplied by fixed slopes"


def test_slopes_by_hand():
    assert alibi_slopes(8) == pytest.approx([2.0**-n for n in range(1, 9)])
    # Twelve: those of 8, and the 1st, 3rd, 5th and 7th of 16, which are 2^-0.5, 2^-1.5 ...
    assert alibi_slopes(12)[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_default_shape_is_that_of_the_published_base_model():
    config = Emotion2vecConfig()
    shapes = {  # as FunASR's configuration of emotion2vec_base spells them
        "embed_dim": (config.hidden_size, 768),
        "depth + prenet_depth": (config.num_hidden_layers, 8 + 4),
        "mlp_ratio": (config.intermediate_size, 4 * 768),
        "feature_encoder_spec": (
            list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)),
            [(512, *one) for one in CONVOLUTIONS],
        ),
        "conv_pos_width // conv_pos_depth": (config.conv_pos_kernel_size, 95 // 5),
    }
    assert all(ours == theirs for ours, theirs in shapes.values()), shapes


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in published().items() if name not in key}


@pytest.mark.parametrize(
    "weights",
    [
        without("local_encoder.conv_layers.0.0"),
        without("context_encoder.blocks"),
        without("blocks.7.mlp.fc2.bias"),
        without("alibi_scale"),
        published() | {"blocks.0.other": torch.zeros(1)},
        published() | {f"{AUDIO}alibi_scale": torch.ones(12, 1, HEADS, 1, 1)},
        published() | {f"{AUDIO}alibi_scale": torch.ones(1, 1, 1, 1, 1)},
        "nothing",
    ],
    ids=[
        "no convolution",
        "no context",
        "no bias",
        "no scale",
        "another weight",
        "scale of each layer",
        "scale of all heads",
        "no weights",
    ],
)
def test_another_checkpoint_is_refused(tmp_path: Path, weights: object):
    with pytest.raises(ConfigError, match="no emotion2vec checkpoint"):
        convert(write_checkpoint(tmp_path / "other.pt", weights), tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


class _Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_file_that_would_run_code_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": published(), "cfg": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="no emotion2vec checkpoint"):
        convert(tmp_path / "evil.pt", tmp_path / "encoder")
    assert not (tmp_path / "evil").exists()


def test_command_makes_the_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_checkpoint(tmp_path / "model.pt", published())
    assert main([str(checkpoint), str(tmp_path / "encoder")]) == 0
    assert str(tmp_path / "encoder") in capsys.readouterr().out
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["model_type"] == "emotion2vec"
    with pytest.raises(ConfigError, match="is there already"):
        main([str(checkpoint), str(tmp_path / "encoder")])


def test_spec_augment_is_refused(folder: Path):
    speech = SpeechConfig(encoder=str(folder), trainable="all", spec_augment=SpecAugmentConfig())
    with pytest.raises(ConfigError, match="an encoder of type emotion2vec masks nothing"):
        build_model(ModelConfig(speech=speech))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conv_kernel": [10, 3]}, "must be equally long and not empty"),
        ({"hidden_size": 770}, "hidden_size = 770 must be a multiple of the numbers of heads and groups"),
    ],
)
def test_architecture_that_cannot_be_is_refused(fields: dict, words: str):
    with pytest.raises(Exception, match=words):
        Emotion2vecConfig(**fields)
