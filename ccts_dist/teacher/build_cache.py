"""Pass a teacher, or several, over a shard set once and store its outputs: the cache that students are trained with.

The ranks share the shards out among themselves. A shard is written whole or not at all, so that a pass that was killed
goes on with the shards that are missing; what is in a shard depends on the teacher and the source shard alone.
"""

import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ccts_dist.distributed import Ranks, broadcast_object, gather_objects, run_on_all_ranks, sum_over_ranks
from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.files.locking import lock
from ccts_dist.progress import Progress, log
from ccts_dist.records import Condition
from ccts_dist.shards.format.schema import ShardEntry, TeacherFacts
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache_writer import (
    check_cache_is_of,
    finished_cache_shards,
    write_cache_manifest,
    write_cache_shard,
)
from ccts_dist.teacher.ensemble import Ensemble, load_ensemble
from ccts_dist.teacher.fit import FitSums, ShardFit, fit_teacher, num_rejected, read_shard_fit
from ccts_dist.teacher.forward import BATCH_SECONDS, teacher_outputs

THRESHOLD = 2.0
"""The paper's, for the share that is reported; a cache serves every threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """Result of a pass."""

    digest: str
    """Digest of the cache."""

    num_utterances: int
    num_shards: int
    num_shards_reused: int
    """Shards that an earlier pass had finished."""

    condition: Condition
    num_fit_rows: int
    """Utterances of the fit's splits."""

    rejected_fraction: float
    """Share of them that the any-dimension gate at ``THRESHOLD`` standard deviations would not distil."""

    def words(self) -> str:
        """For people, in one line."""
        return (
            f"{self.num_utterances:,} utterances in {self.num_shards} shards, {self.num_shards_reused} of them "
            f"reused; the any-dimension gate at {THRESHOLD:g} standard deviations rejects "
            f"{self.rejected_fraction:.1%} of the {self.num_fit_rows:,} of {', '.join(self.condition.splits)}"
        )


def cache_teacher(
    model_folders: Sequence[Path],
    shard_set: ShardSet,
    out: Path,
    *,
    ranks: Ranks,
    device: torch.device,
    fit_splits: Sequence[str] = (),
    splits: Sequence[str] = (),
    name: str = "",
    registry_version: str = "",
    batch_seconds: float = BATCH_SECONDS,
) -> CacheSummary:
    """Write the teacher's outputs for a shard set, its condition, and its embedding's mean and standard deviation.

    Every rank must call it, in one process group. Shards that an earlier pass of the same teacher wrote for the same
    source shards are kept. An error on any rank is raised on all. Several teachers are distilled as their mean
    (Hinton 2015): of embeddings and of predictions, to which the condition is fitted. All are in memory at a time.

    Args:
        model_folders: the teacher, as training wrote it; or several, in any order.
        shard_set: what it is to read.
        out: folder of the cache, on storage that all ranks share.
        fit_splits: splits that the condition is fitted on; empty for those that each teacher was trained on.
        splits: splits that are cached; empty for all.
        name: of the teacher or teachers, for people; "" for their folders.
        registry_version: of the teacher or teachers that are registered.
        batch_seconds: most seconds of padded audio in a forward pass.

    Raises:
        TeacherError: a fit split that a teacher was not trained on, a folder that holds another cache, a teacher
            whose outputs are not finite, teachers of other targets or another embedding size, or too few labels to fit.
        ConfigError: an unknown split, or no such model folder.
        CheckpointError: the model folder is not whole.
        ShardError: a shard is damaged.
    """
    teacher = run_on_all_ranks(lambda: load_ensemble(model_folders, device))
    work = run_on_all_ranks(
        lambda: _plan_work(
            teacher,
            shard_set,
            Path(out),
            fit_splits,
            splits,
            ranks=ranks,
            device=device,
            seconds=batch_seconds,
        )
    )
    with _only_pass(work):
        finished = broadcast_object(run_on_all_ranks(lambda: _finished_shards(work)))
        _cache_shards(work, finished)
        parts = _read_fit(work)
        return _finish(work, parts, name or str(teacher), registry_version, len(finished))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The shared state of a pass's steps."""

    teacher: Ensemble
    shard_set: ShardSet
    out: Path
    splits: tuple[str, ...]
    shards: Sequence[ShardEntry]
    fit_splits: tuple[str, ...]
    ranks: Ranks
    device: torch.device
    batch_seconds: float

    @property
    def targets(self) -> tuple[str, ...]:
        return self.teacher.targets


