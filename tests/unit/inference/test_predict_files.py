"""Predictions of audio files, and scores of a split, with a small real model."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ccts_dist
from ccts_dist.config import ModelConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, CorpusError, run_main
from ccts_dist.inference.predictor import Predictor, cut_batches, load_student, read_audio
from ccts_dist.loader.decode import read_audio as read_audio_of_shard
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.report.score_tables import HEADER, scores_to_rows
from ccts_dist.scoring.evaluator import Evaluator
from ccts_dist.scoring.predict_split import scores_to_tree
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.build.builder import build_shard_set
from launch import predict as command
from tests.helpers.models import model_shapes
from tests.helpers.models.small_student import save_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved speech-only model of a corpus rated 1 to 7."""
    return save_student(tmp_path_factory.mktemp("student") / "best")


@pytest.fixture(scope="module")
def student(folder: Path) -> Predictor:
    return load_student(folder)


def _noise(num_samples: int, *, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, (num_samples, channels)).astype(np.float32)


def test_a_prediction_is_on_the_corpus_scale(student: Predictor, folder: Path) -> None:
    wave = torch.from_numpy(_noise(16_000)[:, 0]).mul(32_768).round().div(32_768)  # 16 bit, as in shards
    with torch.inference_mode():
        label = load_model(folder).model(wave[None], torch.tensor([16_000])).prediction[0].tolist()
    (answer,) = student.predict([wave.numpy()])
    assert answer == {name: pytest.approx(1 + 6 * value) for name, value in zip(DIMENSIONS, label, strict=True)}


def test_answers_come_in_the_order_of_the_recordings_and_do_not_depend_on_their_neighbours(student: Predictor) -> None:
    waves = [_noise(length, seed=length)[:, 0] for length in (8_000, 30_000, 500, 16_000, 400)]
    together = student.predict(waves)
    in_small_batches = student.predict(waves, batch_seconds=1.0)
    for wave, answer, other in zip(waves, together, in_small_batches, strict=True):
        assert answer == pytest.approx(student.predict([wave])[0], abs=1e-5)
        assert other == pytest.approx(answer, abs=1e-5)


def test_a_file_in_stereo_at_another_rate_is_mixed_and_resampled(student: Predictor, tmp_path: Path) -> None:
    seconds = np.arange(22_050) / 22_050
    tone = 0.3 * np.sin(2 * np.pi * 200 * seconds)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone * 1.5, tone * 0.5], axis=1), 22_050)
    wave = read_audio(tmp_path / "stereo.wav")
    assert len(wave) == 16_000
    middle = np.arange(4_000, 12_000)
    assert np.allclose(wave[4_000:12_000].numpy(), 0.3 * np.sin(2 * np.pi * 200 * middle / 16_000), atol=2e-3)
    path, opened = student.predict([str(tmp_path / "stereo.wav"), io.BytesIO((tmp_path / "stereo.wav").read_bytes())])
    assert path == opened


def test_recordings_are_batched_by_duration_within_the_bound() -> None:
    minute = 60 * 16_000
    assert list(cut_batches([minute, 10, 3 * minute, minute, 20], 120.0)) == [[2], [0, 3], [4, 1]]
    assert list(cut_batches([], 120.0)) == []
    assert list(cut_batches([16_000, 16_000, 16_001], 2.0)) == [[2], [0, 1]]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_pass_of_no_or_endless_duration_is_refused(student: Predictor, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"batch_seconds=.*: must be above 0 and finite"):
        student.predict([np.zeros(400, dtype=np.float32)], batch_seconds=seconds)


def _write_kinds(folder: Path) -> dict[str, Path]:
    """One recording per way in which audio may differ from what shards carry; the first too quiet for 24 bit."""
    seconds = np.arange(30_000)[:, None] / 22_050
    kinds: dict[str, tuple[np.ndarray, int, str]] = {
        "fine": (_noise(5_000) * 1e-3, 16_000, "FLOAT"),
        "loud": (_noise(5_000) * 20, 16_000, "FLOAT"),
        "stereo": (_noise(5_000, channels=2), 16_000, "PCM_24"),
        "resampled": (0.9 * np.sign(np.sin(2 * np.pi * 300 * seconds)), 22_050, "FLOAT"),
        "resampled stereo": (_noise(9_000, channels=2), 44_100, "PCM_16"),
    }
    for name, (samples, rate, subtype) in kinds.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, subtype=subtype)
    return {name: folder / f"{name}.wav" for name in kinds}


