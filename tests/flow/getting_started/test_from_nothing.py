"""From an empty folder to a model by the commands of the README, without a file edited by hand."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.examples import open_examples
from tests.helpers.examples.corpus_examples import Example, SourceUtterance, write_lines, write_recording
from tests.helpers.processes.launching import ROOT, environment, run_forked
from tests.tiers import with_long


def datasets_folder(root: Path) -> Example:
    """A folder as ``datasets`` reads it: three splits with audio and a table each."""
    stated = {}
    for split, num in (("train", 12), ("validation", 5), ("test", 5)):
        lines = ["file_name,sentence,mood,who,id"]
        for number in range(num):
            name, mood = f"{split}{number}", float(1 + (7 * number + num) % 5)
            write_recording(root / split / f"{name}.wav", number)
            lines.append(f"{name}.wav,words of {name},{mood},{split[0]}{number % 2},{name}")
            stated[name] = SourceUtterance(
                split=split, transcript=f"words of {name}", speaker=f"{split[0]}{number % 2}", ratings={"valence": mood}
            )
        write_lines(root / split / "metadata.csv", lines)
    return Example(path=root, root=root, utterances=stated, rejected={}, scale=(1.0, 5.0))


_COLUMNS = ["--text", "sentence", "--speaker", "who", "--key", "id", "--target", "valence=mood", "--scale", "1", "5"]

CORPORA: dict[str, tuple[Callable[[Path], Example], list[str], list[str]]] = {
    "crema-d": (open_examples.crema_d, [], ["--with-text"]),
    "ravdess": (open_examples.ravdess, [], []),
    "meld": (open_examples.meld, [], ["--with-text"]),
    "hf": (datasets_folder, _COLUMNS, ["--with-text"]),
}
"""Look-alike, options of its build, options of ``init`` beside ``--small``."""


def command(place: Path, script: str, *words: str, ranks: bool = False) -> str:
    """What a command prints that is run in ``place``; fails unless it exits with 0."""
    own = ["-m", "ccts_dist", script] if not ranks else [str(ROOT / "launch" / f"{script}.py")]
    done = run_forked([sys.executable, *own, *words], cwd=place, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{script}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def built(place: Path, name: str) -> Example:
    """Build the shard set ``SHARDS`` of a look-alike in ``place``."""
    make, options, _ = CORPORA[name]
    example = make(place / "corpus")
    words = [name, str(example.path), "--out", "SHARDS", "--max-rejected", "0.9", "--processes", "1", *options]
    command(place, "build", *words)
    return example


def check_labels(place: Path, example: Example) -> None:
    """Compare labels, splits and words in the shards with those that were typed by hand."""
    from ccts_dist.shards import open_shard_set

    shards, (low, high), found = open_shard_set(place / "SHARDS"), example.scale, {}
    for entry in shards.manifest.shards:
        rows = shards.rows(entry.name)
        for row in range(len(rows)):
            found[rows.keys[row]] = json.loads(shards.member(rows, row, "json"))
    assert set(found) == set(example.utterances)
    for key, stated in example.utterances.items():
        labels = {name: label for name, label in found[key]["labels"].items() if label is not None}
        assert labels == pytest.approx({name: (value - low) / (high - low) for name, value in stated.ratings.items()})
        assert [found[key][fact] for fact in ("split", "transcript", "category")] == [
            stated.split, stated.transcript, stated.category
        ]  # fmt: skip


@pytest.mark.parametrize("name", with_long(["crema-d"], CORPORA))
def test_run_file_written_for_a_corpus_passes_its_check(name: str, tmp_path: Path):
    check_labels(tmp_path, built(tmp_path, name))
    stated = command(tmp_path, "init", "SHARDS", "--small", *CORPORA[name][2], "-o", "run.toml")
    assert stated == "wrote run.toml; check it: ccts train run.toml --check\n"
    assert "check passed" in command(tmp_path, "train", "run.toml", "--check")
    keys = [line for line in (tmp_path / "run.toml").read_text().splitlines() if " = " in line and line[0] != "#"]
    shapes = [line for line in keys if "#" not in line]
    assert len(keys) - len(shapes) > 20
    assert all(line.split(" = ")[0] not in ("run_name", "shards", "epochs", "targets") for line in shapes)


def test_whole_way_from_an_empty_folder(tmp_path: Path):
    built(tmp_path, "hf")
    short = ["train.epochs=2", "tracking.backend=none", "tracking.registered_model_name="]
    command(tmp_path, "check", "SHARDS")
    command(tmp_path, "init", "SHARDS", "--with-text", "--small", "-o", "teacher.toml")
    command(tmp_path, "train", "teacher.toml", *short, ranks=True)
    command(tmp_path, "cache_teacher", "--teacher", "runs/teacher", "--shards", "SHARDS", "--out", "CACHE", ranks=True)
    command(tmp_path, "init", "SHARDS", "--teacher-cache", "CACHE", "--small", "-o", "student.toml")
    command(tmp_path, "train", "student.toml", *short, ranks=True)
    scores = ["--shards", "SHARDS", "--split", "test", "--out", "SCORES"]
    assert "valence" in command(tmp_path, "evaluate", "-m", "runs/student", *scores, ranks=True)
    assert (tmp_path / "SCORES" / "report.html").is_file()
    words = ["-m", "ccts_dist", "export", "-m", "runs/student", "--format", "onnx", "--out", "ONNX"]
    # Not forked: torch traces integers as tensors, which the tests' checks of arguments refuse.
    subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment({"PYTHONPATH": str(ROOT)}), check=True)
    assert (tmp_path / "ONNX" / "model.onnx").is_file()
    write_recording(tmp_path / "a.wav", 1)
    answers = json.loads(command(tmp_path, "predict", "-m", "runs/student", "--format", "json", "a.wav"))
    assert 1.0 <= answers[0]["valence"] <= 5.0
