"""Modified CPC: what a published checkpoint gives, against the formulas written out; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F

from ccts_dist.config import ModelConfig, SpecAugmentConfig, SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.model.speech.modified_cpc import ChannelNorm, ModifiedCpcConfig, convert, main
from tests.helpers.models.model_shapes import utterances
from tests.helpers.models.published_cpc import CHANNELS, CONVOLUTIONS, HIDDEN, published, write_checkpoint


def frames_by_formula(weights: dict[str, Tensor], audio: Tensor) -> Tensor:
    """[batch frames hidden], written out: convolve, normalise over channels, cut below 0, LSTM."""
    hidden = audio[:, None]
    for number, (_, stride, padding) in enumerate(CONVOLUTIONS):
        convolved = F.conv1d(
            hidden,
            weights[f"gEncoder.conv{number}.weight"],
            weights[f"gEncoder.conv{number}.bias"],
            stride=stride,
            padding=padding,
        )
        centred = convolved - convolved.mean(1, keepdim=True)
        variance = centred.square().sum(1, keepdim=True) / (CHANNELS - 1)
        normal = centred / (variance + 1e-5).sqrt()
        scaled = normal * weights[f"gEncoder.batchNorm{number}.weight"] + weights[f"gEncoder.batchNorm{number}.bias"]
        hidden = scaled.clamp(min=0)
    lstm = nn.LSTM(CHANNELS, HIDDEN, 2, batch_first=True)
    lstm.load_state_dict({k.removeprefix("gAR.baseNet."): v for k, v in weights.items() if k.startswith("gAR.")})
    with torch.no_grad():
        return lstm(hidden.transpose(1, 2))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(write_checkpoint(tmp_path / "published.pt", published()), tmp_path / "cpc")
    return tmp_path / "cpc"


def test_norm_over_channels_by_hand():
    # Mean 2, variance (1 + 0 + 1) / 2 = 1.
    normal = ChannelNorm(3, eps=0.0)(torch.tensor([[[1.0], [2.0], [3.0]]]))
    assert normal.flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_published_checkpoint_gives_the_frames_of_the_formulas(folder: Path):
    model = build_model(ModelConfig(speech=SpeechConfig(encoder=str(folder), pooling="mean"))).eval()
    assert not model.speech.do_normalize
    audio, num_samples = utterances([16_000])
    expected = frames_by_formula(published(), audio)
    assert expected.shape[1] == model.speech.num_frames(num_samples).item() == 100  # one each 10 ms
    assert expected.std() > 0.05
    with torch.no_grad():
        torch.testing.assert_close(model.speech(audio, num_samples), expected.mean(1), atol=1e-6, rtol=1e-5)


def test_lower_layer_is_taken_when_it_is_named(folder: Path):
    audio, num_samples = utterances([4000])
    means = []
    for layers in ("layer:0", "layer:1", "last"):
        speech = SpeechConfig(encoder=str(folder), pooling="mean", layers=layers)
        branch = build_model(ModelConfig(speech=speech)).eval().speech
        assert len(branch.encoder.encoder.layers) == {"layer:0": 0, "layer:1": 1, "last": 2}[layers]
        with torch.no_grad():
            means.append(branch(audio, num_samples))
    assert not torch.allclose(means[0], means[1], atol=1e-3)
    assert not torch.allclose(means[1], means[2], atol=1e-3)


def test_model_comes_back_from_its_folder(folder: Path, tmp_path: Path):
    config = ModelConfig(embedding_dim=8, speech=SpeechConfig(encoder=str(folder), gru_hidden=8))
    model = build_model(config).eval()
    save_model(
        tmp_path / "saved", model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    loaded = load_model(tmp_path / "saved").model.eval()
    audio, num_samples = utterances([4000, 2500])
    with torch.no_grad():
        assert torch.equal(loaded(audio, num_samples).prediction, model(audio, num_samples).prediction)


@pytest.mark.parametrize(
    "weights",
    [
        published(gates=3),  # GRUs
        {name: tensor for name, tensor in published().items() if "conv4" not in name},
        {name: tensor for name, tensor in published().items() if name != "gEncoder.batchNorm2.bias"},
        published() | {"gOther.weight": torch.zeros(1)},
        "nothing",
    ],
    ids=["GRU", "no convolution", "no norm", "another weight", "no weights"],
)
def test_another_checkpoint_is_refused(tmp_path: Path, weights: object):
    with pytest.raises(ConfigError, match="no Modified CPC checkpoint"):
        convert(write_checkpoint(tmp_path / "other.pt", weights), tmp_path / "cpc")
    assert not (tmp_path / "cpc").exists()


def test_file_that_would_run_code_is_refused(tmp_path: Path):
    torch.save({"weights": Path("anything")}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="no Modified CPC checkpoint"):
        convert(tmp_path / "evil.pt", tmp_path / "cpc")


def test_command_makes_the_folder_once(tmp_path: Path, capsys):
    checkpoint = write_checkpoint(tmp_path / "published.pt", published())
    assert main([str(checkpoint), str(tmp_path / "cpc")]) == 0
    assert str(tmp_path / "cpc") in capsys.readouterr().out
    assert json.loads((tmp_path / "cpc" / "config.json").read_text())["model_type"] == "modified-cpc"
    with pytest.raises(ConfigError, match="is there already"):
        main([str(checkpoint), str(tmp_path / "cpc")])


def test_spec_augment_is_refused(folder: Path):
    speech = SpeechConfig(encoder=str(folder), trainable="all", spec_augment=SpecAugmentConfig())
    with pytest.raises(ConfigError, match="masks nothing"):
        build_model(ModelConfig(speech=speech))


@pytest.mark.parametrize(("shape", "words"), [([8, 8], "equally long"), ([8] * 5, "must end in hidden_size = 256")])
def test_shape_is_checked(shape: list[int], words: str):
    with pytest.raises(StrictDataclassError, match=words):
        ModifiedCpcConfig(conv_dim=shape)
