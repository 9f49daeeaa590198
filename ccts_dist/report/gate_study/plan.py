"""Trainings of the gate study: its cells, in which order, and the commands of each.

A **cell** is one training: which labels there are, which transcript errors the teacher reads, what is distilled, and
which gate selects the utterances. A **chain** is what one seed needs of one part of the study. Every seed has a corpus
of its own, so that intervals over seeds speak about corpora too.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.report.stages import Stage

LABELS: Mapping[str, tuple[str, ...]] = {"full": ("Few", "More"), "few": ("Few", "Unrated")}
"""Splits that a student is trained on, by how many of its utterances have labels; a teacher has the labelled ones."""

ERRORS = ("random", "audible")
"""Transcripts of other utterances, and words that sound like those that were spoken."""

TERMS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embedding_weight=1.0", "embedding_loss=mse", "standardize=true"),
    "prediction": ("embedding_weight=0.0", "prediction_weight=1.0", "prediction_loss=ccc"),
}

CONDITION = ("gate=any-dimension", "threshold=2.0")
GATES: Mapping[str, tuple[str, ...]] = {
    "all": ("gate=none",),
    "condition": CONDITION,
    "random as condition": ("gate=random", "threshold=2.0"),
    "oracle": ("gate=keys", "gate_keys={keys}"),
    "random as oracle": ("gate=random", "reject_fraction={rejected}"),
    "confidence": ("gate=confidence", "min_confidence={confidence}"),
    "robust": ("gate=any-dimension", "threshold=3.0", "residual_scale=robust"),
    "valence": (*CONDITION, 'gate_targets=["valence"]'),
}
"""Settings of ``[distill]``; what is in braces comes from the seed's corpus, see ``corpora.Facts``."""

TRAIN, CACHE = "ccts_dist.commands.train:main", "ccts_dist.commands.cache_teacher:main"
_ROOM = "ccts_dist.report.gate_study"

PAIRS = ("all", "condition", "random as condition", "oracle", "random as oracle")

EPOCHS: Mapping[str, int] = {"full": 15, "few": 9}
"""Epochs of students: 300 and 350 steps. With half as many no student is better than without a teacher."""

EPOCHS_OF_FEW = 30
"""Epochs of the models that see the 300 labelled utterances alone: as many steps."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """One training of a seed."""

    labels: str
    """One of ``LABELS``."""

    errors: str = ""
    """One of ``ERRORS``; "" for the model that reads no transcript and has no teacher."""

    term: str = ""
    """One of ``TERMS``; "" for a teacher, and for speech only."""

    gate: str = ""
    """One of ``GATES``, likewise."""

    @property
    def system(self) -> str:
        """Speech only, teacher or student."""
        return "student" if self.term else "teacher" if self.errors else "speech"

    @property
    def name(self) -> str:
        """Name of its stage and its folder."""
        words = (self.labels, self.system if self.system != "student" else self.term, self.errors, self.gate)
        return "-".join(word.replace(" ", "-") for word in words if word)


def _students(labels: str, term: str, errors: str, gates: tuple[str, ...]) -> tuple[Cell, ...]:
    return tuple(Cell(labels=labels, errors=errors, term=term, gate=gate) for gate in gates)


def _primary(errors: str) -> tuple[Cell, ...]:
    """The primary figures' needs of one kind of errors."""
    teachers = {labels: Cell(labels=labels, errors=errors) for labels in LABELS}
    unrated = ("all", "oracle", "random as oracle")  # a condition looks at residuals: it passes what nobody rated
    recognized = ("confidence",) if errors == "audible" else ()  # a recognizer made the audible errors alone
    few = (teachers["few"], *_students("few", "prediction", errors, (*unrated, *recognized)))
    return (*few, teachers["full"], *_students("full", "embedding", errors, PAIRS))


PARTS: tuple[tuple[Cell, ...], ...] = (
    (*(Cell(labels=labels) for labels in LABELS), *_primary("random")),
    _primary("audible"),
    tuple(cell for errors in ERRORS for cell in _students("full", "prediction", errors, PAIRS)),
    tuple(cell for errors in ERRORS for cell in _students("full", "embedding", errors, ("robust", "valence"))),
    tuple(
        cell
        for errors in ERRORS
        for cell in _students("few", "embedding", errors, ("all", "oracle", "random as oracle"))
    ),
)
"""Cells in the order in which all seeds have them: what the primary figures need comes first."""

