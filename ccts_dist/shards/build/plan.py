"""A build before any audio has been opened: what every process and every part of it agrees on."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.corpus.cells import has_bad_bytes, printable
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards.build.output import Output, open_output
from ccts_dist.shards.build.plan_shards import Part, PlannedShard, plan_shards
from ccts_dist.shards.build.validate_input import Intake, rejected_line, same_files, sort_intake
from ccts_dist.shards.format.schema import FORMAT_VERSION

SHARD_BYTES = 256_000_000
"""Largest size of a shard: large enough to stream, small enough to fetch and shuffle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Settings that decide the bytes of a shard set, beside the utterances and their audio."""

    corpus: str
    release: str
    scale: tuple[float, float]
    """The corpus's own rating scale."""

    targets: tuple[str, ...]
    """Names of the labels."""

    root: Path | None = None
    """Folder of the corpus; audio files are named relative to it."""

    shard_bytes: int = SHARD_BYTES
    """A shard is closed before the utterance that would bring its estimated size above this."""

    max_duration_s: float = MAX_DURATION_S
    """Longer audio is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """One shard of a plan, as far as joining needs it."""

    name: str
    num_utterances: int
    content_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """Facts on which all parts of a build must agree; kept beside the shards while they are being built."""

    corpus: str
    release: str
    scale: tuple[float, ...]
    targets: tuple[str, ...]
    num_given: int
    rejected: tuple[str, ...]
    """Lines for ``rejected.jsonl``: what was omitted before any audio was opened."""

    shards: tuple[PlanEntry, ...]
    input_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBuild:
    """A build before any audio has been opened: the same for all its parts."""

    output: Output
    settings: BuildSettings
    record: PlanRecord
    shards: tuple[PlannedShard, ...]

    def own_shards(self, part: Part | None) -> tuple[PlannedShard, ...]:
        """The shards of a part, or all."""
        return self.shards if part is None else part.own(self.shards)

    def num_utterances(self, part: Part | None) -> int:
        """That ``progress`` will be informed of."""
        own = sum(len(shard.utterances) for shard in self.own_shards(part))
        return own if part is not None else own + len(self.record.rejected)


def plan_build(utterances: Iterable[Utterance | Rejected], out: str | Path, settings: BuildSettings) -> PlannedBuild:
    """Sort the utterances and plan their shards; writes nothing.

    Raises:
        CorpusError: nothing was given, or splits whose names differ in upper and lower case alone.
        ConfigError: nothing can be written there, or a name cannot be stored.
    """
    _check_names(settings)
    root = None if settings.root is None else settings.root.absolute()
    settings = replace(settings, root=root)
    intake = sort_intake(utterances, targets=settings.targets, root=root)
    if not intake.num_given:
        raise CorpusError(f"{settings.corpus}: no utterance was given. Name a corpus that has some.")
    if (same := same_files(intake.splits)) is not None:
        raise CorpusError(
            f"{settings.corpus}: splits {same[0]!r} and {same[1]!r} differ in upper and lower case alone, and many "
            "file systems would store the shards of both under one name. Spell both alike, or rename one."
        )
    words = f"{FORMAT_VERSION}|{settings.targets}|{settings.shard_bytes}|{settings.max_duration_s}"
    shards = plan_shards(
        intake.splits, targets=settings.targets, root=root, shard_bytes=settings.shard_bytes, settings=words
    )
    record = PlanRecord(
        corpus=settings.corpus,
        release=settings.release,
        scale=(float(settings.scale[0]), float(settings.scale[1])),
        targets=settings.targets,
        num_given=intake.num_given,
        rejected=tuple(rejected_line(one) for one in intake.rejected),
        shards=tuple(
            PlanEntry(name=shard.name, num_utterances=len(shard.utterances), content_digest=shard.content_digest)
            for shard in shards
        ),
        input_digest=_digest_input(intake, shards, settings, words),
    )
    return PlannedBuild(output=open_output(out), settings=settings, record=record, shards=shards)


def _check_names(settings: BuildSettings) -> None:
    named = [("--name", settings.corpus), ("--release", settings.release)]
    for option, name in [*named, *(("--targets", target) for target in settings.targets)]:
        if has_bad_bytes(name):
            raise ConfigError(
                f"{option} '{printable(name)}': is not UTF-8, as every text in a shard set is. Spell it so."
            )


def _digest_input(intake: Intake, shards: Sequence[PlannedShard], settings: BuildSettings, words: str) -> str:
    corpus = f"{settings.corpus}|{settings.release}|{settings.scale}"
    digest = hashlib.sha256(f"{words}|{corpus}\n".encode())
    for rejected in intake.rejected:
        digest.update(rejected_line(rejected).encode())
    for shard in shards:
        digest.update(f"{shard.name}|{shard.content_digest}\n".encode())
    return digest.hexdigest()
