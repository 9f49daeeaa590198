"""Frames of a frozen encoder, kept beside a shard set so that the encoder runs once and not in every epoch.

    FRAMES/<encoder>/<shard>-<digest>.frames.npy    frames of all utterances, one after the other [frames features]
    FRAMES/<encoder>/<shard>-<digest>.index.npy     per utterance: first frame, number of frames, CRC-32; written last;
                                                    no frames for an utterance that was damaged itself

``<encoder>`` is a digest of all that a frame depends on beside the utterance, and ``<digest>`` is the shard's own: one
folder serves any number of encoders and shard sets, and what was made of others is never read. A shard whose index is
not there is not done. Plain arrays: numpy opens them without pickle.
"""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, final
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Float32, Int64

from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.files.atomic import atomic_open
from ccts_dist.limits import open_regular
from ccts_dist.shards.format.schema import ShardEntry

FrameType = Literal["float32", "float16"]

_HEADER_BYTES = 4_096
"""Bytes of an array's header: NumPy writes 128."""

_FAULTS = (
    OSError,
    ValueError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    SyntaxError,
    MemoryError,
    BadZipFile,
)
"""Errors that NumPy raises on files that are no arrays, or state that they are larger than they are."""

_MOST_OPEN = 512
"""Shards whose arrays stay mapped: a window's, with room. Mapped is not read."""


class _Open(NamedTuple):
    frames: np.ndarray
    rows: Int64[np.ndarray, "rows 3"]


def write_frames(
    folder: Path,
    shard: ShardEntry,
    frames: Iterable[tuple[int, Float[np.ndarray, "_ features"]]],
    *,
    features: int,
    frame_type: FrameType,
) -> None:
    """Keep the frames of a whole shard; nothing of it is there unless all of it is.

    Args:
        folder: of the encoder; is made.
        frames: every row's number in the shard's index and its frames, in any order; one at a time is in memory.
        features: of a frame.

    Raises:
        ConfigError: a frame does not fit into ``frame_type``.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = np.zeros((shard.num_utterances, 3), np.int64)
    total = 0
    with atomic_open(_frames_path(folder, shard)) as file:
        _write_header(file, total, features, frame_type)
        for row, one in frames:
            data = _stored(one, shard, row, frame_type).tobytes()
            index[row] = total, len(one), zlib.crc32(data)
            file.write(data)
            total += len(one)
        file.seek(0)
        _write_header(file, total, features, frame_type)
    with atomic_open(_index_path(folder, shard)) as file:
        np.save(file, index)


def _stored(frames: np.ndarray, shard: ShardEntry, row: int, frame_type: FrameType) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = frames.astype(frame_type)
    if not np.isfinite(stored).all():
        largest = float(np.abs(frames).max())
        advice = (
            'Set data.feature_cache_dtype = "float32".' if np.isfinite(largest) else "Look at the encoder's weights."
        )
        raise ConfigError(
            f"{shard.name}: the frames of utterance {row} go up to {largest:.4g}, which {frame_type} (at most "
            f"{np.finfo(frame_type).max:.6g}) does not hold. {advice}"
        )
    return stored


def _write_header(file: BinaryIO, num_frames: int, features: int, frame_type: FrameType) -> None:
    """numpy leaves room in it for any length of the first axis, so that it can be written again."""
    shape = {"descr": np.dtype(frame_type).str, "fortran_order": False, "shape": (num_frames, features)}
    np.lib.format.write_array_header_1_0(file, shape)


def has_frames(folder: Path, shard: ShardEntry) -> bool:
    """True if a shard's frames are there, all of them."""
    try:
        found = _open(folder, shard)
    except _FAULTS:
        return False
    return len(found.rows) == shard.num_utterances and len(found.frames) == int(found.rows[:, 1].sum())


@final
class FrameCache:
    """The frames of one encoder; may be read by several threads.

    Args:
        folder: of the encoder.
        shards: those that may be asked for; one or more, all of them there.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]) -> None:
        self._folder = folder
        self._shards = {shard.name: shard for shard in shards}
        self.features = _open(folder, shards[0]).frames.shape[1]
        """Number of features of a frame."""

        self._opened: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: str, row: int, key: str) -> Float32[np.ndarray, "frames features"]:
        """The frames of one utterance, which is row ``row`` of its shard.

        Raises:
            ShardError: they are damaged, or have gone.
        """
        entry = self._shards[shard]
        try:
            opened = self._get(entry)
            first, count, crc32 = opened.rows[row].tolist()
            stored = np.array(opened.frames[first : first + count])
            damaged = zlib.crc32(stored.tobytes()) != crc32
            if count == 0:
                raise ShardError(
                    f"{shard}: utterance {key!r} was damaged when its frames were made. Run shards/check.py."
                )
        except _FAULTS:
            damaged, stored = True, np.zeros((0, 0), np.float32)
        if damaged:
            raise ShardError(
                f"{_frames_path(self._folder, entry)}: the frames of {key!r} are damaged. Remove the file, and start "
                "again: they are made anew."
            )
        return stored.astype(np.float32)

    def _get(self, shard: ShardEntry) -> _Open:
        with self._lock:
            found = self._opened.pop(shard.name, None) or _open(self._folder, shard)
            self._opened[shard.name] = found
            if len(self._opened) > _MOST_OPEN:
                self._opened.popitem(last=False)
            return found


def _open(folder: Path, shard: ShardEntry) -> _Open:
    """Arrays of a shard. A header may state any shape, and a pipe would be waited for.

    Raises:
        ValueError: they are no arrays of that shard, or (one of ``_FAULTS``) no arrays.
        OSError: they cannot be read.
    """
    with open(open_regular(_index_path(folder, shard)), "rb") as file:
        if os.fstat(file.fileno()).st_size > _HEADER_BYTES + 24 * shard.num_utterances:
            raise ValueError("more rows than the shard has utterances")
        index = np.load(file, allow_pickle=False)
    if index.dtype != np.int64 or index.shape != (shard.num_utterances, 3) or index.min(initial=0) < 0:
        raise ValueError("no index of frames")
    os.close(open_regular(_frames_path(folder, shard)))
    frames = np.load(_frames_path(folder, shard), mmap_mode="r", allow_pickle=False)
    if frames.ndim != 2 or frames.dtype not in (np.float32, np.float16):
        raise ValueError("no frames")
    return _Open(frames, index)


def _frames_path(folder: Path, shard: ShardEntry) -> Path:
    return folder / f"{_stem(shard)}.frames.npy"


def _index_path(folder: Path, shard: ShardEntry) -> Path:
    return folder / f"{_stem(shard)}.index.npy"


def _stem(shard: ShardEntry) -> str:
    return f"{shard.name.removesuffix('.tar')}-{shard.sha256[:16]}"