CELLS = tuple(cell for part in PARTS for cell in part)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStudy:
    """The gate study: what is to be compared, and where."""

    folder: Path
    seeds: tuple[int, ...] = tuple(range(1, 21))
    num_utterances: int = 1600
    num_few: int = 300
    """Utterances that keep their labels where labels are few."""

    runs: Path = Path("launch/runs/demo/gate")
    """Folder of the run files."""

    overrides: tuple[str, ...] = ()
    """``a.b=VALUE`` for every run."""

    jobs: int = 1
    """Chains at the same time."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds: each of {list(self.seeds)} must be there, and only once.")
        if self.jobs < 1:
            raise ConfigError(f"--jobs {self.jobs}: must be at least 1.")

    def seed_folder(self, seed: int) -> Path:
        """Folder of a seed's corpus and runs."""
        return self.folder / f"seed{seed}"

    def run_folder(self, seed: int, cell: Cell) -> Path:
        """Folder of one training."""
        return self.seed_folder(seed) / "runs" / cell.name


def chains(study: GateStudy) -> list[tuple[int, tuple[Cell, ...]]]:
    """Seed and cells of each chain, in order: the first part of every seed, then the second of every seed."""
    return [(seed, part) for part in PARTS for seed in study.seeds]


def corpus_stages(study: GateStudy, seed: int, part: tuple[Cell, ...]) -> list[Stage]:
    """The seed's corpus, spoken once, and the shards with each kind of errors that some cell needs."""
    words = (str(study.seed_folder(seed)), str(seed), str(study.num_utterances))
    needed = [errors for errors in ERRORS if any((cell.errors or ERRORS[0]) == errors for cell in part)]
    built = (
        Stage(name=f"shards-{errors}", command=(f"{_ROOM}.corpora:build", *words, str(study.num_few), errors))
        for errors in needed
    )
    return [Stage(name="corpus", command=(f"{_ROOM}.corpora:speak", *words)), *built]


def count_stages(study: GateStudy, seed: int, part: tuple[Cell, ...]) -> list[Stage]:
    """The counting of whom the gates of these students reject, for each kind of errors."""
    stages = []
    for errors in ERRORS:
        runs = [str(study.run_folder(seed, cell)) for cell in part if cell.errors == errors and cell.gate]
        if runs:
            digits = hashlib.sha256(" ".join(runs).encode()).hexdigest()[:8]
            oracle = str(study.seed_folder(seed) / f"oracle-{errors}.txt")
            stages.append(Stage(name=f"count-{errors}-{digits}", command=(f"{_ROOM}.counts:count", oracle, *runs)))
    return stages


def stages_of(study: GateStudy, seed: int, cell: Cell, facts: Mapping[str, Mapping[str, str]]) -> list[Stage]:
    """The commands of a cell, each as a user would give it; a teacher's cache comes with the teacher.

    Args:
        study: all of it.
        seed: which of its seeds.
        cell: what is trained.
        facts: values for the braces of ``GATES``, by ``facts_key``.
    """
    folder = study.seed_folder(seed)
    shards = str(folder / f"shards-{cell.errors or ERRORS[0]}")
    few = cell.labels == "few"
    splits = ["Few"] if few and cell.system != "student" else list(LABELS[cell.labels])
    cache = str(folder / f"cache-{cell.labels}-{cell.errors}")
    settings = [
        f"run_name={cell.name}-seed{seed}",
        f"output_dir={study.run_folder(seed, cell)}",
        f"seed={seed}",
        f"data.shards={shards}",
        f"data.train_splits={splits}".replace("'", '"'),
        f"train.epochs={EPOCHS[cell.labels] if len(splits) > 1 else EPOCHS_OF_FEW}",
    ]
    if cell.system == "student":
        known = facts[facts_key(cell.labels, cell.errors)]
        distill = (*TERMS[cell.term], *(setting.format(**known) for setting in GATES[cell.gate]))
        settings += [f"data.teacher_cache={cache}", *(f"distill.{setting}" for setting in distill)]
        settings += ["batch.labelled_share=0.5"] if few else []
    config = study.runs / f"{'teacher' if cell.system == 'teacher' else 'student'}.toml"
    sets = [word for setting in (*settings, *study.overrides) for word in ("--set", setting)]
    # --resume auto also begins: a study that was killed goes on where it was.
    train = Stage(name=cell.name, command=(TRAIN, "--config", str(config), *sets, "--resume", "auto"), inputs=(config,))
    if cell.system != "teacher":
        return [train]
    command = (CACHE, "--teacher", str(study.run_folder(seed, cell) / "best"), "--shards", shards)
    splits = ("--splits", *LABELS[cell.labels])
    return [train, Stage(name=f"{cell.name}-cache", command=(*command, "--out", cache, *splits))]


def facts_key(labels: str, errors: str) -> str:
    """Key of what a corpus states about one kind of labels and errors."""
    return f"{labels}-{errors}"
