"""The demo study: its chains, in which order, and the commands of each.

A **chain** is what one seed needs at one share of wrong transcripts, from the teacher to the students. Audio and labels
are the same at every share, so the systems that read no transcript are trained once, at the first.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.corpus.transcript_corruption import USUAL_SHARE
from ccts_dist.errors import ConfigError
from ccts_dist.report.stages import Stage

USUAL_PERCENT = round(100 * USUAL_SHARE)
AT_THE_FIRST_SHARE = ("text", "speech", "teacher", "cache", "ts", "cts")
AT_OTHER_SHARES = ("teacher", "cache", "ts", "cts")
"""Stages of a chain, in order; those of one name are alike in length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The study: what is to be compared, and where."""

    folder: Path
    seeds: tuple[int, ...] = (17, 18, 19, 20, 21)
    percents: tuple[int, ...] = (USUAL_PERCENT,)
    """Wrong transcripts, in the order in which they are run."""

    num_utterances: int = 4000
    runs: Path = Path("launch/runs/demo")
    """Folder of the run files."""

    overrides: tuple[str, ...] = ()
    """``a.b=VALUE`` for every run."""

    jobs: int = 1
    """Chains at the same time."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for percent in self.percents:
            if not 0 <= percent <= 100:
                raise ConfigError(
                    f"--corrupt-transcripts {percent}: a share of the transcripts in percent is from 0 to 100."
                )
        for option, values in (("--seeds", self.seeds), ("--corrupt-transcripts", self.percents)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{option}: each of {list(values)} must be there, and only once.")
        if self.jobs < 1:
            raise ConfigError(f"--jobs {self.jobs}: must be at least 1.")

    def share_folder(self, percent: int) -> Path:
        """Folder of the corpus, its shards, and all chains with so many wrong transcripts."""
        return self.folder / f"wrong{percent}"

    def chain_folder(self, percent: int, seed: int) -> Path:
        """Folder of one chain."""
        return self.share_folder(percent) / f"seed{seed}"


def order_of_shares(percents: Sequence[int]) -> tuple[int, ...]:
    """The corpus's usual share first, since the most hangs on it; then the most wrong ones."""
    return tuple(sorted(set(percents), key=lambda percent: (percent != USUAL_PERCENT, -percent)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something that one worker does: a chain, or the corpus and shards of a share."""

    percent: int
    seed: int | None = None
    """None for corpus and shards."""


def order_of_tasks(study: Study) -> list[Task]:
    """The first share's chains, so that its tables come early; then seed by seed, so that all other shares grow alike.

    Corpora come before their chains, which lets workers take tasks in this order; and before the last chain of the
    first share, so that no worker waits for one.
    """
    first, *others = study.percents
    chains = [Task(percent=first, seed=seed) for seed in study.seeds]
    corpora = [Task(percent=percent) for percent in others]
    later = [Task(percent=percent, seed=seed) for seed in study.seeds for percent in others]
    return [Task(percent=first), *chains[:-1], *corpora, chains[-1], *later]


def stages_of(study: Study, task: Task) -> list[Stage]:
    """The commands of a task, each as a user would give it."""
    share = study.share_folder(task.percent)
    if task.seed is None:
        build = ("shards/build.py", "demo", "--out", str(share / "shards"), "--corpus", str(share / "corpus"))
        size = ("--utterances", str(study.num_utterances), "--corrupt-transcripts", str(task.percent))
        return [Stage(name="shards", command=(sys.executable, *build, *size))]
    chain = study.chain_folder(task.percent, task.seed)
    names = AT_THE_FIRST_SHARE if task.percent == study.percents[0] else AT_OTHER_SHARES
    return [_stage(study, task, name, share, chain) for name in names]


def _stage(study: Study, task: Task, name: str, share: Path, chain: Path) -> Stage:
    shards, cache = str(share / "shards"), str(chain / "cache")
    if name == "cache":
        teacher = str(chain / "runs" / "teacher" / "best")
        command = ("launch/cache_teacher.py", "--teacher", teacher, "--shards", shards, "--out", cache)
        return Stage(name=name, command=(sys.executable, *command))
    config = study.runs / f"{name}.toml"
    settings = [
        f"name={name}-wrong{task.percent}-seed{task.seed}",
        f"output={chain / 'runs' / name}",
        f"seed={task.seed}",
        f"data.shards={shards}",
        *([f"data.teacher_cache={cache}"] if name in ("ts", "cts") else []),
        # One rank takes in one pass what the demo's two take together.
        "batch.micro_batch_size=32",
        "tracking.experiment_name=ccts-demo-study",
        f"tracking.parent_run_name=demo study in {study.folder.absolute().name}",
        "tracking.registered_model_name=",
        *study.overrides,
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    # --resume auto also begins: a study that was killed goes on where it was.
    command = ("launch/train.py", "--config", str(config), *sets, "--resume", "auto")
    return Stage(name=name, command=(sys.executable, *command), inputs=(config,))
