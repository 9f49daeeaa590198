"""Metrics and fields of what revision 6f1fce7 stored are read under today's names."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ccts_dist.config.renamed import present_metric
from ccts_dist.errors import CheckpointError
from ccts_dist.report.comparison import compare_runs
from ccts_dist.report.recorded import read_recorded
from ccts_dist.report.study.plan import Study
from ccts_dist.report.study.results import read_results
from ccts_dist.scoring.gate import gate_from
from ccts_dist.scoring.prediction_table import TeacherColumns, read_table, write_table
from ccts_dist.train.checkpoints.checkpoint import TrainState, read_state
from ccts_dist.train.curves import draw_training
from tests.helpers.examples.tables import make_table

STEP = {
    "step": 1,
    "train/loss": 0.5,
    "train/gradient_norm": 2.0,
    "train/kept_share": 0.75,
    "train/learning_rate_rest": 0.1,
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train/utterances_per_s", "throughput/utterances_per_s"),
        ("train/audio_s_per_s", "throughput/audio_s_per_s"),
        ("train/gradient_norm", "train/grad_norm"),
        ("train/learning_rate_encoder", "train/lr_encoder"),
        ("train/learning_rate_rest", "train/lr_head"),
        ("train/kept_share", "distill/fraction"),
        ("train/kept_share_valence", "distill/fraction_valence"),
        ("train/damaged_utterances", "data/corrupt_utterances"),
        ("train/loss", "train/loss"),
    ],
)
def test_metric_has_todays_name(old: str, new: str):
    assert (present_metric(old), present_metric(new)) == (new, new)


def test_history_and_summary_are_read_and_compared_with_todays(tmp_path: Path):
    present = {present_metric(name): value for name, value in STEP.items()}
    for name, step, share in (("old", STEP, "kept_share"), ("new", present, "distilled_fraction")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.jsonl").write_text(json.dumps(step) + "\n")
        (tmp_path / name / "validations.jsonl").write_text("")
        (tmp_path / name / "summary.json").write_text(json.dumps({share: 0.5}))
    old, new = read_recorded(tmp_path / "old"), read_recorded(tmp_path / "new")
    assert old.steps == new.steps == {1: present}
    assert old.scores == new.scores == {"distilled_fraction": 0.5}
    assert compare_runs(old, new, key="train/gradient_norm").primary.diverges_at is None
    assert draw_training(tmp_path / "old").is_file()


def test_state_of_a_checkpoint_within_an_epoch(tmp_path: Path):
    sums = {"steps": 2.0, "kept": 3.0, "train/gradient_norm": 5.0, "number of train/gradient_norm": 2.0}
    (tmp_path / "state.json").write_text(json.dumps({"step": 4, "kept_share": 0.5, "epoch_sums": sums}))
    today = {"steps": 2.0, "distilled": 3.0, "train/grad_norm": 5.0, "number of train/grad_norm": 2.0}
    assert read_state(tmp_path) == TrainState(step=4, distilled_fraction=0.5, epoch_sums=today)


@pytest.mark.parametrize("text", ["[1]", '{"epoch_sums": 3}'])
def test_state_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="no training state"):
        read_state(tmp_path)


@pytest.mark.parametrize("per_dimension", [False, True])
def test_table_of_predictions(tmp_path: Path, per_dimension: bool):
    table = make_table()
    passes = np.stack([table.duration_s > 3] * 3, axis=1) if per_dimension else table.duration_s > 3
    teacher = TeacherColumns(
        prediction=table.predictions, residual=table.labels, gate_mask=passes, widest=(1.0, 1.0, 1.0)
    )
    write_table(tmp_path / "new.parquet", replace(table, teacher=teacher))
    stored = pq.read_table(tmp_path / "new.parquet")
    renamed = stored.rename_columns([name.replace("gate_mask", "kept") for name in stored.column_names])
    renamed = renamed.replace_schema_metadata(stored.schema.metadata)
    assert renamed.column_names != stored.column_names
    pq.write_table(renamed, tmp_path / "old.parquet")
    found = read_table(tmp_path / "old.parquet").teacher
    assert found is not None
    np.testing.assert_array_equal(found.gate_mask, passes)


def test_robust_fit_of_a_model_folder():
    fit = {"w": [1.0], "b": [0.0], "deviation": [None]}
    gate = gate_from({"distill": {"gate": "any-dimension", "threshold": 2.0, "deviation": "robust", "fit": fit}})
    assert gate.fit == {"w": [1.0], "b": [0.0], "residual_std": [None]}


def test_counts_and_summaries_of_a_study(tmp_path: Path):
    study = Study(folder=tmp_path, percents=(10,), seeds=(17,))
    folder = study.chain_folder(10, 17)
    (folder / "runs" / "cts").mkdir(parents=True)
    ccc = {"activation": 0.5, "valence": 0.25, "dominance": 0.75}
    summary = {"test": ccc, "best_epoch": 3, "seconds": 1.5, "kept_share": 0.875}
    (folder / "runs" / "cts" / "summary.json").write_text(json.dumps(summary))
    counts = {"percent": 10, "seed": 17, "num_wrong": 10, "num_right": 90, "wrong_left_out": 8, "right_left_out": 3}
    (folder / "left_out.json").write_text(json.dumps(counts))
    results = read_results(study)
    assert [run.distilled_fraction for run in results.runs] == [0.875]
    assert [(one.wrong_rejected, one.right_rejected) for one in results.gate_counts] == [(8, 3)]