def _plan_work(
    teacher: Ensemble,
    shard_set: ShardSet,
    out: Path,
    fit_splits: Sequence[str],
    splits: Sequence[str],
    *,
    ranks: Ranks,
    device: torch.device,
    seconds: float,
) -> _Work:
    """Refuses what cannot come to a good end before the first utterance is read."""
    if not seconds > 0:
        raise ConfigError(f"--batch-seconds={seconds:g}: must be above 0. Leave it out for {BATCH_SECONDS:g}.")
    trained = teacher.train_splits
    fit_splits = tuple(dict.fromkeys(fit_splits)) or trained
    splits = tuple(dict.fromkeys(splits)) or tuple(shard_set.manifest.splits)
    if not trained:
        lacking = "names no train_splits" if len(teacher.members) == 1 else "of these names no train_splits in common"
        raise TeacherError(
            f"{teacher}: model.json {lacking}, so nothing reports which utterances the condition may "
            "be fitted on. Take a model that launch/train.py saved."
        )
    for split in fit_splits:
        if split not in trained:
            raise TeacherError(
                f"Fit split {split!r} is not one that the teacher {teacher} was trained on "
                f"({', '.join(map(repr, trained))}): its residuals there are no measure of what it has learnt. "
                "Leave --fit-splits out, or name some of those."
            )
        if split not in splits:
            raise ConfigError(f"Fit split {split!r} is not among the splits to cache ({', '.join(splits)}). Add it.")
    known = shard_set.manifest.targets
    if not teacher.targets:
        raise TeacherError(
            f"The teacher {teacher} predicts no target, only categories, and the condition is fitted on targets. "
            "Take a model whose model.targets names some."
        )
    for target in teacher.targets:
        if target not in known:
            raise TeacherError(
                f"The teacher {teacher} predicts {target!r}, which is no label of {shard_set.root} "
                f"({', '.join(known)}). Take the shards that it was trained on."
            )
    shard_set.shards_of(fit_splits)
    return _Work(
        teacher=teacher,
        shard_set=shard_set,
        out=out,
        splits=splits,
        shards=shard_set.shards_of(splits),
        fit_splits=fit_splits,
        ranks=ranks,
        device=device,
        batch_seconds=seconds,
    )


