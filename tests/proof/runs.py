"""The demo's commands at one revision: shards, trainings, and the cache of the teacher."""

import hashlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from tests.proof.checkout import Checkout
from tests.proof.compare import ProofError

RUNS = ("text", "speech", "teacher", "ts", "cts")
"""Run files of the demo; the students come after their teacher."""

STUDENTS = ("ts", "cts")
TEACHER = "teacher"
SHARDS, CACHE = Path("demo/shards"), Path("demo/cache")
"""Where the run files look for them."""

NUM_RANKS = 2

SETTINGS = (
    (("train.max_steps",), "{steps}"),
    (("tracking.backend", "tracking.kind"), "none"),
    (("tracking.registered_model_name", "tracking.register"), ""),
)
"""What is changed in a run file. A key that was renamed has several names: the first that a revision takes is used."""

SHARD_SOURCES = ("ccts_dist", "shards")
SOURCES = (*SHARD_SOURCES, "launch", "ds_configs")
"""Folders of a tree that figures may depend on."""

_SHARD_SETS = 6
_SUFFIXES = (".py", ".toml", ".json")
_PACKAGES = ("torch", "numpy", "espeakng-loader", "vaderSentiment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training that has ended."""

    folder: Path
    """Of the run."""

    seconds_per_step: float | None
    """Median of the times between steps; None for fewer than three steps."""


def code_digest(tree: Path, folders: Sequence[str] = SHARD_SOURCES) -> str:
    """SHA-256 of every program and setting in folders of a tree; by default of all that shards may come from."""
    digest = hashlib.sha256()
    files = (path for name in folders for path in (tree / name).rglob("*") if path.suffix in _SUFFIXES)
    for path in sorted(files):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(tree)}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def make_shards(checkout: Checkout, num_utterances: int) -> bool:
    """The demo's shards of so many utterances, made by the revision's own code; False where they were kept.

    They are kept by the digest of that code and of the packages that speak, in ``ccts_dist/proof`` in the user's cache.

    Raises:
        ProofError: the build failed.
    """
    parts = [code_digest(checkout.tree), str(num_utterances), *(f"{name} {version(name)}" for name in _PACKAGES)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    stored = _shard_sets() / key
    is_new = not stored.is_dir()
    if is_new:
        with tempfile.TemporaryDirectory(prefix=".making-", dir=_shard_sets()) as scratch:
            made, corpus = Path(scratch) / "shards", Path(scratch) / "corpus"
            size = ("--corpus", str(corpus), "--utterances", str(num_utterances))
            checkout.python("shards/build.py", "demo", "--out", str(made), *size)
            if not stored.is_dir():  # else another proof was faster, with the same bytes
                made.rename(stored)
    os.utime(stored)
    for old in sorted(_shard_sets().glob("[0-9a-f]*"), key=lambda path: -path.stat().st_mtime)[_SHARD_SETS:]:
        shutil.rmtree(old, ignore_errors=True)
    link = checkout.folder / SHARDS
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(stored)
    return is_new


def train(checkout: Checkout, name: str, num_steps: int) -> Trained:
    """Train one of the demo's run files for so many steps.

    Raises:
        ProofError: it failed.
    """
    folder = checkout.folder / "demo" / "runs" / name
    while True:
        command = ["launch/train.py", "--config", f"launch/runs/demo/{name}.toml", *settings(checkout, num_steps)]
        code, printed, moments = checkout.launch(NUM_RANKS, *command, history=folder / "history.jsonl")
        if code == 0:
            return Trained(folder=folder, seconds_per_step=median_step(moments))
        if code != 2 or not try_next_name(checkout, printed):
            raise ProofError(f"{checkout.name}: {name} ended with exit code {code}:\n{printed[-4000:]}")


def cache_teacher(checkout: Checkout) -> None:
    """Cache the outputs of the teacher that was trained last.

    Raises:
        ProofError: it failed.
    """
    teacher = f"demo/runs/{TEACHER}/best"
    command = ("launch/cache_teacher.py", "--teacher", teacher, "--shards", str(SHARDS), "--out", str(CACHE))
    code, printed, _ = checkout.launch(NUM_RANKS, *command)
    if code != 0:
        raise ProofError(f"{checkout.name}: caching the teacher ended with exit code {code}:\n{printed[-4000:]}")


def median_step(moments: Sequence[float]) -> float | None:
    """Median of the seconds between steps; validations between epochs do not move it."""
    if len(moments) < 3:
        return None
    return statistics.median(later - earlier for earlier, later in pairwise(moments))


def try_next_name(checkout: Checkout, printed: str) -> bool:
    """Take the next name of a key that the revision has refused by its error; False when there is none."""
    errors = "\n".join(line for line in printed.splitlines() if line.startswith("error: "))
    for names, _ in SETTINGS:
        number = checkout.spellings.get(names[0], 0)
        if names[number] in errors and number + 1 < len(names):
            checkout.spellings[names[0]] = number + 1
            return True
    return False


def settings(checkout: Checkout, num_steps: int) -> list[str]:
    """The options that change a run file, with the names that this revision takes."""
    words = []
    for names, value in SETTINGS:
        name = names[checkout.spellings.get(names[0], 0)]
        words += ["--set", f"{name}={value.format(steps=num_steps)}"]
    return words


def _shard_sets() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccts_dist" / "proof"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
