"""The paper's tables made again: every run that is missing, then our figures beside the paper's."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, pstdev

import torch

from ccts_dist.errors import ConfigError
from ccts_dist.progress import log
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.paired_intervals import estimate
from ccts_dist.report.paper_tables import Fold, PaperTable, Row
from ccts_dist.report.stages import Stage, launcher, run_stages, stage_environment
from ccts_dist.report.summary import Summary, read_summary
from ccts_dist.scoring.measures import SplitSums
from ccts_dist.tracking.fetch_run import SCHEME, fetch_run
from ccts_dist.tracking.run_file import read_run_file
from ccts_dist.tracking.uri import sqlite_uri

PAPERS_DISTANCE = "l2"
"""``distill.embedding_loss`` of the paper's formula, and of its run files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The reproduction of a table: what is to be made, and where."""

    table: PaperTable
    folder: Path
    """Everything that is made goes here."""

    shards: str = ""
    """Folder or address of the shard set; "" for ``<folder>/shards``."""

    corpus: Path | None = None
    """The corpus as it lies on disk, from which the shards are built first; None when they are there."""

    transcripts: Path | None = None
    """Transcripts from ``shards/transcribe.py``, for a corpus without transcripts."""

    only: tuple[int, ...] = ()
    """Rows of the table; empty for all."""

    fold_numbers: tuple[int, ...] = ()
    """Folds by number, from 1; empty for all."""

    seeds: tuple[int, ...] = (17,)
    overrides: tuple[str, ...] = ()
    """``a.b=VALUE`` for every run."""

    distances: tuple[str, ...] = (PAPERS_DISTANCE,)
    """Each row that has a teacher is run with each of these as ``distill.embedding_loss``."""

    launcher: tuple[str, ...] = ()
    """Command that starts a script on all ranks; empty for DeepSpeed's launcher on this machine."""

    @property
    def shard_set(self) -> str:
        """The shard set's folder, which may be still to come."""
        return self.shards or str(self.folder / "shards")

    @property
    def parent(self) -> str:
        """Name of the tracked run under which those of the table are listed."""
        return f"{self.table.name} table in {self.folder.absolute().name}"

    @property
    def folds(self) -> list[Fold]:
        """The folds that were asked for."""
        known = self.table.folds
        for number in self.fold_numbers:
            if not 1 <= number <= len(known):
                raise ConfigError(f"--folds {number}: the table {self.table.name} has 1 to {len(known)}. Name others.")
        return [fold for at, fold in enumerate(known, start=1) if not self.fold_numbers or at in self.fold_numbers]

    def cases(self) -> list[tuple[int, Fold]]:
        """Every row is run once for each of these."""
        return [(seed, fold) for seed in self.seeds for fold in self.folds]

    def runnable(self) -> list[Row]:
        """The rows that were asked for, but for those that lack something that only the user can give."""
        rows = [row for row in self.table.choose(self.only) if not row.needs or (self.folder / row.needs).exists()]
        return [one for row in rows for one in self._with_distances(row)]

    def _with_distances(self, row: Row) -> list[Row]:
        """A row once for each distance; a run with that of the run file is called after the file alone."""
        if not row.teacher:
            return [row]
        return [
            row if one == PAPERS_DISTANCE else replace(row, words=f"{row.words}, {one} distance", distance=one)
            for one in self.distances
        ]

    def output(self, row: Row, seed: int, fold: Fold) -> Path:
        """Run folder of one training."""
        return self.folder / "runs" / _name(row.name, seed, fold)


def reproduce(wanted: Reproduction) -> str:
    """Run what is missing, row after row, and give the table in Markdown; it is also left as ``table.md``.

    Raises:
        ConfigError: there is no such row, or neither shards nor a corpus.
        StageError: a command failed; what is done stays done.
    """
    rows = wanted.runnable()
    for row in wanted.table.choose(wanted.only):
        if row.needs and not (wanted.folder / row.needs).exists():
            log(f"row {row.number}, {row.words}: omitted, {wanted.folder / row.needs} is not there")
    if not rows:
        raise ConfigError("--only: none of these can be run. What they need is reported above.")
    if wanted.corpus is None and not wanted.shards and not (wanted.folder / "shards").exists():
        raise ConfigError(f"{wanted.folder / 'shards'}: there are no shards. Give --corpus, or --shards.")
    wanted.folder.mkdir(parents=True, exist_ok=True)
    environment = stage_environment(_tracking_uri(wanted.folder))
    seconds = run_stages(_stages(wanted, rows), wanted.folder, environment=environment)
    text = table_text(wanted, rows, seconds)
    (wanted.folder / "table.md").write_text(text + "\n", encoding="utf-8")
    return text


def _tracking_uri(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder.absolute() / "mlflow.db")


def _name(what: str, seed: int, fold: Fold) -> str:
    return "-".join(part for part in (what, fold.name, f"seed{seed}") if part)


def _stages(wanted: Reproduction, rows: Sequence[Row]) -> list[Stage]:
    stages = _shard_stages(wanted)
    teachers = {row.teacher for row in rows} - {0}
    for seed, fold in wanted.cases():
        for row in rows:
            stages.append(_train_stage(wanted, row, seed, fold))
            if row.number in teachers:
                stages.append(_cache_stage(wanted, row, seed, fold))
    return stages


def _shard_stages(wanted: Reproduction) -> list[Stage]:
    if wanted.corpus is None:
        return []
    command = [sys.executable, "shards/build.py", wanted.table.corpus, str(wanted.corpus), "--out", wanted.shard_set]
    if wanted.transcripts is not None:
        command += ["--transcripts", str(wanted.transcripts)]
    return [Stage(name="shards", command=tuple(command))]