def test_a_recording_is_read_bit_by_bit_as_training_reads_it_from_a_shard(tmp_path: Path) -> None:
    kinds = _write_kinds(tmp_path)
    utterances = [
        Utterance(key=name, audio=path, split="Train", labels={"valence": 0.5}, scale=(1.0, 7.0), transcript="")
        for name, path in kinds.items()
    ]
    build_shard_set(utterances, tmp_path / "s", corpus="kinds", release="1", scale=(1.0, 7.0), targets=("valence",))
    shard_set = open_shard_set(tmp_path / "s")
    (shard,) = shard_set.shards_of(["Train"])
    table = shard_set.rows(shard.name)
    for row, name in enumerate(table.keys):
        received = np.zeros(int(table.num_samples[row]), dtype=np.float32)
        read_audio_of_shard(shard_set, table, row, received)
        np.testing.assert_array_equal(read_audio(kinds[name]).numpy(), received, err_msg=name)


def test_an_array_is_read_as_the_16_bit_file_it_was_read_from(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(4_000), 16_000, subtype="PCM_16")
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav").numpy(), samples)
    np.testing.assert_array_equal(read_audio(samples).numpy(), samples)
    loud = np.array([1.5, -1.5, 0.3 / 32_768, 0.7 / 32_768] * 100, dtype=np.float32)
    assert read_audio(loud)[:4].tolist() == [32_767 / 32_768, -1.0, 0.0, 1 / 32_768]


def test_files_that_no_shard_would_carry_are_refused_by_name(student: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "short.wav", _noise(399), 16_000)
    soundfile.write(tmp_path / "odd.wav", _noise(999), 999)
    soundfile.write(tmp_path / "fast.wav", _noise(1_000), 2_000_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(601 * 1_000, dtype=np.int16), 1_000)
    reasons = {
        "text": r"cannot be decoded \(Format not recognised\)",
        "absent": "the audio file is missing",
        "empty": "holds no audio",
        "short": "lasts 399 samples at 16000 Hz, fewer than an encoder's first frame",
        "odd": "has a sample rate of 999 Hz, which cannot be resampled",
        "fast": "has a sample rate of 2000000 Hz, which cannot be resampled",
        "long": "lasts 601.0 s, more than 600 s",
    }
    for name, reason in reasons.items():
        with pytest.raises(CorpusError, match=rf"{name}\.wav: {reason}.*Leave it out\.$"):
            student.predict([tmp_path / f"{name}.wav"])


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.full(1_000, math.nan, dtype=np.float32), "holds samples that are not finite"),
        (np.zeros(0, dtype=np.float32), "holds no audio"),
        (np.zeros(399, dtype=np.float32), "lasts 399 samples"),
        (np.zeros(600 * 16_000 + 1, dtype=np.float32), "lasts 600.0 s, more than 600 s"),
    ],
)
def test_arrays_that_no_shard_would_carry_are_refused(student: Predictor, samples: np.ndarray, reason: str) -> None:
    with pytest.raises(CorpusError, match=f"array: {reason}"):
        student.predict([samples])


