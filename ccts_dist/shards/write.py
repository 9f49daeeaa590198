"""Building a shard set: utterances in, tars, index and manifest out; the manifest last.

A builder that was killed goes on where it stopped: each finished shard leaves a record in ``.building``, and is kept
if its input is still what it was and its bytes are what the record says.
"""

import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import SAMPLE_RATE_HZ, Rejected, Utterance
from ccts_dist.shards.audio import MAX_DURATION_S
from ccts_dist.shards.cut import BUILDING, BuildSettings, cut_split
from ccts_dist.shards.durable import write_whole
from ccts_dist.shards.index import IndexWriter, rows_to_table
from ccts_dist.shards.intake import Intake, fingerprint, rejected_line, sort_intake
from ccts_dist.shards.readback import read_back
from ccts_dist.shards.schema import (
    AUDIO_MEMBER,
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    ShardEntry,
    SplitTotals,
    parse_manifest,
)

SHARD_BYTES = 256_000_000
"""A shard is closed once it holds so many bytes: large enough to stream, small enough to fetch and shuffle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """What came of a build."""

    splits: Mapping[str, SplitTotals]
    num_shards: int
    rejected: int
    resampled: int
    mixed_down: int
    digest: str
    """Of the shard set."""

    was_there: bool = False
    """True when the very same build had been finished before, and nothing was done."""

    def in_words(self, out: Path) -> str:
        """The summary for people, a line per split."""
        lines = [f"{out}: {'was complete already' if self.was_there else 'built'}, digest {self.digest[:12]}"]
        lines += [
            f"  {name}: {totals.num_utterances} utterances, {totals.hours:.2f} h"
            for name, totals in self.splits.items()
        ]
        lines.append(
            f"  {self.num_shards} shards; {self.rejected} rejected, {self.resampled} resampled, "
            f"{self.mixed_down} mixed down"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the manifest says of the corpus."""

    corpus: str
    release: str
    scale: tuple[float, float]
    input_digest: str


