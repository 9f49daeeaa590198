"""Predictions of audio files, and scores of a split, with a small real model."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ccts_dist
from ccts_dist.config import ModelConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.registry.evaluate import HEADER, evaluate_split, scores_to_rows, scores_to_tree
from ccts_dist.registry.predict import Student, _batches, load_student, read_audio
from ccts_dist.shards.write import build_shard_set
from tests.unit import model_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved speech-only model of a corpus rated 1 to 7."""
    folder = tmp_path_factory.mktemp("student") / "best"
    torch.manual_seed(0)
    config = ModelConfig(embedding=8, speech=model_shapes.speech_config())
    model = build_model(config)
    save_model(folder, model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return load_student(folder)


def _noise(num_samples: int, *, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, (num_samples, channels)).astype(np.float32)


def test_a_prediction_is_on_the_corpus_scale(student: Student, folder: Path) -> None:
    wave = torch.from_numpy(_noise(16_000)[:, 0])
    with torch.inference_mode():
        label = load_model(folder).model(wave[None], torch.tensor([16_000])).prediction[0].tolist()
    (answer,) = student.predict([wave.numpy()])
    assert answer == {name: pytest.approx(1 + 6 * value) for name, value in zip(DIMENSIONS, label, strict=True)}


def test_answers_come_in_the_order_of_the_recordings_and_do_not_depend_on_their_neighbours(student: Student) -> None:
    waves = [_noise(length, seed=length)[:, 0] for length in (8_000, 30_000, 500, 16_000, 100)]
    together = student.predict(waves)
    for wave, answer in zip(waves, together, strict=True):
        assert answer == pytest.approx(student.predict([wave])[0], abs=1e-4)


def test_a_file_in_stereo_at_another_rate_is_mixed_and_resampled(student: Student, tmp_path: Path) -> None:
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
    assert list(_batches([minute, 10, 3 * minute, minute, 20])) == [[2], [0, 3], [4, 1]]
    assert list(_batches([])) == []


def test_an_unreadable_an_empty_and_a_numberless_recording_are_refused_by_name(
    student: Student, tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(CorpusError, match=r"text\.wav: not readable as audio"):
        student.predict([tmp_path / "text.wav"])
    with pytest.raises(CorpusError, match=r"absent\.wav: not readable as audio"):
        student.predict([tmp_path / "absent.wav"])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    with pytest.raises(CorpusError, match=r"empty\.wav: holds no samples"):
        student.predict([tmp_path / "empty.wav"])
    with pytest.raises(CorpusError, match="array: holds samples that are no numbers"):
        student.predict([np.full(1_000, math.nan, dtype=np.float32)])


def test_a_model_that_reads_transcripts_is_no_student(tmp_path: Path) -> None:
    from ccts_dist.model import train_tokenizer

    text = model_shapes.text_config(vocabulary=30)
    tokenizer = train_tokenizer(["a glad day", "a sad night", "good", "bad"] * 20, text, tmp_path / "tokenizer")
    config = ModelConfig(embedding=8, text=text)
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
    shards: Path, folder: Path, student: Student
) -> None:
    scores = evaluate_split(folder, shards, "Test1", ranks=Ranks(), micro_utterances=4, workers=0)
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
    scores = evaluate_split(folder, shards, "Test1", ranks=Ranks(), workers=0)
    tree = scores_to_tree(scores)
    assert tree["pearson"]["dominance"] is None, "two equal labels have no correlation"
    assert tree["ccc"]["activation"] == scores.ccc["activation"]
    rows = scores_to_rows(scores)
    assert [row[0] for row in rows] == list(DIMENSIONS)
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[2][4] == 2


def test_scoring_nothing_at_a_time_is_refused(shards: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        evaluate_split(folder, shards, "Test1", ranks=Ranks(), micro_utterances=0)
    with pytest.raises(ConfigError, match="no split 'Test9'"):
        evaluate_split(folder, shards, "Test9", ranks=Ranks(), workers=0)
