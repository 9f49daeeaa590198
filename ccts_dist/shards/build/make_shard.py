"""Making one planned shard: decode, encode, tar, read back, and the record that lets a killed builder keep it.

A shard is a task of its own: any process can make it, in any order, on any machine, and it comes out the same.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from ccts_dist.audio.convert import Converted, convert_audio
from ccts_dist.errors import ShardError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.files.read_ahead import read_ahead
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards.build.output import BUILDING, Output
from ccts_dist.shards.build.plan_shards import PlannedShard
from ccts_dist.shards.build.validate_input import source_of
from ccts_dist.shards.format.index import rows_to_table
from ccts_dist.shards.format.readback import read_back
from ccts_dist.shards.format.schema import AUDIO_MEMBER, JSON_MEMBER, escape_key, utterance_to_json
from ccts_dist.shards.format.sealed_json import document_bytes, parse_document
from ccts_dist.shards.format.tars import write_tar

MEMBERS = (AUDIO_MEMBER, JSON_MEMBER)
RECORD_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSettings:
    """How the audio of a shard is made."""

    root: Path | None
    """Folder of the corpus, absolute."""

    targets: tuple[str, ...]
    max_duration_s: float
    num_threads: int
    """That decode and encode for one shard; 1 does it in the calling thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShard:
    """The record of one finished shard: what went in, and what came out."""

    name: str
    split: str
    content_digest: str
    source_digest: str
    num_utterances: int
    """0 when every one was rejected: then there is no tar."""

    num_samples: int
    size_bytes: int
    sha256: str
    tag: str
    """Tag of this content in a store, so that it can be recognised without being read; empty if it has no word."""

    rows_sha256: str
    """Digest of the Arrow file with its rows, beside the record."""

    categories: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    resampled: int
    mixed_down: int
    clipped: int


@dataclass(slots=True)
class _Tally:
    """Running totals of the shard that is being written."""

    num_utterances: int = 0
    num_samples: int = 0
    resampled: int = 0
    mixed_down: int = 0
    clipped: int = 0
    rejected: list[Rejected] = field(default_factory=list)


def keep_or_make(
    planned: PlannedShard, progress: Callable[[int], object], *, settings: MakeSettings, output: Output
) -> tuple[MadeShard, bool]:
    """The record of a shard, and whether it had to be made: one that an interrupted builder finished is kept.

    Args:
        progress: called with the number of utterances dealt with since the last call.

    Raises:
        ShardError: it cannot be read or written.
    """
    try:
        reused = reused_shard(planned, output)
        if reused is not None:
            progress(len(planned.utterances))
            return reused, False
        return _make_shard(planned, settings, output, progress), True
    except OSError as error:
        raise ShardError(
            f"{planned.name}: cannot be read or written in {output.where} ({error.strerror or error}). What is "
            "finished is kept: mend that, and run the same command again."
        ) from error


def reused_shard(planned: PlannedShard, output: Output) -> MadeShard | None:
    """The record of a shard, if its input is still what it was and its bytes are what the record states."""
    made = read_record(planned.name, output)
    if made is None or made.source_digest != planned.source_digest:
        return None
    if made.num_utterances and not (read_rows(made, output) and holds_shard(made, output)):
        return None
    return made


def holds_shard(made: MadeShard, output: Output) -> bool:
    """True when the shard lies where it should, as its record states."""
    return output.holds(made.name, size_bytes=made.size_bytes, sha256=made.sha256, tag=made.tag)


def read_record(name: str, output: Output) -> MadeShard | None:
    """The record of a finished shard; None if there is none that can be read."""
    where = f"{BUILDING}/{name}{RECORD_SUFFIX}"
    data = output.read(where)
    if data is None:
        return None
    try:
        return parse_document(MadeShard, data, where=where, error=ShardError)
    except ShardError:
        return None  # what cannot be read was not finished


def read_rows(made: MadeShard, output: Output) -> pa.Table | None:
    """The index rows of a finished shard; None if they are not those of its record."""
    data = output.read(_rows_name(made.name))
    if data is None or hashlib.sha256(data).hexdigest() != made.rows_sha256:
        return None
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def write_shard(
    path: Path, planned: PlannedShard, settings: MakeSettings, progress: Callable[[int], object]
) -> MadeShard:
    """Write a shard's tar, if any of its utterances can be used, and name what went into it; rows are not looked at."""
    tally = _Tally()
    write_tar(path, _samples(planned.utterances, settings, tally, progress))
    size_bytes = path.stat().st_size
    if not tally.num_utterances:
        path.unlink()
    return MadeShard(
        name=planned.name,
        split=planned.split,
        content_digest=planned.content_digest,
        source_digest=planned.source_digest,
        num_utterances=tally.num_utterances,
        num_samples=tally.num_samples,
        size_bytes=size_bytes if tally.num_utterances else 0,
        sha256=file_sha256(path) if tally.num_utterances else "",
        tag="",
        rows_sha256="",
        categories=(),
        rejected=tuple(tally.rejected),
        resampled=tally.resampled,
        mixed_down=tally.mixed_down,
        clipped=tally.clipped,
    )


def _make_shard(
    planned: PlannedShard, settings: MakeSettings, output: Output, progress: Callable[[int], object]
) -> MadeShard:
    with output.workplace(planned.name) as path:
        made = write_shard(path, planned, settings, progress)
        if made.num_utterances:
            rows = read_back(path, targets=settings.targets, members=MEMBERS)
            table = _table_bytes(rows_to_table(rows))
            made = replace(
                made,
                tag=output.publish(path, made.name, size_bytes=made.size_bytes, sha256=made.sha256),
                rows_sha256=hashlib.sha256(table).hexdigest(),
                categories=tuple(sorted({category for category in rows.categories if category is not None})),
            )
            output.write(_rows_name(made.name), table)
        else:
            output.delete([made.name])  # of an earlier try, with other audio
    output.write(f"{BUILDING}/{made.name}{RECORD_SUFFIX}", document_bytes(made))
    return made


def _samples(
    utterances: Sequence[Utterance], settings: MakeSettings, tally: _Tally, progress: Callable[[int], object]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one shard; counts into ``tally``."""
    for utterance, converted in _convert(utterances, settings):
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
        tally.clipped += converted.clipped
        yield escape_key(utterance.key), {AUDIO_MEMBER: converted.flac, JSON_MEMBER: record}


def _convert(utterances: Sequence[Utterance], settings: MakeSettings) -> Iterator[tuple[Utterance, Converted | str]]:
    """Each utterance with its audio, in order; several threads work a few utterances ahead."""
    if settings.num_threads == 1:
        for utterance in utterances:
            yield utterance, _converted(utterance, settings)
        return
    jobs = ((utterance, partial(_converted, utterance, settings)) for utterance in utterances)
    with ThreadPoolExecutor(settings.num_threads) as threads:
        yield from read_ahead(threads, jobs, 2 * settings.num_threads)


def _converted(utterance: Utterance, settings: MakeSettings) -> Converted | str:
    return convert_audio(utterance.audio, max_duration_s=settings.max_duration_s, segment_s=utterance.segment_s)


def _rows_name(shard: str) -> str:
    return f"{BUILDING}/{shard}.arrow"


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