def build_shard_set(
    utterances: Iterable[Utterance | Rejected],
    out: str | Path,
    *,
    corpus: str,
    release: str,
    scale: tuple[float, float],
    targets: Sequence[str],
    root: str | Path | None = None,
    shard_bytes: int | float = SHARD_BYTES,
    max_rejected: float = 0.01,
    max_duration_s: float = MAX_DURATION_S,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> BuildSummary:
    """Write the shard set of a corpus into a folder, or go on with one that was interrupted.

    Equal utterances, audio and settings give byte-equal tars, index and manifest, whatever the folder, the number of
    threads and the interruptions. What cannot be used is written to ``rejected.jsonl`` and counted.

    Args:
        utterances: what a corpus reader yields; rejected ones are passed on and counted.
        scale: the corpus's own rating scale.
        targets: names of the labels.
        root: folder of the corpus; audio files are named relative to it.
        shard_bytes: a shard is closed once it holds so many bytes.
        max_rejected: largest share of utterances that may be rejected.
        max_duration_s: longer audio is rejected.
        num_threads: that decode and encode; None for as many as this process may use cores.
        progress: called with the number of utterances dealt with since the last call.

    Raises:
        CorpusError: more than ``max_rejected`` were rejected, or nothing was given.
        ConfigError: a limit off its range, or the folder holds another shard set, or another builder is at work in it.
    """
    check_build(out, shard_bytes=shard_bytes, max_rejected=max_rejected, max_duration_s=max_duration_s)
    settings = BuildSettings(
        out=Path(out),
        root=None if root is None else Path(root).absolute(),
        targets=tuple(targets),
        shard_bytes=int(shard_bytes),
        max_duration_s=max_duration_s,
        num_threads=num_threads or len(os.sched_getaffinity(0)),
    )
    intake = sort_intake(utterances, targets=targets, root=settings.root)
    if not intake.num_given:
        raise CorpusError(f"{corpus}: no utterance was given. Name a corpus that has some.")
    input_digest = _digest_input(intake, settings, f"{corpus}|{release}|{scale}")
    facts = _Facts(corpus=corpus, release=release, scale=scale, input_digest=input_digest)
    finished = _finished_build(settings.out, input_digest)
    if finished is None:
        with _only_builder(settings.out):
            finished = _build(intake, settings, facts, max_rejected, progress or (lambda _: None))
    shutil.rmtree(settings.out / BUILDING, ignore_errors=True)
    return finished


def check_build(out: str | Path, *, shard_bytes: int | float, max_rejected: float, max_duration_s: float) -> None:
    """Refuse a place or limits that ``build_shard_set`` could not work with, before a corpus is read or made.

    Raises:
        ConfigError: a limit off its range, or a file where a folder has to be.
    """
    if not 1 <= shard_bytes < math.inf:
        raise ConfigError(
            f"shard_bytes={shard_bytes}: must be at least 1 and finite. Give --shard-mb a positive number."
        )
    if not 0 <= max_rejected <= 1:
        raise ConfigError(f"max_rejected={max_rejected}: must be between 0 and 1. Change --max-rejected.")
    if not 0 < max_duration_s < math.inf:
        raise ConfigError(f"max_duration_s={max_duration_s}: must be above 0 and finite. Change --max-duration.")
    there = next(place for place in (Path(out), *Path(out).absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{out}: {there} is a file, not a folder. Name another folder with --out.")


def _build(
    intake: Intake, settings: BuildSettings, facts: _Facts, max_rejected: float, progress: Callable[[int], object]
) -> BuildSummary:
    out, parts = settings.out, []
    placed: list[ShardEntry] = []
    categories: set[str] = set()
    if intake.rejected:
        progress(len(intake.rejected))
    with IndexWriter(out / INDEX_NAME) as index:
        for split, utterances in intake.splits.items():
            for part in cut_split(split, utterances, settings, progress):
                parts.append(part)
                if part.shard is not None:
                    rows = read_back(
                        out / part.shard.name, targets=settings.targets, members=(AUDIO_MEMBER, JSON_MEMBER)
                    )
                    placed.append(replace(part.shard, index=index.add(rows_to_table(rows))))
                    categories |= {category for category in rows.categories if category is not None}
    rejected = [*intake.rejected, *(one for part in parts for one in part.rejected)]
    write_whole(out / REJECTED_NAME, "".join(rejected_line(one) + "\n" for one in rejected).encode())
    share = len(rejected) / intake.num_given
    if share > max_rejected or len(rejected) == intake.num_given:
        raise CorpusError(
            f"{facts.corpus}: {len(rejected)} of {intake.num_given} utterances rejected ({share:.1%}), and at most "
            f"{max_rejected:.1%} may be. Reasons: {out / REJECTED_NAME}. Mend the corpus, or allow more "
            "(--max-rejected); what is built is kept."
        )
    shards = tuple(placed)
    manifest = Manifest(
        corpus=facts.corpus,
        release=facts.release,
        scale=(float(facts.scale[0]), float(facts.scale[1])),
        targets=settings.targets,
        splits=split_totals(shards),
        shards=shards,
        categories=tuple(sorted(categories)),
        index_size_bytes=index.size_bytes,
        index_sha256=index.sha256,
        counts={
            "rejected": len(rejected),
            "resampled": sum(part.resampled for part in parts),
            "mixed_down": sum(part.mixed_down for part in parts),
        },
        input_digest=facts.input_digest,
    )
    _remove_leftovers(out, {shard.name for shard in shards})
    data = manifest.to_bytes()
    write_whole(out / MANIFEST_NAME, data)
    return _summary(manifest, data)


def split_totals(shards: Sequence[ShardEntry]) -> dict[str, SplitTotals]:
    """Utterances and hours by split, in the order of the shards."""
    totals = {}
    for split in dict.fromkeys(shard.split for shard in shards):
        own = [shard for shard in shards if shard.split == split]
        samples = sum(shard.num_samples for shard in own)
        totals[split] = SplitTotals(
            num_utterances=sum(shard.num_utterances for shard in own), hours=samples / SAMPLE_RATE_HZ / 3600
        )
    return totals


def _digest_input(intake: Intake, settings: BuildSettings, corpus: str) -> str:
    digest = hashlib.sha256(f"{settings.words()}|{corpus}\n".encode())
    for rejected in intake.rejected:
        digest.update(rejected_line(rejected).encode())
    for split, utterances in intake.splits.items():
        inner = fingerprint(utterances, targets=settings.targets, root=settings.root, with_time=False)
        digest.update(f"{split}|{inner}\n".encode())
    return digest.hexdigest()


@contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Keep a second builder out of the folder for as long as the block runs."""
    try:
        (out / BUILDING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made ({error.strerror}). Name another folder with --out.") from error
    with open(out / BUILDING / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another builder is at work here. Wait for it, or name another folder.") from None
        except OSError:
            pass  # a file system without locks
        yield


def _finished_build(out: Path, input_digest: str) -> BuildSummary | None:
    """The summary of the same build if it was finished before; None when there is no shard set yet."""
    path = out / MANIFEST_NAME
    if not path.exists():
        return None
    data = path.read_bytes()
    manifest = parse_manifest(data, where=str(path))
    if manifest.input_digest != input_digest:
        raise ConfigError(
            f"{out}: holds a shard set of other input or settings (it is {manifest.input_digest[:12]}, this build is "
            f"{input_digest[:12]}). Name another folder, or delete that one."
        )
    return _summary(manifest, data, was_there=True)


def _summary(manifest: Manifest, data: bytes, *, was_there: bool = False) -> BuildSummary:
    return BuildSummary(
        splits={split: manifest.splits[split] for split in manifest.split_names},
        num_shards=len(manifest.shards),
        rejected=manifest.counts["rejected"],
        resampled=manifest.counts["resampled"],
        mixed_down=manifest.counts["mixed_down"],
        digest=hashlib.sha256(data).hexdigest(),
        was_there=was_there,
    )


def _remove_leftovers(out: Path, names: set[str]) -> None:
    """Delete shards that an interrupted build of other input left: those with a record, and no place in this set."""
    for record in (out / BUILDING).glob("*.tar.json"):
        name = record.name.removesuffix(".json")
        if name not in names:
            (out / name).unlink(missing_ok=True)
    for partial in out.glob(".*.tar.partial"):
        partial.unlink()