@contextmanager
def _only_pass(work: _Work) -> Iterator[None]:
    """Keep a second pass out of the folder for as long as the block runs; refuse one that the ranks do not share."""
    token = broadcast_object(uuid.uuid4().hex)

    def take() -> BinaryIO | None:
        if not work.ranks.is_first:
            return None
        try:
            work.out.mkdir(parents=True, exist_ok=True)
            file = open(work.out / ".lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise TeacherError(f"{work.out}: cannot be written ({error.strerror}). Name another folder.") from error
        if not lock(file):
            file.close()
            raise TeacherError(f"{work.out}: another pass is at work here. Wait for it, or name another folder.")
        try:
            file.truncate(0)
            file.write(token.encode())
            file.flush()
        except OSError as error:
            raise TeacherError(f"{work.out}: cannot be written ({error.strerror}). Make room there.") from error
        return file

    def look() -> None:
        try:
            found = (work.out / ".lock").read_text()
        except OSError:
            found = ""
        if found != token:
            raise TeacherError(
                f"{work.out}: rank {work.ranks.rank} on {platform.node()} does not see there what rank 0 wrote. Name a "
                "folder on storage that all ranks share."
            )

    file = run_on_all_ranks(take)
    try:
        run_on_all_ranks(look)
        yield
    finally:
        if file is not None:
            file.close()


def _finished_shards(work: _Work) -> set[str]:
    """On rank 0, which informs the others: the shards that need not be done again."""
    if not work.ranks.is_first:
        return set()
    check_cache_is_of(work.out, work.shard_set, work.teacher.digest)
    wanted = {shard.name for shard in work.shards}
    return finished_cache_shards(work.out, work.shard_set, work.teacher.digest) & wanted


def _cache_shards(work: _Work, finished: set[str]) -> None:
    """Write the shards that are missing, in rounds of one shard per rank, the largest first.

    The ranks meet after each round, so that an error ends all of them and not one. Shards of a round are of like size.
    """
    missing = [shard for shard in work.shards if shard.name not in finished]
    missing.sort(key=lambda shard: (-shard.num_samples, shard.name))
    total = sum(shard.num_utterances for shard in work.shards)
    done = total - sum(shard.num_utterances for shard in missing)
    rank, num_ranks = work.ranks.rank, work.ranks.num_ranks
    if finished:
        log(f"{work.out}: {len(finished)} of {len(work.shards)} shards were there", visible=work.ranks.is_first)
    with Progress(total, "caching", unit="utterances", visible=work.ranks.is_first, start=done) as progress:
        for start in range(0, len(missing), num_ranks):
            shards = missing[start : start + num_ranks]
            own = shards[rank] if rank < len(shards) else None
            run_on_all_ranks(lambda own=own: None if own is None else _cache_shard(work, own, progress.advance))
            # This rank's own have been counted batch by batch.
            progress.advance(sum(shard.num_utterances for shard in shards if shard is not own))


def _cache_shard(work: _Work, shard: ShardEntry, advance: Callable[[int], None]) -> None:
    rows = work.shard_set.rows(shard.name)
    outputs = teacher_outputs(
        work.teacher, work.shard_set, rows, device=work.device, batch_seconds=work.batch_seconds, advance=advance
    )
    try:
        write_cache_shard(
            work.out,
            shard.name,
            shard.sha256,
            zip(rows.keys, outputs, strict=True),
            teacher_digest=work.teacher.digest,
        )
    except OSError as error:
        raise TeacherError(
            f"{work.out / shard.name}: cannot be written ({error.strerror}). Make room, and run the same again: what "
            "is finished is kept."
        ) from error


def _read_fit(work: _Work) -> dict[str, ShardFit]:
    """This rank's share of the fit's shards, by name."""
    shards = work.shard_set.shards_of(work.fit_splits)[work.ranks.rank :: work.ranks.num_ranks]
    return run_on_all_ranks(
        lambda: {
            shard.name: read_shard_fit(
                work.out,
                work.shard_set,
                shard.name,
                targets=work.targets,
                embedding_size=work.teacher.embedding_size,
            )
            for shard in shards
        }
    )


def _finish(
    work: _Work, parts: dict[str, ShardFit], name: str, registry_version: str, num_shards_reused: int
) -> CacheSummary:
    """Fit, on every rank the same, and write what makes the cache whole, on rank 0."""
    of_all: dict[str, FitSums] = {}
    for theirs in gather_objects({shard: part.sums for shard, part in parts.items()}):
        of_all |= theirs
    in_order = [of_all[shard.name] for shard in work.shard_set.shards_of(work.fit_splits)]
    condition, sums = run_on_all_ranks(lambda: fit_teacher(in_order, targets=work.targets, splits=work.fit_splits))
    rejected_fraction = sum(num_rejected(part, condition, THRESHOLD) for part in parts.values())
    rejected_fraction = int(sum_over_ranks(torch.tensor(float(rejected_fraction), dtype=torch.float64)))

    def write() -> str:
        if not work.ranks.is_first:
            return ""
        facts = TeacherFacts(
            name=name,
            registry_version=registry_version,
            weight_digest=work.teacher.digest,
            targets=work.targets,
            embedding_size=work.teacher.embedding_size,
            embedding_mean=tuple(sums.mean.tolist()),
            embedding_std=tuple(sums.std.tolist()),
            condition_sha256="",
        )
        return write_cache_manifest(
            work.out, work.shard_set, facts, splits=work.splits, condition=condition, sums=sums.named()
        )

    return CacheSummary(
        digest=broadcast_object(run_on_all_ranks(write)),
        num_utterances=sum(shard.num_utterances for shard in work.shards),
        num_shards=len(work.shards),
        num_shards_reused=num_shards_reused,
        condition=condition,
        num_fit_rows=sums.num_rows,
        rejected_fraction=rejected_fraction / max(1, sums.num_rows),
    )