def _train_stage(wanted: Reproduction, row: Row, seed: int, fold: Fold) -> Stage:
    config = wanted.table.runs / f"{row.run}.toml"
    name = _name(row.name, seed, fold)
    settings = [
        f"name={wanted.table.name}-{name}",
        f"output={wanted.output(row, seed, fold)}",
        f"seed={seed}",
        f"tracking.parent_run_name={wanted.parent}",
        f"data.shards={wanted.shard_set}",
        f"data.train_splits={json.dumps(fold.train)}",
        f"data.valid_splits={json.dumps(fold.valid)}",
        f"data.test_splits={json.dumps(fold.test)}",
    ]
    if row.teacher:
        settings.append(f"data.teacher_cache={_cache(wanted, row.teacher, seed, fold)}")
    if row.distance:
        settings.append(f"distill.embedding_loss={row.distance}")
    if row.needs:
        settings.append(f"model.speech.encoder={wanted.folder / row.needs}")
    sets = [word for setting in (*settings, *wanted.overrides) for word in ("--set", setting)]
    # --resume auto also begins: a table that was killed goes on where it was.
    command = (*_starter(wanted), "launch/train.py", "--config", str(config), *sets, "--resume", "auto")
    return Stage(name=name, command=command, inputs=(config,))


def _cache_stage(wanted: Reproduction, teacher: Row, seed: int, fold: Fold) -> Stage:
    model = wanted.output(teacher, seed, fold) / "best"
    cache = _cache(wanted, teacher.number, seed, fold)
    command = ("launch/cache_teacher.py", "--teacher", str(model), "--shards", wanted.shard_set, "--out", str(cache))
    return Stage(name=_name("cache", seed, fold), command=(*_starter(wanted), *command))


def _cache(wanted: Reproduction, teacher: int, seed: int, fold: Fold) -> Path:
    return wanted.folder / "caches" / _name(f"row{teacher}", seed, fold)


def _starter(wanted: Reproduction) -> tuple[str, ...]:
    return wanted.launcher or launcher(torch.cuda.device_count() or 2)


def table_text(wanted: Reproduction, rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """The paper's figures, ours and the difference for each dimension; seeds, their spread, and the seconds it took.

    With several seeds also the differences of rows, in pairs of runs of one seed.
    """
    columns = [f"{dimension[0].upper()} {of}" for dimension in DIMENSIONS for of in ("paper", "ours", "diff")]
    header = ("#", "system", *columns, "seeds", "spread", "rejected", "seconds")
    lines, pooled = [], []
    of_seeds: dict[str, list[list[float]]] = {}
    for row in rows:
        by_seed = [[_read(wanted, row, seed, fold) for fold in wanted.folds] for seed in wanted.seeds]
        took = sum(seconds[_name(row.name, seed, fold)] for seed, fold in wanted.cases())
        ours = [[mean(one.ccc[dimension] for one in folds) for folds in by_seed] for dimension in DIMENSIONS]
        of_seeds[row.name] = ours
        cells = []
        for values, theirs in zip(ours, row.paper, strict=True):
            cells += [f"{theirs:.3f}", f"{mean(values):.3f}", f"{mean(values) - theirs:+.3f}"]
        spread = f"{max(pstdev(values) for values in ours):.3f}" if len(wanted.seeds) > 1 else "-"
        fractions = [one.distilled_fraction for folds in by_seed for one in folds if one.distilled_fraction is not None]
        rejected_fraction = f"{1 - mean(fractions):.1%}" if fractions else "-"
        lines.append((row.number, row.words, *cells, len(wanted.seeds), spread, rejected_fraction, f"{took:.0f}"))
        per_seed = [SplitSums.pooled([one.sums for one in folds]).ccc() for folds in by_seed]
        pooled.append((row.number, row.words, *(f"{mean(ccc[d] for ccc in per_seed):.3f}" for d in DIMENSIONS)))
    several = len(wanted.folds) > 1
    where = wanted.table.title + (f": mean over {len(wanted.folds)} folds" if several else "")
    text = [
        f"CCC on {where}. Spread: standard deviation over seeds, where it is largest. "
        "Seconds: of each training's last start.",
        "",
        format_table(header, lines),
    ]
    differences = [
        (f"{one.short} - {other.short}", *map(_difference, of_seeds[one.name], of_seeds[other.name]))
        for one, other in wanted.table.pairs(rows)
    ]
    if len(wanted.seeds) > 1 and differences:
        words = (
            f"Differences of rows, {len(wanted.seeds)} pairs of runs of one seed: mean and 95 % interval (Student's t)."
        )
        text += ["", words, "", format_table(("rows", *DIMENSIONS), differences)]
    if several:
        text += ["", "CCC of these folds' predictions pooled:", "", format_table(("#", "system", *DIMENSIONS), pooled)]
    return "\n".join(text)


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """In words, of two rows in one dimension, seed by seed."""
    found = estimate([one - other for one, other in zip(ours, theirs, strict=True)])
    assert found is not None, "there is a seed"
    return found.in_words()


def _read(wanted: Reproduction, row: Row, seed: int, fold: Fold) -> Summary:
    """A training's figures as the tracking server has them; its sums are in its folder alone."""
    output = wanted.output(row, seed, fold)
    summary = read_summary(output)
    ccc = summary.ccc
    tracked = read_run_file(output)
    if tracked.run_id:
        tracked_metrics = fetch_run(f"{SCHEME}{tracked.run_id}", tracking_uri=_tracking_uri(wanted.folder)).metrics
        ccc = {dimension: list(tracked_metrics[f"test/ccc_{dimension}"].values())[-1] for dimension in DIMENSIONS}
    return replace(summary, ccc=ccc)
