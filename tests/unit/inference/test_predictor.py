"""A student in Python: what it takes, what it gives, and that neither neighbours nor threads change an answer."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.inference.predictor import Predictor, load_student, read_audio
from ccts_dist.model import build_model, load_model, save_model
from tests.helpers.models import model_shapes
from tests.helpers.models.small_student import save_student, student_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "best")


@pytest.fixture(scope="module")
def student(folder: Path) -> Predictor:
    return load_student(folder)


def _noise(num_samples: int, *, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, (num_samples, channels)).astype(np.float32)


def test_an_embedding_is_what_the_prediction_is_made_of(student: Predictor, folder: Path) -> None:
    waves = [_noise(length, seed=length)[:, 0] for length in (8_000, 500, 16_000)]
    embeddings = student.embed(waves)
    assert embeddings.shape == (3, 8)
    assert embeddings.dtype == np.float32
    with torch.inference_mode():
        labels = load_model(folder).model.prediction(torch.from_numpy(embeddings)).numpy()
    answers = student.predict(waves)
    assert np.allclose([list(answer.values()) for answer in answers], 1 + 6 * labels, atol=1e-5)
    assert student.embed([]).shape == (0, 8)


def test_a_tensor_an_array_and_a_file_of_the_same_sound_are_read_alike(student: Predictor, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(22_050, channels=2), 44_100, subtype="PCM_16")
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    whole, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    kinds = [
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        samples,
        samples.astype(np.float64),
        whole,
        whole.astype(np.int32) * 65_536,
        torch.from_numpy(samples.T.copy()),
        torch.from_numpy(whole.T.copy()),
    ]
    answers = student.predict(kinds, sample_rate_hz=rate)
    assert len(answers) == len(kinds)
    assert all(answer == pytest.approx(answers[0], abs=1e-5) for answer in answers)
    for kind in kinds[1:]:
        np.testing.assert_array_equal(read_audio(kind, rate).numpy(), read_audio(kinds[0]).numpy())


def test_the_rate_of_an_array_states_how_long_it_lasts() -> None:
    samples = _noise(8_000)[:, 0]
    assert [len(read_audio(samples, rate)) for rate in (8_000, 16_000, 32_000)] == [16_000, 8_000, 4_000]


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros((2, 16_000), dtype=np.float32), "array of shape (2, 16000): arrays are [samples] or"),
        (torch.zeros(16_000, 2), "tensor of shape (16000, 2): arrays are [samples] or"),
        (np.zeros((1, 1_000, 1), dtype=np.float32), "array of shape (1, 1000, 1): "),
        (np.array(0.5, dtype=np.float32), "array of shape (): "),
        (np.zeros(1_000, dtype=np.uint8), "array of uint8: samples are numbers on -1..1"),
        (torch.zeros(1_000, dtype=torch.int64), "tensor of int64: samples are numbers on -1..1"),
    ],
)
def test_what_is_no_audio_by_its_shape_or_type_is_refused(
    student: Predictor, audio: np.ndarray | torch.Tensor, words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        student.predict([audio])


def test_a_rate_that_is_none_is_refused(student: Predictor) -> None:
    with pytest.raises(ConfigError, match="sample_rate_hz=0: must be at least 1"):
        student.predict([_noise(1_000)[:, 0]], sample_rate_hz=0)
    with pytest.raises(CorpusError, match="array: has a sample rate of 999 Hz, which cannot be resampled"):
        student.predict([_noise(999)[:, 0]], sample_rate_hz=999)
    with pytest.raises(CorpusError, match="tensor: holds no audio"):
        student.predict([torch.zeros(2, 0)])
    with pytest.raises(CorpusError, match="tensor: holds samples that are not finite"):
        student.predict([torch.full((1, 1_000), math.inf)])


def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device 'warp:9' cannot be used .*Change --device"):
        load_student(tmp_path / "absent", device="warp:9")


def test_weights_that_give_no_numbers_are_reported_to_be_damaged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(embedding_dim=8, speech=model_shapes.speech_config())
    model = build_model(config)
    state = model.state_dict()
    state["embedding.bias"][3] = math.nan
    save_model(tmp_path / "m", state, config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    with pytest.raises(ConfigError, match=r"gives numbers that are not finite\. Its weights are damaged"):
        load_student(tmp_path / "m").predict([_noise(1_000)[:, 0]])


FAMILIES = ["hubert, group norm", "hubert, layer norm", "wavlm", "data2vec", "conformer", "filterbank"]
LENGTHS = (16_000, 900, 30_000, 400, 7_777, 22_000)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of each kind of encoder that normalises or convolves in a way of its own."""
    place = tmp_path_factory.mktemp("families")
    folders = {}
    for family in FAMILIES[:-1]:
        model_shapes.save_speech_encoder(place / "encoder" / family, family)
        speech = SpeechConfig(encoder=str(place / "encoder" / family), gru_hidden=16)
        folders[family] = save_student(place / family, student_config(speech=speech))
    folders["filterbank"] = save_student(
        place / "filterbank", student_config(speech=SpeechConfig(encoder="filterbank", gru_hidden=16))
    )
    return folders


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # within transformers' WavLM
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_alone_and_beside_any_others(encoders: dict[str, Path], family: str) -> None:
    student = load_student(encoders[family])
    waves = [_noise(length, seed=length)[:, 0] for length in LENGTHS]
    alone = [student.predict([wave])[0] for wave in waves]
    for batch_seconds in (2.5, 120.0):
        for answer, expected in zip(student.predict(waves, batch_seconds=batch_seconds), alone, strict=True):
            assert answer == pytest.approx(expected, abs=1e-5)
    assert np.ptp([answer["valence"] for answer in alone]) > 1e-3, "else any answer would be like any other"


