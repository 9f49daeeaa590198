"""Cutting a split into shards: one tar after the other, each with a record that lets a killed builder keep it."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.errors import ShardError
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards.audio import Converted, convert_audio
from ccts_dist.shards.documents import document_bytes, parse_document
from ccts_dist.shards.durable import file_sha256, write_whole
from ccts_dist.shards.index import IndexPlace
from ccts_dist.shards.intake import fingerprint, source_of
from ccts_dist.shards.schema import (
    AUDIO_MEMBER,
    FORMAT_VERSION,
    JSON_MEMBER,
    ShardEntry,
    escape_key,
    shard_name,
    utterance_to_json,
)
from ccts_dist.shards.tars import write_tar

BUILDING = ".building"
"""Folder of the records, within the shard set's; gone when the set is finished."""

_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What decides the bytes of a shard, beside the utterances."""

    out: Path
    root: Path | None
    targets: tuple[str, ...]
    shard_bytes: int
    max_duration_s: float
    num_threads: int

    def words(self) -> str:
        """The settings that enter a shard's digest; where it lies and how many threads work do not."""
        return f"{FORMAT_VERSION}|{self.targets}|{self.shard_bytes}|{self.max_duration_s}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The record of one finished shard: which stretch of its split went in, and what came out."""

    shard: ShardEntry | None = None
    """None when every utterance of the stretch was rejected, which only the end of a split can be."""

    first: int
    consumed: int
    full: bool
    """Closed by its size; false when the split ended."""

    input_digest: str
    rejected: tuple[Rejected, ...]
    resampled: int
    mixed_down: int


@dataclass(slots=True)
class _Tally:
    """What has gone into the shard that is being written."""

    consumed: int = 0
    num_utterances: int = 0
    num_samples: int = 0
    resampled: int = 0
    mixed_down: int = 0
    size_bytes: int = 0
    rejected: list[Rejected] = field(default_factory=list)


def cut_split(
    split: str, utterances: Sequence[Utterance], settings: BuildSettings, progress: Callable[[int], object]
) -> Iterator[Part]:
    """A split's utterances, in their order, as shards; what an interrupted builder finished is kept.

    Args:
        progress: called with the number of utterances dealt with since the last call.

    Yields:
        The record of each shard, once it lies on disk.
    """
    first = number = 0
    while first < len(utterances):
        name = shard_name(split, number)
        part = _kept_part(name, utterances, first, settings)
        if part is None:
            part = _write_part(name, split, utterances, first, settings, progress)
        else:
            progress(part.consumed)
        yield part
        first, number = first + part.consumed, number + 1


def _kept_part(name: str, utterances: Sequence[Utterance], first: int, settings: BuildSettings) -> Part | None:
    """The record of a shard that an interrupted builder finished, if it still holds."""
    record = _record_path(settings.out, name)
    if not record.is_file():
        return None
    try:
        part = parse_document(Part, record.read_bytes(), where=str(record), error=ShardError)
    except ShardError:
        return None  # what cannot be read was not finished
    stretch = utterances[first : first + part.consumed]
    ends_well = part.full or first + part.consumed == len(utterances)
    if part.first != first or not ends_well or part.input_digest != _digest_stretch(stretch, settings):
        return None
    path = settings.out / name
    if part.shard is not None and not (path.is_file() and file_sha256(path) == part.shard.sha256):
        return None
    return part


def _write_part(
    name: str,
    split: str,
    utterances: Sequence[Utterance],
    first: int,
    settings: BuildSettings,
    progress: Callable[[int], object],
) -> Part:
    path, tally = settings.out / name, _Tally()
    write_tar(path, _samples(utterances, first, settings, tally, progress))
    shard = None
    if tally.num_utterances:
        shard = ShardEntry(
            name=name,
            split=split,
            num_utterances=tally.num_utterances,
            num_samples=tally.num_samples,
            size_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            index=IndexPlace(offset=0, size=0, sha256=""),  # known when all shards are there
        )
    else:
        path.unlink()
    part = Part(
        shard=shard,
        first=first,
        consumed=tally.consumed,
        full=tally.size_bytes >= settings.shard_bytes,
        input_digest=_digest_stretch(utterances[first : first + tally.consumed], settings),
        rejected=tuple(tally.rejected),
        resampled=tally.resampled,
        mixed_down=tally.mixed_down,
    )
    write_whole(_record_path(settings.out, name), document_bytes(part))
    return part


def _samples(
    utterances: Sequence[Utterance],
    first: int,
    settings: BuildSettings,
    tally: _Tally,
    progress: Callable[[int], object],
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one shard, from ``first`` on until it is full; counts into ``tally``."""
    for utterance, converted in _convert_ahead(utterances, first, settings):
        tally.consumed += 1
        progress(1)
        source = source_of(utterance, settings.root)
        if isinstance(converted, str):
            tally.rejected.append(Rejected(key=utterance.key, reason=converted, source=source))
            continue
        record = utterance_to_json(
            utterance, targets=settings.targets, num_samples=converted.num_samples, source=source
        )
        tally.num_utterances += 1
        tally.num_samples += converted.num_samples
        tally.resampled += converted.resampled
        tally.mixed_down += converted.mixed_down
        tally.size_bytes += _tar_bytes(converted.flac) + _tar_bytes(record)
        yield escape_key(utterance.key), {AUDIO_MEMBER: converted.flac, JSON_MEMBER: record}
        if tally.size_bytes >= settings.shard_bytes:
            return


def _convert_ahead(
    utterances: Sequence[Utterance], first: int, settings: BuildSettings
) -> Iterator[tuple[Utterance, Converted | str]]:
    """Each utterance from ``first`` on with its audio, in order; threads work a few utterances ahead."""
    waiting: deque[tuple[Utterance, Future[Converted | str]]] = deque()
    with ThreadPoolExecutor(settings.num_threads) as threads:
        try:
            for at in range(first, len(utterances)):
                audio = utterances[at].audio
                future = threads.submit(convert_audio, audio, max_duration_s=settings.max_duration_s)
                waiting.append((utterances[at], future))
                if len(waiting) > 2 * settings.num_threads:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            while waiting:
                ready, future = waiting.popleft()
                yield ready, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _tar_bytes(payload: bytes) -> int:
    return _BLOCK + -(-len(payload) // _BLOCK) * _BLOCK


def _digest_stretch(utterances: Sequence[Utterance], settings: BuildSettings) -> str:
    digest = fingerprint(utterances, targets=settings.targets, root=settings.root, with_time=True)
    return hashlib.sha256(f"{settings.words()}|{digest}".encode()).hexdigest()


def _record_path(out: Path, name: str) -> Path:
    return out / BUILDING / f"{name}.json"
