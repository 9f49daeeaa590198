"""The whole way as the fast tier takes it: every command once, two ranks, a few steps each.

From a table of recordings to shards, a speech + text teacher, its cache, a student that is distilled from it under the
`deepspeed` command, a registered version, and its predictions.
"""

import csv
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mlflow.tracking import MlflowClient

from ccts_dist.records import DIMENSIONS
from tests.helpers.models.small_teacher import WORDS
from tests.helpers.processes.launching import ROOT, environment, launch_well, launcher, run_forked
from tests.helpers.processes.small_runs import SPEECH, read_history, write_run

pytestmark = pytest.mark.fast

TEXT = {
    "encoder": "scratch",
    "vocab_size": 64,
    "scratch": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
STEPS, NUM_TRAIN = 6, 32


def write_corpus(folder: Path) -> Path:
    """A table of recordings of 0.1 to 0.3 s; one of them is missing."""
    draws, rows = np.random.default_rng(4), ["key,audio,split,transcript,speaker,activation,valence,dominance"]
    for number, split in enumerate(["Train"] * NUM_TRAIN + ["Development"] * 8 + ["Test1"] * 8):
        soundfile.write(
            folder / f"{number}.wav", draws.normal(0, 0.1, 1_600 + 100 * int(draws.integers(0, 32))), 16_000
        )
        ratings = ",".join(f"{1 + 6 * rating:.2f}" for rating in draws.random(3))
        rows.append(f"u{number},{number}.wav,{split},{' '.join(draws.choice(WORDS, size=3))},s{number % 4},{ratings}")
    rows.append("gone,gone.wav,Train,never,s0,4,4,4")
    (folder / "corpus.csv").write_text("\n".join(rows) + "\n")
    return folder / "corpus.csv"


def share_within(table: Path, cache: Path, *, deviations: float) -> float:
    """Share of the training utterances whose every residual lies within so many standard deviations, by NumPy."""
    rows = list(csv.DictReader(table.read_text().splitlines()))
    labels = {
        row["key"]: [(float(row[name]) - 1) / 6 for name in DIMENSIONS] for row in rows if row["split"] == "Train"
    }
    pairs = []
    for shard in sorted(cache.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name.partition(".")[0]: tar.extractfile(member).read() for member in tar}
        pairs += [(np.load(io.BytesIO(data))[-3:], labels[key]) for key, data in members.items() if key in labels]
    predicted, rated = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    within = np.ones(len(pairs), dtype=bool)
    for at in range(3):
        residual = np.polyval(np.polyfit(predicted[:, at], rated[:, at], 1), predicted[:, at]) - rated[:, at]
        within &= np.abs(residual) <= deviations * residual.std()
    assert len(pairs) == NUM_TRAIN
    return within.mean()


def command_well(*words: object) -> str:
    done = run_forked([sys.executable, *map(str, words)])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_a_table_of_recordings_to_predictions_of_a_registered_student(tmp_path: Path) -> None:
    shards, cache, store = tmp_path / "shards", tmp_path / "cache", f"sqlite:///{tmp_path}/mlflow.db"
    table = write_corpus(tmp_path)
    build = ("shards/build.py", "manifest", table, "--out", shards, "--processes", 1, "--max-rejected", 0.1)
    command_well(*build)
    assert [line["key"] for line in map(json.loads, (shards / "rejected.jsonl").read_text().splitlines())] == ["gone"]

    train = {"max_steps": STEPS, "epochs": 9, "deepspeed": "ds_configs/zero2.json"}
    teacher = write_run(
        tmp_path / "teacher.toml", shards, tmp_path / "teacher", model={"text": TEXT, "embedding_dim": 8,
            "speech": SPEECH},
        optim={"name": "adam", "learning_rate": 3e-3}, train=train,
    )  # fmt: skip
    launch_well(2, "launch/train.py", "--config", str(teacher))
    assert [step["step"] for step in read_history(tmp_path / "teacher")] == list(range(1, STEPS + 1))

    options = ("--teacher", str(tmp_path / "teacher/best"), "--shards", str(shards), "--out", str(cache))
    launch_well(2, "launch/cache_teacher.py", *options)
    command_well("shards/check.py", shards, "--teacher-cache", cache)

    student = write_run(
        tmp_path / "student.toml", shards, tmp_path / "student", data={"teacher_cache": str(cache)},
        distill={"embedding_weight": 30.0, "threshold": 1.0}, batch={"micro_batch_size": 4}, train=train,
        tracking={"backend": "mlflow", "tracking_uri": store, "registered_model_name": "student"},
    )  # fmt: skip
    # From nothing, as a user's shell starts it.
    command = [*launcher(2), "launch/train.py", "--config", str(student)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = read_history(tmp_path / "student")
    assert len(steps) == STEPS
    assert all(0 < step["distill/fraction"] < 1 for step in steps), "some are distilled, some are not"
    epoch = [step["distill/fraction"] for step in steps[: NUM_TRAIN // 16]]
    assert sum(epoch) / len(epoch) == pytest.approx(share_within(table, cache, deviations=1.0), abs=1e-9)
    summary = json.loads((tmp_path / "student/summary.json").read_text())
    assert set(summary["test"]) == set(DIMENSIONS)

    client = MlflowClient(store)
    version = client.get_model_version_by_alias("student", "candidate")
    (run,) = [run for run in client.search_runs(["1"]) if run.info.run_id == version.run_id]
    assert run.data.metrics["train/loss"] == pytest.approx(steps[-1]["train/loss"])
    predict = ("launch/predict.py", "--model", "models:/student@candidate", "--tracking-uri", store, "--format", "json")
    (prediction,) = json.loads(command_well(*predict, tmp_path / "0.wav"))
    assert all(0 < prediction[name] < 8 for name in DIMENSIONS), prediction
