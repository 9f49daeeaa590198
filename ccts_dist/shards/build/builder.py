"""Building a shard set: utterances in, tars, index and manifest out; the manifest last.

The shards are planned first, from the records and the sizes of the audio files. Then each is made by itself: by one
process or several, by one machine or by the parts of a job array. A builder that was killed goes on where it stopped:
each finished shard leaves a record in ``.building``, and is kept if its input is still what it was and its bytes are
what the record states.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.errors import ConfigError, MissingShardsError
from ccts_dist.records import SAMPLE_RATE_HZ, Rejected, Utterance
from ccts_dist.shards.build.finalize import (
    BuildSummary,
    finish_build,
    finished_build,
    read_plan,
    speed_in_words,
    write_plan,
)
from ccts_dist.shards.build.make_shard import MadeShard, MakeSettings, keep_or_make
from ccts_dist.shards.build.output import BUILDING, Output, open_output
from ccts_dist.shards.build.plan import SHARD_BYTES, BuildSettings, PlannedBuild, PlanRecord, plan_build
from ccts_dist.shards.build.plan_shards import Part, PlannedShard
from ccts_dist.shards.build.pool import run_tasks, warm_up
from ccts_dist.shards.build.recheck import check_sources
from ccts_dist.shards.format.schema import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSummary:
    """Summary of one part of a build."""

    part: Part
    num_shards: int
    num_reused: int
    """Shards that an earlier try had finished."""

    num_utterances: int
    rejected: int
    made_s: float
    """Seconds of audio that were made this time."""

    elapsed_s: float

    def in_words(self, out: object) -> str:
        """The summary for people."""
        reused = f" ({self.num_reused} were there)" if self.num_reused else ""
        lines = [
            f"{out}: part {self.part} is done: {self.num_shards} shards{reused}, {self.num_utterances} utterances, "
            f"{self.rejected} rejected"
        ]
        if self.made_s:
            lines.append(f"  {speed_in_words(self.made_s, self.elapsed_s)}")
        lines.append(f"  When all parts are done: python shards/build.py join {out}")
        return "\n".join(lines)


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
    num_processes: int = 1,
    progress: Callable[[int], object] | None = None,
) -> BuildSummary:
    """Write the shard set of a corpus, or go on with one that was interrupted.

    Equal utterances, audio and settings give byte-equal tars, index and manifest, whatever the place, the number of
    processes, threads and parts, and the interruptions. What cannot be used is written to ``rejected.jsonl`` and
    counted. With more than one process, the calling script needs the ``if __name__ == "__main__"`` guard.

    Args:
        utterances: what a corpus reader yields; rejected ones are passed on and counted.
        out: a folder, or a URL that fsspec can write to.
        scale: the corpus's own rating scale.
        targets: names of the labels.
        root: folder of the corpus; audio files are named relative to it.
        shard_bytes: largest size of a shard, as estimated before its audio is opened.
        max_rejected: largest share of utterances that may be rejected.
        max_duration_s: longer audio is rejected.
        num_threads: that decode and encode in each process; None gives each shard its share of the processes.
        num_processes: that make shards at once.
        progress: called with the number of utterances dealt with since the last call.

    Raises:
        CorpusError: more than ``max_rejected`` were rejected, or nothing was given.
        ConfigError: a limit off its range, or the place holds another shard set, or another builder is at work in it.
        ShardError: a shard cannot be written, or a process died.
    """
    check_build(out, shard_bytes=shard_bytes, max_rejected=max_rejected, max_duration_s=max_duration_s)
    settings = BuildSettings(
        corpus=corpus,
        release=release,
        scale=scale,
        targets=tuple(targets),
        root=None if root is None else Path(root),
        shard_bytes=int(shard_bytes),
        max_duration_s=max_duration_s,
    )
    warm_up(num_processes)
    build = plan_build(utterances, out, settings)
    return build_all(
        build, max_rejected=max_rejected, num_processes=num_processes, num_threads=num_threads, progress=progress
    )


def check_build(
    out: str | Path, *, shard_bytes: int | float, max_rejected: float, max_duration_s: float, num_processes: int = 1
) -> None:
    """Refuse a place or limits that a build could not work with, before a corpus is read or made.

    Raises:
        ConfigError: a limit off its range, or a file where a folder has to be.
    """
    if not 1 <= shard_bytes < math.inf:
        raise ConfigError(
            f"shard_bytes={shard_bytes}: must be at least 1 and finite. Give --shard-mb a positive number."
        )
    _check_share(max_rejected)
    if not 0 < max_duration_s < math.inf:
        raise ConfigError(f"max_duration_s={max_duration_s}: must be above 0 and finite. Change --max-duration.")
    if not str(out):
        raise ConfigError("--out: is empty, which may be a shell variable that was never set. Name a folder.")
    if num_processes < 1:
        raise ConfigError(f"num_processes={num_processes}: must be at least 1. Change --processes.")
    open_output(out)


def build_all(
    build: PlannedBuild,
    *,
    max_rejected: float,
    num_processes: int = 1,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> BuildSummary:
    """Make all shards of a planned build and finish it; arguments and errors as ``build_shard_set``."""
    began, progress = time.monotonic(), progress or (lambda _: None)
    found = _same_build(build)
    if found is None:
        with build.output.claim(None):
            found = _same_build(build)
            summary = found[1] if found else _build(build, max_rejected, num_processes, num_threads, progress)
    else:
        manifest, summary = found
        settings = _make_settings(build, len(build.shards), num_processes, num_threads)
        check_sources(build, manifest, settings=settings, num_processes=num_processes, progress=progress)
    build.output.clear_work()
    return replace(summary, elapsed_s=time.monotonic() - began)


def build_part(
    build: PlannedBuild,
    part: Part,
    *,
    num_processes: int = 1,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> PartSummary:
    """Make one part's shards of a planned build. Parts may be built at the same time; ``join_parts`` finishes them.

    Args:
        progress: called with the number of utterances dealt with since the last call.

    Raises:
        ConfigError: the place holds another shard set or parts of another build, or the same part is being built.
        ShardError: a shard cannot be written, or a process died.
    """
    began = time.monotonic()
    own = build.own_shards(part)
    if _same_build(build) is not None:
        num_utterances = build.num_utterances(part)
        return PartSummary(
            part=part,
            num_shards=len(own),
            num_reused=len(own),
            num_utterances=num_utterances,
            rejected=0,
            made_s=0.0,
            elapsed_s=0.0,
        )
    with build.output.claim(part):
        there = read_plan(build.output)
        if there is not None and there.input_digest != build.record.input_digest:
            raise ConfigError(
                f"{build.output.where}: holds parts of another build (of {there.input_digest[:12]}, this is of "
                f"{build.record.input_digest[:12]}). Give every part the same corpus and options, or name another "
                f"place; {build.output.where}/{BUILDING} can be deleted when no builder is at work."
            )
        write_plan(build.output, build.record)
        build.output.write(f"{BUILDING}/part-{part.number}-of-{part.of}.json", json.dumps({"part": str(part)}).encode())
        made = _make(build, own, num_processes, num_threads, progress or (lambda _: None))
    return PartSummary(
        part=part,
        num_shards=len(own),
        num_reused=sum(not new for _, new in made),
        num_utterances=sum(shard.num_utterances for shard, _ in made),
        rejected=sum(len(shard.rejected) for shard, _ in made),
        made_s=_made_seconds(made),
        elapsed_s=time.monotonic() - began,
    )


def join_parts(
    out: str | Path, *, max_rejected: float = 0.01, progress: Callable[[int], object] | None = None
) -> BuildSummary:
    """Finish a build whose parts have all been made: the very set that one builder would have made.

    Args:
        progress: called with the number of shards checked since the last call.

    Raises:
        MissingShardsError: nothing to join, or shards are missing; names them and their parts.
        CorpusError: more than ``max_rejected`` of all utterances were rejected.
        ConfigError: ``max_rejected`` off its range, or a builder is still at work.
        ShardError: the place cannot be read or written.
    """
    _check_share(max_rejected)
    began = time.monotonic()
    output = open_output(out)
    finished = finished_build(output)
    if finished is not None:
        return finished[1]
    _plan_to_join(output)
    with output.claim(None):
        summary = finish_build(output, _plan_to_join(output), max_rejected=max_rejected, verify=True, progress=progress)
    output.clear_work()
    return replace(summary, elapsed_s=time.monotonic() - began)


def num_to_join(out: str | Path) -> int:
    """How many shards ``join_parts`` will look at.

    Raises:
        MissingShardsError: nothing to join.
    """
    output = open_output(out)
    return 0 if finished_build(output) is not None else len(_plan_to_join(output).shards)


def _plan_to_join(output: Output) -> PlanRecord:
    plan = read_plan(output)
    if plan is None:
        raise MissingShardsError(f"{output.where}: no parts to join here. Build them first, with --part I/N.")
    return plan


def _check_share(max_rejected: float) -> None:
    if not 0 <= max_rejected <= 1:
        raise ConfigError(f"max_rejected={max_rejected}: must be between 0 and 1. Change --max-rejected.")


def _build(
    build: PlannedBuild,
    max_rejected: float,
    num_processes: int,
    num_threads: int | None,
    progress: Callable[[int], object],
) -> BuildSummary:
    before = read_plan(build.output)
    if before is not None and before.input_digest != build.record.input_digest:
        # Of an interrupted build of other input; a shard that both plans name is made anew if it differs.
        build.output.delete({shard.name for shard in before.shards} - {shard.name for shard in build.shards})
    write_plan(build.output, build.record)
    if build.record.rejected:
        progress(len(build.record.rejected))
    made = _make(build, build.shards, num_processes, num_threads, progress)
    finished = finish_build(
        build.output, build.record, max_rejected=max_rejected, progress=lambda _: None, verify=False
    )
    return replace(finished, made_s=_made_seconds(made))


def _make(
    build: PlannedBuild,
    shards: Sequence[PlannedShard],
    num_processes: int,
    num_threads: int | None,
    progress: Callable[[int], object],
) -> list[tuple[MadeShard, bool]]:
    settings = _make_settings(build, len(shards), num_processes, num_threads)
    largest_first = sorted(shards, key=lambda shard: -shard.estimated_bytes) if num_processes > 1 else shards
    work = partial(keep_or_make, settings=settings, output=build.output)
    return run_tasks(work, largest_first, num_processes=num_processes, progress=progress)


def _make_settings(build: PlannedBuild, num_shards: int, num_processes: int, num_threads: int | None) -> MakeSettings:
    if num_threads is None:
        # With fewer shards than processes, the cores that would be idle decode for the others.
        num_threads = max(1, num_processes // max(1, num_shards))
    return MakeSettings(
        root=build.settings.root,
        targets=build.settings.targets,
        max_duration_s=build.settings.max_duration_s,
        num_threads=num_threads,
    )


def _made_seconds(made: Sequence[tuple[MadeShard, bool]]) -> float:
    return sum(shard.num_samples for shard, new in made if new) / SAMPLE_RATE_HZ


def _same_build(build: PlannedBuild) -> tuple[Manifest, BuildSummary] | None:
    """The same build if it was finished before; None when there is no shard set yet."""
    found = finished_build(build.output)
    if found is None:
        return None
    manifest, _ = found
    if manifest.input_digest != build.record.input_digest:
        raise ConfigError(
            f"{build.output.where}: holds a shard set of other input or settings (it is {manifest.input_digest[:12]}, "
            f"this build is {build.record.input_digest[:12]}). Name another folder, or delete that one."
        )
    return found
