"""The stream: order, batches, what is held in memory, and what a mistake in the middle leaves behind."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ccts_dist.errors import ConfigError
from ccts_dist.inference.batches import Answered, Piece, answered_in_order, decoded_ahead, twins_of
from ccts_dist.inference.predictor import Prediction, Predictor, load_student
from ccts_dist.inference.recordings import Unreadable
from tests.helpers.models.small_student import save_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load_student(save_student(tmp_path_factory.mktemp("student") / "best"))


def _pieces(lengths: list[int]) -> list[Piece]:
    return [
        Piece(
            name=f"{number}",
            number=number,
            start=160 * number,
            pcm16=np.random.default_rng(number).integers(-3_000, 3_000, length).astype(np.int16),
        )
        for number, length in enumerate(lengths)
    ]


def test_files_come_decoded_in_their_order_with_the_bad_ones_in_their_place(tmp_path: Path) -> None:
    files = []
    for number in range(30):
        files.append(tmp_path / f"{number}.wav")
        soundfile.write(files[-1], np.full(400 + 40_000 * (number % 3 == 0), number, dtype=np.int16), 16_000)
    files[7].write_text("no audio")
    files[8].unlink()
    decoded = list(decoded_ahead(files, 3))
    assert [one.number for one in decoded] == list(range(30))
    assert [one.name for one in decoded] == [str(path) for path in files]
    bad = {one.number: one.reason for one in decoded if isinstance(one, Unreadable)}
    assert bad == {7: "cannot be decoded (Format not recognised)", 8: "the audio file is missing"}
    assert all(one.pcm16[0] == one.number for one in decoded if isinstance(one, Piece))


def test_few_files_are_decoded_before_they_are_asked_for(tmp_path: Path) -> None:
    """A file that appears later than its turn is missing only if it was opened ahead of time."""
    soundfile.write(tmp_path / "a.wav", np.zeros(400, dtype=np.int16), 16_000)
    files = [tmp_path / "a.wav"] * 10 + [tmp_path / "late.wav"]
    stream = decoded_ahead(files, 2)
    assert isinstance(next(stream), Piece)
    soundfile.write(tmp_path / "late.wav", np.zeros(400, dtype=np.int16), 16_000)
    assert all(isinstance(one, Piece) for one in stream)


@pytest.mark.parametrize("num_students", [1, 2])
def test_answers_come_in_order_with_times_and_are_those_of_each_piece_alone(
    student: Predictor, num_students: int
) -> None:
    pieces = _pieces([int(length) for length in np.random.default_rng(1).integers(400, 9_000, 60)])
    source: list[Piece | Unreadable] = [*pieces[:20], Unreadable(name="bad", reason="is cut", number=99), *pieces[20:]]
    dealt: list[int] = []
    students = [student, student.twin()][:num_students]
    answers = list(answered_in_order(source, students, batch_seconds=1.0, progress=dealt.append))
    assert [one.number for one in answers] == [one.number for one in source]
    assert sum(dealt) == len(source)
    for one, piece in zip(answers, source, strict=True):
        if isinstance(piece, Unreadable):
            assert one is piece
            continue
        assert isinstance(one, Answered)
        alone = student.forward([torch.from_numpy(piece.pcm16.astype(np.float32) / 32_768)])[0]
        assert one.answer == pytest.approx(alone.answer, abs=1e-5)
        assert np.allclose(one.embedding, alone.embedding, atol=1e-5)
        assert (one.start_s, one.end_s) == (piece.start / 16_000, (piece.start + len(piece.pcm16)) / 16_000)


def test_what_is_drawn_and_not_yet_answered_is_bounded(student: Predictor) -> None:
    """Batches of 0.5 s: a stretch is 16 of them, so 8 s of audio, and two stretches at most are on their way."""
    drawn = 0

    def source() -> Iterator[Piece]:
        nonlocal drawn
        for piece in _pieces([800] * 1_000):
            drawn += 1
            yield piece

    ahead = []
    for number, _ in enumerate(answered_in_order(source(), [student], batch_seconds=0.5), start=1):
        ahead.append(drawn - number)
    assert drawn == number == 1_000
    assert max(ahead) * 800 / 16_000 <= 2 * 8.0
    assert max(ahead) * 800 / 16_000 > 8.0, "else nothing would be decoded while the student processes"


def test_audio_is_let_go_of_when_it_has_been_read(student: Predictor) -> None:
    """Counted by the arrays that are alive."""
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    class Samples(np.ndarray):
        """An array that can be counted."""

    def source() -> Iterator[Piece]:
        for piece in _pieces([1_600] * 600):
            samples = piece.pcm16.view(Samples)
            made.append(weakref.ref(samples))
            yield Piece(name=piece.name, number=piece.number, start=0, pcm16=samples)
            del samples

    for _ in answered_in_order(source(), [student], batch_seconds=0.5):
        gc.collect(0)
        most = max(most, sum(one() is not None for one in made))
    assert most <= 2 * 80 + 2, "two stretches of 8 s, in pieces of 0.1 s"


def test_a_pass_that_fails_ends_the_stream_and_its_threads(student: Predictor) -> None:
    num_batches = 0

    def forward(waves: list[torch.Tensor]) -> list[Prediction]:
        nonlocal num_batches
        num_batches += 1
        if num_batches > 1:
            raise ConfigError("does not fit")
        return student.forward(waves)

    broken = student.twin()
    broken.forward = forward
    before = threading.active_count()
    with pytest.raises(ConfigError, match="does not fit"):
        list(answered_in_order(_pieces([8_000] * 64), [broken], batch_seconds=0.5))
    assert num_batches == 2, "what was queued is not processed any more"
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_twins_share_the_cores_and_give_them_back(student: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    monkeypatch.setattr("ccts_dist.inference.batches.usable_cores", lambda: 6)
    with twins_of(student) as students:
        assert len(students) == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with twins_of(student):
        assert torch.get_num_threads() == before
    monkeypatch.setattr("ccts_dist.inference.batches.usable_cores", lambda: 1)
    with twins_of(student) as students:
        assert students == [student]
