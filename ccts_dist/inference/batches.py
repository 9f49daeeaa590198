"""Recordings through a student in a stream: decoded ahead in threads, batched by duration, answered in their order.

What is in memory at a time is bounded, whatever the number of recordings: two stretches of ``LOOK_AHEAD`` batches of
audio (one is predicted while the next one is decoded), and the batches under way.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int16

from ccts_dist.audio.clipping import is_clipped
from ccts_dist.audio.convert import decode_audio, to_float32
from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.files.read_ahead import read_ahead
from ccts_dist.inference.predictor import Prediction, Predictor, cut_batches, stretches
from ccts_dist.inference.recordings import Unreadable, shown
from ccts_dist.records import SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A recording, or a window of one, before it is processed."""

    name: str
    number: int
    """Number of the recording, in the order of the input."""

    start: int
    """Start in the recording, in samples at 16 kHz."""

    pcm16: Int16[np.ndarray, " samples"]

    @property
    def is_clipped(self) -> bool:
        """See ``ccts_dist.audio.clipping``."""
        return is_clipped(self.pcm16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Output of a student for a piece."""

    name: str
    number: int
    start_s: float
    end_s: float
    answer: dict[str, Any]
    embedding: Float32[np.ndarray, " hidden"]
    is_clipped: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A piece without its audio."""

    name: str
    number: int
    start: int
    end: int
    is_clipped: bool


@dataclass(slots=True)
class _Stretch:
    """Pieces in the order of the input, on their way through the student."""

    places: list[_Place | Unreadable]
    batches: list[tuple[list[int], Future[list[Prediction]]]]
    """For each pass, the places that it answers."""


def decoded_ahead(files: Sequence[Path], num_threads: int) -> Generator[Piece | Unreadable, None, None]:
    """Each file's audio, in their order, decoded by so many threads a few files ahead."""
    decode = partial(decode_audio, max_duration_s=MAX_DURATION_S)
    jobs = (((number, path), partial(decode, path)) for number, path in enumerate(files))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as threads:
        for (number, path), decoded in read_ahead(threads, jobs, 2 * num_threads):
            if isinstance(decoded, str):
                yield Unreadable(name=shown(path), reason=decoded, number=number)
            else:
                yield Piece(name=shown(path), number=number, start=0, pcm16=decoded.pcm16)


def answered_in_order(
    source: Iterable[Piece | Unreadable],
    students: Sequence[Predictor],
    *,
    batch_seconds: int | float,
    progress: Callable[[int], object] = lambda _: None,
) -> Generator[Answered | Unreadable, None, None]:
    """Predictions of each piece, in the order of the source; each student makes one pass at a time.

    Args:
        source: is drawn from while the students process what came before.
        students: twins of each other.
        batch_seconds: most seconds of padded audio in a pass; a single piece may be longer.
        progress: called with the number of pieces dealt with since the last call.

    Raises:
        ConfigError: as ``Predictor.predict``, or ``batch_seconds`` out of range.
    """
    idle: SimpleQueue[Predictor] = SimpleQueue()
    for student in students:
        idle.put(student)
    failed: list[BaseException] = []

    def predict(pieces: list[Piece]) -> list[Prediction]:
        if failed:
            raise failed[0]  # what was queued before anyone knew
        student = idle.get()
        try:
            return student.forward([torch.from_numpy(to_float32(piece.pcm16)) for piece in pieces])
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            idle.put(student)

    waiting: deque[_Stretch] = deque()
    with ThreadPoolExecutor(len(students), thread_name_prefix="predict") as threads:

        def begin(pieces: list[Piece | Unreadable]) -> None:
            sound = [row for row, piece in enumerate(pieces) if isinstance(piece, Piece)]
            batches = []
            for batch in cut_batches([_length(pieces[row]) for row in sound], batch_seconds):
                rows = [sound[one] for one in batch]
                joined = [piece for row in rows if isinstance(piece := pieces[row], Piece)]
                batches.append((rows, threads.submit(predict, joined)))
            waiting.append(_Stretch(places=[_place(piece) for piece in pieces], batches=batches))

        try:
            for pieces in stretches(source, _length, batch_seconds):
                begin(pieces)
                pieces.clear()  # else the audio stays while its answers are awaited
                if len(waiting) > 1:
                    yield from _collect(waiting.popleft(), progress)
            while waiting:
                yield from _collect(waiting.popleft(), progress)
        finally:
            for _, future in chain.from_iterable(stretch.batches for stretch in waiting):
                future.cancel()


def _length(piece: Piece | Unreadable) -> int:
    return len(piece.pcm16) if isinstance(piece, Piece) else 0


def _place(piece: Piece | Unreadable) -> _Place | Unreadable:
    if isinstance(piece, Unreadable):
        return piece
    return _Place(piece.name, piece.number, piece.start, piece.start + len(piece.pcm16), piece.is_clipped)


def _collect(stretch: _Stretch, progress: Callable[[int], object]) -> Iterator[Answered | Unreadable]:
    """Wait for the batches of a stretch, then give its answers in order."""
    found: dict[int, Prediction] = {}
    try:
        for rows, future in stretch.batches:
            found |= zip(rows, future.result(), strict=True)
            progress(len(rows))
    finally:
        for _, future in stretch.batches:
            future.cancel()
    for row, place in enumerate(stretch.places):
        if isinstance(place, Unreadable):
            progress(1)
            yield place
        else:
            predicted = found[row]
            yield Answered(
                name=place.name,
                number=place.number,
                start_s=place.start / SAMPLE_RATE_HZ,
                end_s=place.end / SAMPLE_RATE_HZ,
                answer=predicted.answer,
                embedding=predicted.embedding,
                is_clipped=place.is_clipped,
            )


@contextmanager
def twins_of(student: Predictor) -> Iterator[list[Predictor]]:
    """The student and, on a CPU of several cores, a twin; torch's threads are shared between them meanwhile.

    Two batches side by side leave no core idle where one batch of a small model has too little work for all of them.
    ``OMP_NUM_THREADS``, where it is set, is each one's number of threads.
    """
    cores, before = usable_cores(), torch.get_num_threads()
    if student.device.type != "cpu" or cores < 2:
        yield [student]
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores // 2))
    try:
        yield [student, student.twin()]
    finally:
        torch.set_num_threads(before)


def keep_few_kernels() -> None:
    """Bound what oneDNN keeps for shapes it has met; to be called before the first pass on a CPU.

    It keeps up to 1,024 kernels, and nearly every pass has a shape of its own: 4,000 recordings took 1.4 GB so, and
    take 0.2 GB with 16, at 5 % of the time (tests/bench/inference/predict.py). ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``,
    where it is set, has the last word.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
