"""A model of categories alone: the same on any ranks, chosen by unweighted accuracy, and usable to the end."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.evaluation.options import asked_of
from ccts_dist.evaluation.page import Beside
from ccts_dist.evaluation.results import result_in_words, write_results
from ccts_dist.evaluation.run import run_evaluation
from ccts_dist.export.command import export_model
from ccts_dist.inference.predictor import Predictor
from ccts_dist.model import load_model
from ccts_dist.scoring import read_table
from ccts_dist.shards import open_shard_set
from ccts_dist.train.steps.trainable_loss import check_labels
from launch import evaluate as command
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, read_validations, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

NAMES = ["calm", "tense"]
VOTES = {"category_target": "votes", "class_weights": [1.0, 3.0], "focal_gamma": 1.0}
VARIANTS = {"": {}, "-votes": {"loss": VOTES}, "-balanced": {"batch": {"balanced": True}}}
"""Tables of a run file, by the end of the run's name."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, Path]:
    """By name: one rank, two ranks with several micro-batches; of each variant."""
    place = tmp_path_factory.mktemp("categories")
    build_two_kinds(place, beside=True, votes=True)
    found = {}
    ranks = (("one", 1, 12), ("two", 2, 3))
    for (ending, tables), (first, num_ranks, micro) in product(VARIANTS.items(), ranks):
        name = first + ending
        found[name] = place / "runs" / name
        config = write_run(
            place / f"{name}.toml",
            place / "shards",
            found[name],
            data={"test_splits": ["Test1"]},
            model={"targets": [], "categories": NAMES},
            loss=tables.get("loss", {}),
            batch={"global_batch_size": 12, "micro_batch_size": micro, **tables.get("batch", {})},
            optim={"learning_rate": 0.3},
            train={"max_steps": 12},
        )
        run_on_ranks(run_trainings, num_ranks, [Job(config=config)], timeout_s=600)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_weights_and_validations_agree_on_any_ranks(outputs: dict[str, Path], variant: str):
    one, two = (read_history(outputs[name + variant]) for name in ("one", "two"))
    assert len(one) == len(two) == 12
    assert [row["keys"] for row in one] == [row["keys"] for row in two]
    for name in ("train/loss", "train/loss_category", "train/grad_norm"):
        np.testing.assert_allclose([row[name] for row in one], [row[name] for row in two], rtol=2e-4)
    assert not any(name.startswith(("train/ccc", "train/loss_ccc")) for name in one[0])
    first, second = (load_file(outputs[name + variant] / "best" / "model.safetensors") for name in ("one", "two"))
    for name, weights in first.items():
        np.testing.assert_allclose(weights, second[name], atol=1e-4, err_msg=name)
    assert not any(name.startswith("prediction") for name in first)


def test_balanced_batches_are_others_than_those_drawn_from_all(outputs: dict[str, Path]):
    plain, balanced = (read_history(outputs[name]) for name in ("one", "one-balanced"))
    assert [row["keys"] for row in balanced] != [row["keys"] for row in plain]


def test_votes_train_another_model_and_its_divergence_from_them_is_reported_on_any_ranks(outputs: dict[str, Path]):
    one, two = (read_validations(outputs[name]) for name in ("one-votes", "two-votes"))
    divergence = [row["valid/category_kl_to_votes"] for row in one]
    np.testing.assert_allclose([row["valid/category_kl_to_votes"] for row in two], divergence, atol=1e-5)
    assert min(divergence) > 0
    assert "valid/category_kl_to_votes" not in read_validations(outputs["one"])[0]
    losses = [
        [row["train/loss_category"] for row in read_history(outputs[name])] for name in ("one-votes", "two-votes")
    ]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    assert abs(losses[0][0] - read_history(outputs["one"])[0]["train/loss_category"]) > 0.01
    scores = json.loads((outputs["one-votes"] / "summary.json").read_text())["test_scores"]["categories"]
    assert scores["kl_to_votes"] > 0


def test_votes_that_no_shard_has_are_refused(outputs: dict[str, Path], tmp_path: Path):
    run = read_run(outputs["one-votes"].parents[1] / "one-votes.toml")
    with pytest.raises(ConfigError, match=r"category_target = .votes., and .'Train'. has no votes for two of"):
        check_labels(run, build_two_kinds(tmp_path, num_train=4, num_valid=4, beside=True))


def test_best_model_is_the_one_of_the_highest_unweighted_accuracy(outputs: dict[str, Path]):
    rows = read_validations(outputs["one"])
    best, highest = [], -1.0
    for row in rows:
        best.append(row["valid/uar"] > highest)
        highest = max(highest, row["valid/uar"])
        assert row["valid/uar"] == row["valid/category_unweighted_accuracy"]
        assert row["valid/loss"] == pytest.approx(row["valid/category_cross_entropy"])
    assert [row["best"] for row in rows] == best
    summary = json.loads((outputs["one"] / "summary.json").read_text())
    assert (summary["valid"], summary["test"]) == ({}, {})
    assert 0 <= summary["test_scores"]["categories"]["unweighted_accuracy"] <= 1


def test_its_evaluation_has_recalls_with_intervals_and_no_ccc(outputs: dict[str, Path], tmp_path: Path):
    best, shards = str(outputs["one"] / "best"), str(outputs["one"].parents[1] / "shards")
    arguments = ["--model", best, "--model", str(outputs["two"] / "best"), "--shards", shards, "--splits", "Test1"]
    asked = asked_of(command.parse_args([*arguments, "--out", str(tmp_path)]))
    result = run_evaluation(asked, Ranks())
    write_results(tmp_path, result, Beside())
    words = result_in_words(result)
    assert "unweighted accuracy" in words
    assert "CCC" not in words
    tree = json.loads((tmp_path / "metrics.json").read_text())["splits"]["Test1"]
    table = read_table(tmp_path / "predictions-Test1.parquet")
    recalls = [
        np.mean([guess == name for guess, true in zip(table.predicted_categories, table.categories, strict=True)
                 if true == name])
        for name in NAMES
    ]  # fmt: skip
    assert tree["unweighted_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert tree["categories"]["unweighted_accuracy"] == pytest.approx(np.mean(recalls))
    assert (table.targets, table.known_categories) == ((), tuple(NAMES))
    page = (tmp_path / "report.html").read_text()
    assert "Confusion, categories, Test1" in page
    assert f"<b>{np.mean(recalls):.3f}</b>" in page


def test_its_answers_are_a_category_and_probabilities(outputs: dict[str, Path]):
    student = Predictor(load_model(outputs["one"] / "best"), name="best", device=torch.device("cpu"))
    (answer,) = student.predict([np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)])
    assert list(answer) == ["category", "p(calm)", "p(tense)"]
    assert answer["p(calm)"] + answer["p(tense)"] == pytest.approx(1)
    assert answer["category"] == max(NAMES, key=lambda name: answer[f"p({name})"])


def test_what_needs_targets_is_refused_in_one_line(outputs: dict[str, Path], tmp_path: Path):
    best = outputs["one"] / "best"
    with pytest.raises(ConfigError, match="predicts categories alone, and an ONNX export gives ratings"):
        export_model(str(best), "onnx", tmp_path / "export")
    shard_set = open_shard_set(outputs["one"].parents[1] / "shards")
    with pytest.raises(TeacherError, match="predicts no target, only categories"):
        make_cache(best, shard_set, tmp_path / "cache")
