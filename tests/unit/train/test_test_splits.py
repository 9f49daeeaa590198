"""Test splits of a run: each is scored by itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.scoring.measures import SplitSums
from ccts_dist.scoring.predict_split import Scores, pooled_scores
from ccts_dist.train.run import result_lines
from ccts_dist.train.trainer import TrainResult
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import build_two_kinds, write_run


def scores(*rows: tuple[float, float]) -> Scores:
    """Of predictions and labels of one target."""
    n, p, y = float(len(rows)), float(sum(p for p, _ in rows)), float(sum(y for _, y in rows))
    squares = (sum(p * p for p, _ in rows), sum(y * y for _, y in rows), sum(p * y for p, y in rows))
    sums = {"valence": [n, p, y, *map(float, squares), float(sum(abs(p - y) for p, y in rows))]}
    whole = SplitSums.pooled([sums])
    return Scores(
        ccc=whole.ccc(), pearson=whole.pearson(), mae=whole.mae(), num_labels=whole.num_labels(), sums=sums,
        damaged=("one",), loss=0.5,
    )  # fmt: skip


def test_pooled_scores_are_those_of_all_predictions_together():
    right, wrong = scores((0, 0), (1, 1)), scores((1, 0), (0, 1))
    assert (right.ccc, wrong.ccc) == ({"valence": 1.0}, {"valence": -1.0})
    both = pooled_scores([right, right, wrong])
    # Six rows, three times each value: cov = (2 - 1) / 3 * .25, both variances .25, equal means.
    assert both.ccc["valence"] == pytest.approx(1 / 3)
    assert both.mae["valence"] == pytest.approx(1 / 3)
    assert both.num_labels == {"valence": 6}
    assert both.damaged == ("one",) * 3
    assert pooled_scores([wrong]) is wrong


def test_each_test_split_has_its_own_scores(tmp_path: Path):
    build_two_kinds(tmp_path, num_train=16)
    found = {}
    for name, splits in (("one", ["Test1"]), ("other", ["Development"]), ("both", ["Test1", "Development"])):
        run = write_run(
            tmp_path / f"{name}.toml", tmp_path / "shards", tmp_path / name, data={"test_splits": splits},
            train={"max_steps": 1},
        )  # fmt: skip
        found[name] = json.loads((train_plainly(run) / "summary.json").read_text())
    assert found["one"]["test_by_split"] == {}
    both = found["both"]["test_by_split"]
    assert both == {"Test1": found["one"]["test_scores"], "Development": found["other"]["test_scores"]}
    assert both["Test1"]["ccc"] != both["Development"]["ccc"]
    pooled = SplitSums.pooled([found["one"]["test_sums"], found["other"]["test_sums"]])
    assert found["both"]["test"] == pytest.approx(pooled.ccc())


def result(test: dict[str, float], scores: dict[str, Any], by_split: dict[str, Any]) -> TrainResult:
    return TrainResult(
        steps=3, best_epoch=1, best_step=3, valid={}, test=test, test_sums={}, test_scores=scores,
        test_by_split=by_split,
        distilled_fraction=None, seconds=1.0, peak_memory_gb=1.0, peak_memory_reserved_gb=None, resolved={},
    )  # fmt: skip


def test_scores_in_words_are_of_targets_and_of_categories():
    uar = {"categories": {"unweighted_accuracy": 0.5}}
    assert result_lines(result({"valence": 0.25}, {"ccc": {"valence": 0.25}, **uar}, {})) == [
        "done: 3 steps, best epoch 1; test CCC valence 0.250; unweighted accuracy 0.500"
    ]
    by_split = {"Test1": uar, "Test2": {"ccc": {"valence": None}, "categories": {"unweighted_accuracy": None}}}
    assert result_lines(result({}, {}, by_split)) == [
        "done: 3 steps, best epoch 1",
        "  Test1: unweighted accuracy 0.500",
        "  Test2: CCC valence without labels; unweighted accuracy nan",
    ]
