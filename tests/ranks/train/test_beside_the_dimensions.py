"""Categories, the raters' variance and binned labels beside the dimensions: on any ranks and stage, to the end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.inference.predictor import load_student
from ccts_dist.model import load_model
from ccts_dist.scoring.evaluator import Evaluator
from launch import evaluate as evaluate_command
from launch import predict as predict_command
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, read_history, read_validations, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

STEPS = 16
RUNS = {"one rank": (1, "zero0", 12), "two ranks": (2, "zero2", 3), "two ranks, all spread": (2, "zero3", 6)}
TARGETS = ["activation", "valence", "valence.variance"]
SECTIONS = {
    "loss": {"target_weights": [0.2, 0.2, 0.6], "category_weight": 0.5},
    "evaluation": {"bins": [3.0, 5.0]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("beside")
    build_two_kinds(place, beside=True)
    return place


@pytest.fixture(scope="module")
def outputs(place: Path) -> dict[str, Path]:
    jobs: dict[int, list[Job]] = {1: [], 2: []}
    found = {}
    for number, (name, (num_ranks, stage, micro)) in enumerate(RUNS.items()):
        found[name] = place / "runs" / str(number)
        config = write_run(
            place / f"{number}.toml", place / "shards", found[name],
            model={"targets": TARGETS, "categories": ["calm", "tense"]},
            batch={"global_batch_size": 12, "micro_batch_size": micro}, optim={"learning_rate": 0.3},
            train={"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")}, **SECTIONS,
        )  # fmt: skip
        jobs[num_ranks].append(Job(config=config))
    for num_ranks, of_these in jobs.items():
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=600)
    return found


@pytest.mark.parametrize("figure", ["train/loss", "train/loss_category", "train/ccc_valence.variance"])
def test_losses_agree_on_any_ranks_and_stage(outputs, figure: str):
    found = {name: [step[figure] for step in read_history(output)] for name, output in outputs.items()}
    plain = found["one rank"]
    assert len(plain) == STEPS
    assert np.ptp(plain) > 0.01, "nothing was learnt, so nothing was compared"
    for name, others in found.items():
        np.testing.assert_allclose(others, plain, atol=1e-5, err_msg=name)


def loss_by_hand(reported: dict[str, Any], split: str, cross_entropy: str) -> float:
    """The CCCs of ``TARGETS`` and the categories, with the weights of ``SECTIONS``."""
    activation, valence, variance = (reported[f"{split}/ccc_{target}"] for target in TARGETS)
    return (
        0.2 * (1 - activation) + 0.2 * (1 - valence) + 0.6 * (1 - variance) + 0.5 * reported[f"{split}/{cross_entropy}"]
    )


def test_loss_is_the_sum_of_its_parts_with_the_weights_of_the_run_file(outputs):
    for name, output in outputs.items():
        history, validations = read_history(output), read_validations(output)
        assert len(validations) > 1
        for reported in history:
            assert reported["train/loss"] == pytest.approx(
                loss_by_hand(reported, "train", "loss_category"), abs=1e-5
            ), name
        for reported in validations:
            by_hand = loss_by_hand(reported, "valid", "category_cross_entropy")
            assert reported["valid/loss"] == pytest.approx(by_hand, abs=1e-5), name


def test_head_of_the_categories_is_trained_and_saved(outputs):
    weights = {name: load_file(output / "last" / "model.safetensors") for name, output in outputs.items()}
    plain = weights["one rank"]["categories.weight"]
    assert plain.shape == (2, 8)
    for name, others in weights.items():
        assert np.abs(others["categories.weight"] - plain).max() <= 1e-5, name
    losses = [step["train/loss_category"] for step in read_history(outputs["one rank"])]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_validations_and_the_summary_report_what_was_asked_for(outputs):
    summaries = []
    for output in outputs.values():
        validation = read_validations(output)[-1]
        assert {"valid/category_weighted_accuracy", "valid/unweighted_recall_activation"} <= validation.keys()
        assert "valid/unweighted_recall_valence.variance" not in validation, "no rating, so no class of ratings"
        scores = json.loads((output / "summary.json").read_text())["test_scores"]
        assert sum(map(sum, scores["confusion"].values())) == 8, "12 utterances, two of three with a category"
        assert scores["num_labels"] == {"activation": 12, "valence": 12, "valence.variance": 8}
        summaries.append(scores)
    for figure in ("categories", "unweighted_recall", "spearman", "ccc"):
        for others in summaries[1:]:
            assert others[figure] == pytest.approx(summaries[0][figure], abs=1e-4), figure


def test_evaluation_by_command_agrees_with_the_runs_own(place: Path, outputs, tmp_path: Path, capsys):
    best = outputs["one rank"] / "best"
    asked = ["--model", str(best), "--shards", str(place / "shards"), "--splits", "Test1", "--out", str(tmp_path)]
    assert evaluate_command.main([*asked, "--bins", "3", "5"]) == 0
    out = capsys.readouterr().out
    for words in ("Spearman", "unweighted recall", "| calm", "| tense", "macro f1"):
        assert words in out
    found = json.loads((tmp_path / "metrics.json").read_text())["splits"]["Test1"]
    own = json.loads((outputs["one rank"] / "summary.json").read_text())["test_scores"]
    for figure in ("ccc", "spearman", "unweighted_recall", "categories"):
        assert found[figure] == pytest.approx(own[figure], abs=1e-5), figure


def test_evaluation_on_shards_that_know_no_categories_scores_the_dimensions(outputs, tmp_path: Path):
    build_two_kinds(tmp_path, num_train=4, beside=False)
    model = outputs["one rank"] / "best"
    scores = Evaluator(model, tmp_path / "shards", ranks=Ranks(), workers=0).split("Test1").scores
    assert scores.categories == {}
    assert scores.num_labels["valence"] == 12


@pytest.mark.parametrize("bins", [(5.0, 3.0), (0.5,), (3.0, 7.0), (3.0, 3.0)])
def test_bins_that_do_not_rise_within_the_scale_are_refused(place: Path, outputs, bins):
    model = outputs["one rank"] / "best"
    with pytest.raises(ConfigError, match="must rise, and lie between 1 and 7"):
        Evaluator(model, place / "shards", ranks=Ranks(), bins=bins)


def test_student_answers_with_a_category_and_its_probability(place: Path, outputs, capsys):
    student = load_student(outputs["one rank"] / "best")
    files = sorted(place.glob("Test1-*.wav"))[:3]
    answers = student.predict(files)
    assert student.columns == (*TARGETS, "category", "p(calm)", "p(tense)")
    for answer in answers:
        assert tuple(answer) == student.columns
        assert answer["p(calm)"] + answer["p(tense)"] == pytest.approx(1)
        assert answer["category"] == max(("calm", "tense"), key=lambda name: answer[f"p({name})"])
    alone = student.predict([soundfile.read(files[1], dtype="float32")[0]])[0]
    assert alone["p(calm)"] == pytest.approx(answers[1]["p(calm)"], abs=1e-5)
    asked = ["--model", str(outputs["one rank"] / "best"), "--format", "csv", *map(str, files)]
    assert predict_command.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0] == "file," + ",".join(student.columns)


def test_variance_is_reported_on_the_scale_of_the_ratings(place: Path, outputs):
    best, file = outputs["one rank"] / "best", sorted(place.glob("Test1-*.wav"))[0]
    (answer,) = load_student(best).predict([file])
    audio = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]
    with torch.no_grad():
        _, valence, variance = load_model(best).model(audio, torch.tensor([audio.shape[1]])).prediction[0].tolist()
    assert answer["valence"] == pytest.approx(1 + 6 * valence, abs=1e-3)
    assert answer["valence.variance"] == pytest.approx(36 * variance, abs=1e-3)