@pytest.mark.parametrize("family", ["data2vec", "conformer"])
def test_twins_share_their_weights_and_do_not_disturb_each_other(encoders: dict[str, Path], family: str) -> None:
    """A model keeps the lengths of the batch at hand, and another thread's batch would change them."""
    student = load_student(encoders[family])
    twin = student.twin()
    own, other = ({id(p): p for p in one._model.parameters()} for one in (student, twin))
    assert own.keys() == other.keys()
    waves = [torch.from_numpy(_noise(length, seed=length)[:, 0]) for length in LENGTHS]
    expected = {number: student.forward([wave])[0].answer for number, wave in enumerate(waves)}
    jobs = [(turn % len(waves), (turn * 3 + 1) % len(waves)) for turn in range(24)]

    def forward(job: tuple[int, int], by: Predictor) -> bool:
        received = by.forward([waves[number] for number in job])
        return all(
            one.answer == pytest.approx(expected[number], abs=1e-5) for number, one in zip(job, received, strict=True)
        )

    with ThreadPoolExecutor(2) as threads:
        side_by_side = list(threads.map(forward, jobs, [student, twin] * (len(jobs) // 2)))
        one_student = list(threads.map(forward, jobs, [student] * len(jobs)))
    assert all(side_by_side)
    assert all(one_student)


def test_files_are_read_when_they_are_needed_and_not_all_before(student: Predictor, tmp_path: Path) -> None:
    """Stretches of 16 batches: what is wrong with the last of many files shows after the first ones were processed."""
    received = []
    forward = student.forward

    soundfile.write(tmp_path / "a.wav", _noise(1_600), 16_000)
    watched = student.twin()
    watched.forward = lambda waves: received.append(len(waves)) or forward(waves)
    with pytest.raises(CorpusError, match=r"absent\.wav: the audio file is missing"):
        watched.predict([tmp_path / "a.wav"] * 40 + [tmp_path / "absent.wav"], batch_seconds=0.2)
    assert received == [2] * 16
