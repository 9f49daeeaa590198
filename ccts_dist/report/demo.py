"""The demo: the whole pipeline on the spoken corpus, the one table it ends with, and what to paste afterwards."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ccts_dist.records import DIMENSIONS
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.stages import Stage, launcher, run_stages, stage_environment
from ccts_dist.report.summary import read_summary
from ccts_dist.tracking.uri import DEMO_STORE, sqlite_uri

SYSTEMS = {
    "text": "text only",
    "speech": "speech only, no teacher",
    "teacher": "teacher: speech + text",
    "ts": "T/S: student, every utterance distilled",
    "cts": "cT/S: student, distilled on condition",
}
"""Run files of ``launch/runs/demo`` and what they are, in the order of the table."""

NUM_RANKS = 2


def demo_stages(folder: Path, *, num_utterances: int, runs: Path) -> list[Stage]:
    """The commands of the demo, each as a user would give it for a corpus of their own."""
    python, shards = sys.executable, str(folder / "shards")

    def train(name: str) -> Stage:
        config = runs / f"{name}.toml"
        # --resume auto also begins: a demo that was killed goes on where it was.
        words = (
            "launch/train.py",
            "--config",
            str(config),
            "--set",
            "tracking.parent_run_name=demo",
            "--resume",
            "auto",
        )
        command = (*launcher(NUM_RANKS), *words)
        return Stage(name=name, command=command, inputs=(config,))

    build = ("shards/build.py", "demo", "--out", shards, "--corpus", str(folder / "corpus"))
    cache = ("--teacher", "models:/demo-teacher@candidate", "--shards", shards, "--out", str(folder / "cache"))
    return [
        Stage(name="shards", command=(python, *build, "--utterances", str(num_utterances))),
        Stage(name="check", command=(python, "shards/check.py", shards)),
        train("text"),
        train("teacher"),
        Stage(name="cache", command=(*launcher(NUM_RANKS), "launch/cache_teacher.py", *cache)),
        train("speech"),
        train("ts"),
        train("cts"),
    ]


def predict_stage(folder: Path) -> Stage:
    """The best student, from the registry, on a few recordings of the corpus."""
    recordings = sorted((folder / "corpus" / "Audios").glob("*.wav"))[:3]
    model = ("--model", "models:/demo-cts@candidate")
    return Stage(name="predict", command=(sys.executable, "launch/predict.py", *model, *map(str, recordings)))


def run_demo(folder: Path, *, num_utterances: int, runs: Path) -> str:
    """Run what is missing of the demo; its table, in Markdown, and the commands that go on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = stage_environment(store_address(folder))
    stages = demo_stages(folder, num_utterances=num_utterances, runs=runs)
    seconds = run_stages(stages, folder, environment=environment)
    seconds |= run_stages([predict_stage(folder)], folder, environment=environment)
    commands = "\n".join(f"{what}:\n  {shlex.join(words)}" for what, words in next_commands(folder).items())
    return f"{demo_table(folder, seconds)}\n\nTo go on, paste here:\n\n{commands}"


def store_address(folder: Path) -> str:
    """The tracking address of the demo in that folder."""
    return sqlite_uri(folder.absolute() / DEMO_STORE.name)


def next_commands(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """The commands to paste after the demo, by what they give; they need no activated environment."""
    python, store = _relative(Path(sys.executable)), store_address(folder)
    shards, page = _relative(folder / "shards"), _relative(folder / "evaluation")
    models = [f"models:/demo-{name}@candidate" for name in ("cts", "speech")]
    compared = ("--model", models[0], "--model", models[1], "--tracking-uri", store)
    recording = next(iter(sorted((folder / "corpus" / "Audios").glob("*.wav"))), Path("YOUR.wav"))
    return {
        "runs and models, at http://127.0.0.1:5000": (python, "-m", "mlflow", "ui", "--backend-store-uri", store),
        f"student and speech-only model compared, {page}/report.html": (
            *(python, "launch/evaluate.py", *compared, "--shards", shards, "--splits", "Test1"),
            *(
                "--teacher-cache",
                _relative(folder / "cache"),
                "--run",
                _relative(folder / "runs" / "cts"),
                "--out",
                page,
            ),
        ),
        "a recording, or your own in its place": (
            *(python, "launch/predict.py", "--model", models[0], "--tracking-uri", store, _relative(recording)),
        ),
    }


def _relative(path: Path) -> str:
    """The path relative to the working directory, if it lies below."""
    here = Path.cwd()
    return str(path.absolute().relative_to(here) if path.absolute().is_relative_to(here) else path)


def demo_table(folder: Path, seconds: dict[str, float]) -> str:
    """CCC on the test split per system, seconds per stage, and what the condition rejected."""
    rows = []
    for name, words in SYSTEMS.items():
        summary = read_summary(folder / "runs" / name)
        ccc = (f"{summary.ccc[dimension]:.3f}" for dimension in DIMENSIONS)
        distilled = summary.distilled_fraction
        rejected = "-" if distilled is None else f"{1 - distilled:.1%}"
        rows.append((words, *ccc, rejected, f"{seconds[name]:.0f}"))
    header = ("system", "activation", "valence", "dominance", "rejected", "seconds")
    others = ", ".join(f"{name} {took:.0f} s" for name, took in seconds.items() if name not in SYSTEMS)
    return "\n".join(
        [
            "CCC on the test split of the spoken demo corpus (one seed: it reports, it compares nothing)",
            "",
            format_table(header, rows),
            "",
            f"other stages: {others}; together {sum(seconds.values()):.0f} s",
        ]
    )