def test_the_command_names_bad_files_and_answers_the_good_ones(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate in (("a", 16_000), ("odd", 999), ("b", 48_000), ("fast", 2_000_000)):
        soundfile.write(tmp_path / f"{name}.wav", _noise(rate // 4), rate)
    soundfile.write(tmp_path / "short.wav", _noise(50), 16_000)
    files = [str(tmp_path / f"{name}.wav") for name in ("a", "odd", "b", "fast", "short")]
    assert run_main(command.main, ["--model", str(folder), "--format", "json", *files]) == 1
    printed = capsys.readouterr()
    assert [answer["file"] for answer in json.loads(printed.out)] == [files[0], files[2]]
    lines = printed.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", file] for file in (files[1], files[3], files[4])]


def test_the_command_takes_a_run_folder_and_the_short_form(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(4_000), 16_000)
    shutil.copytree(folder, tmp_path / "run" / "best")
    answers = []
    for words in (["--model", str(folder)], ["-m", str(tmp_path / "run")]):
        assert run_main(command.main, [*words, "--format", "json", str(tmp_path / "a.wav")]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_model_that_reads_transcripts_is_no_student(tmp_path: Path) -> None:
    from ccts_dist.model import train_tokenizer

    text = model_shapes.text_config(vocab_size=30)
    tokenizer = train_tokenizer(["a glad day", "a sad night", "good", "bad"] * 20, text, tmp_path / "tokenizer")
    config = ModelConfig(embedding_dim=8, text=text)
    model = build_model(config, vocabulary_size=tokenizer.vocabulary_size)
    save_model(
        tmp_path / "teacher",
        model.state_dict(),
        config,
        encoders=model.encoder_configs,
        tokenizer=tokenizer,
        scale=(1.0, 7.0),
        extra={},
    )
    with pytest.raises(ConfigError, match=r"reads transcripts, and there is audio only\. Use a speech-only student"):
        load_student(tmp_path / "teacher")


def test_load_student_is_at_hand_in_the_package_itself() -> None:
    assert ccts_dist.load_student is load_student
    with pytest.raises(AttributeError, match="no attribute 'load_teacher'"):
        _ = ccts_dist.load_teacher


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven utterances of one split; dominance is rated twice only."""
    place = tmp_path_factory.mktemp("corpus")
    utterances = []
    for number in range(11):
        path = place / f"{number}.wav"
        soundfile.write(path, _noise(3_000 + 700 * number, seed=number), 16_000)
        labels = {"activation": number / 10, "valence": (number * 7 % 11) / 10}
        if number < 2:
            labels["dominance"] = 0.5
        utterances.append(
            Utterance(key=str(number), audio=path, split="Test1", labels=labels, scale=(1.0, 7.0), transcript="a")
        )
    build_shard_set(utterances, place / "shards", corpus="noise", release="1", scale=(1.0, 7.0), targets=DIMENSIONS)
    return place / "shards"


def test_scores_of_a_split_are_those_of_its_predictions_one_by_one(
    shards: Path, folder: Path, student: Predictor
) -> None:
    scores = Evaluator(folder, shards, ranks=Ranks(), micro_batch_size=4, workers=0).split("Test1").scores
    assert scores.num_labels == {"activation": 11, "valence": 11, "dominance": 2}
    # The builder keeps 16 bits, so the files are read from where it read them, as 16 bits too.
    answers = student.predict([shards.parent / f"{number}.wav" for number in range(11)])
    predicted = (np.array([answer["activation"] for answer in answers]) - 1) / 6
    label = np.arange(11) / 10
    covariance = np.mean((predicted - predicted.mean()) * (label - label.mean()))
    gap = (predicted.mean() - label.mean()) ** 2
    assert scores.ccc["activation"] == pytest.approx(2 * covariance / (predicted.var() + label.var() + gap), abs=1e-5)
    assert scores.mae["activation"] == pytest.approx(np.abs(predicted - label).mean(), abs=1e-5)


def test_scores_are_written_as_json_without_nan_and_as_rows(shards: Path, folder: Path) -> None:
    scores = Evaluator(folder, shards, ranks=Ranks(), workers=0).split("Test1").scores
    tree = scores_to_tree(scores)
    assert tree["pearson"]["dominance"] is None, "two equal labels have no correlation"
    assert tree["ccc"]["activation"] == scores.ccc["activation"]
    rows = scores_to_rows(scores)
    assert [row[0] for row in rows] == list(DIMENSIONS)
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[2][-1] == 2


def test_scoring_nothing_at_a_time_is_refused(shards: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Evaluator(folder, shards, ranks=Ranks(), micro_batch_size=0)
    with pytest.raises(ConfigError, match="no split 'Test9'"):
        Evaluator(folder, shards, ranks=Ranks(), workers=0).split("Test9")
