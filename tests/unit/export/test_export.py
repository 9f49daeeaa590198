"""Small students of every family predict the same in ONNX as in torch; what a format cannot hold is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from ccts_dist.config import FilterbankConfig, ModelConfig, SpeechConfig
from ccts_dist.errors import ConfigError, ExportError, run_main
from ccts_dist.export.command import Format, export_model
from ccts_dist.model import build_model, save_model
from ccts_dist.registry import load_student
from launch import export as command
from tests.helpers.models import model_shapes
from tests.helpers.models.small_student import save_student, student_config
from tests.tiers import with_long

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM's own
POOLINGS = ("gru", "mean", "statistics", "attentive-statistics", "self-attention")
SPEECH = model_shapes.speech_config


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """While torch traces a model, sizes are tensors, and no annotation fits."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _save(folder: Path, config: ModelConfig) -> str:
    return str(save_student(folder, config, large_weights=True))


def _export(tmp_path: Path, config: ModelConfig, format: Format) -> float:
    report = export_model(_save(tmp_path / "model", config), format, tmp_path / "out")
    assert (report.num_recordings, report.num_batches) == (11, 5)
    reported = json.loads((tmp_path / "out" / "export.json").read_text())
    assert reported["largest_difference_from_torch"] == report.largest_difference
    return report.largest_difference


@pytest.mark.parametrize("poolings", with_long(["per-target"], ["shared", "per-target"]))
def test_an_onnx_file_answers_as_the_student_does_in_a_batch_of_any_length(tmp_path: Path, poolings: str) -> None:
    import onnx
    import onnxruntime

    config = student_config(
        SPEECH(), categories=("sad", "happy"), targets=("valence", "valence.variance"), poolings=poolings
    )
    assert _export(tmp_path, config, "onnx") < 1e-4
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    waves = [np.random.default_rng(n).normal(0, 0.1, 5_000 + 3_000 * n).astype(np.float32) for n in range(3)]
    waves = [np.rint(wave * 32_768) / np.float32(32_768) for wave in waves]  # 16 bit, as recordings are processed
    expected = load_student(tmp_path / "model").predict(waves)
    audio = np.full((3, 20_000), 9.0, dtype=np.float32)
    for row, wave in enumerate(waves):
        audio[row, : len(wave)] = wave
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    given = {"audio": audio, "num_samples": np.array([len(wave) for wave in waves])}
    ratings, shares = session.run(["rating", "probability"], given)
    for answer, rating, share in zip(expected, ratings, shares, strict=True):
        assert [answer["valence"], answer["valence.variance"]] == pytest.approx(rating.tolist(), abs=1e-3)
        assert [answer["p(sad)"], answer["p(happy)"]] == pytest.approx(share.tolist(), abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", "transformers"])
def test_an_export_that_differs_from_torch_is_not_kept(tmp_path: Path, format: Format) -> None:
    model = _save(tmp_path / "model", student_config(SPEECH(pooling="mean")))
    with pytest.raises(ExportError, match=r"out: the export differs from torch by \d.*, more than 0\. It is not kept"):
        export_model(model, format, tmp_path / "out", tolerance=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


CUT = SPEECH(layers="layer:1", shape=model_shapes.LAYER_NORM)
REFUSED: dict[str, tuple[Format, ModelConfig, str]] = {
    "a filter bank in ONNX": (
        "onnx",
        student_config(SpeechConfig(encoder="filterbank", filterbank=FilterbankConfig(num_mel_bins=20, channels=(8,)))),
        "a filterbank encoder has a Fourier transform",
    ),
    "modified CPC in transformers": (
        "transformers",
        student_config(SPEECH(shape=model_shapes.SPEECH_FAMILIES["modified-cpc"])),
        "a modified-cpc encoder is not in transformers",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_format_cannot_hold_is_refused_in_one_line(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    format, config, reason = REFUSED[what]
    model = _save(tmp_path / "model", config)
    args = ["--model", model, "--format", format, "--out", str(tmp_path / "out")]
    assert run_main(command.main, args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: --format {format}: {reason}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_encoder_with_a_feature_extractor_is_refused_in_onnx(tmp_path: Path) -> None:
    model_shapes.save_extracted(tmp_path / "encoder", *model_shapes.EXTRACTED_FAMILIES["w2v-bert"])
    model = _save(tmp_path / "model", student_config(SpeechConfig(encoder=str(tmp_path / "encoder"), pooling="mean")))
    with pytest.raises(
        ConfigError, match="--format onnx: a wav2vec2-bert encoder takes input from a feature extractor"
    ):
        export_model(model, "onnx", tmp_path / "out")


def test_export_to_onnx_without_its_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccts_dist.export.onnx.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package onnx\. Install it: pip install ccts-dist\[onnx\]"):
        export_model(_save(tmp_path / "model", student_config()), "onnx", tmp_path / "out")


def test_command_states_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _save(tmp_path / "model", student_config(SPEECH(pooling="mean")))
    assert run_main(command.main, ["-m", model, "--format", "transformers", "--out", str(tmp_path / "out")]) == 0
    assert "\nlost: Audio must be mono; " in capsys.readouterr().out


def test_a_teacher_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    from ccts_dist.model import train_tokenizer

    text = model_shapes.text_config(vocab_size=30)
    tokenizer = train_tokenizer(["a glad day", "a sad night", "good", "bad"] * 20, text, tmp_path / "tokenizer")
    config = ModelConfig(embedding_dim=8, text=text)
    model = build_model(config, vocabulary_size=tokenizer.vocabulary_size)
    state, encoders = model.state_dict(), model.encoder_configs
    save_model(tmp_path / "teacher", state, config, encoders=encoders, tokenizer=tokenizer, scale=(1.0, 7.0), extra={})
    with pytest.raises(ConfigError, match="reads transcripts: only models of speech"):
        export_model(str(tmp_path / "teacher"), "onnx", tmp_path / "out")
    with pytest.raises(ConfigError, match="teacher: is there already"):
        export_model(str(tmp_path / "teacher"), "onnx", tmp_path / "teacher")


@pytest.mark.long
@pytest.mark.parametrize("family", model_shapes.SPEECH_FAMILIES)
def test_every_family_of_encoders_is_the_same_in_onnx(tmp_path: Path, family: str) -> None:
    """And every pooling: there are more families."""
    number = list(model_shapes.SPEECH_FAMILIES).index(family)
    shape = model_shapes.SPEECH_FAMILIES[family]
    config = student_config(SPEECH(shape=shape, pooling=POOLINGS[number % len(POOLINGS)], do_normalize="on"))
    assert _export(tmp_path, config, "onnx") < 1e-4


@pytest.mark.long
def test_several_encoders_cut_and_mixed_layers_are_the_same_in_onnx(tmp_path: Path) -> None:
    config = student_config(SPEECH(layers="weighted"), extra_speech=(CUT, SPEECH(pooling="mean", do_normalize="on")))
    assert _export(tmp_path, config, "onnx") < 1e-4
