"""Values that a run finds for what its run file leaves open: the same in everything that the run leaves behind."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.evaluation.options import Asked
from ccts_dist.evaluation.results import Beside, result_in_words, write_results
from ccts_dist.evaluation.run import run_evaluation
from ccts_dist.model import load_model
from ccts_dist.registry.lineage import epoch_of, lineage_of
from ccts_dist.report.recorded import read_recorded
from ccts_dist.shards.format.sealed_json import sealed_bytes
from ccts_dist.tracking.run_file import read_run_file
from ccts_dist.train.experiment import check_experiment
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, read_validations, write_run

OPEN = {"gate": "any-dimension", "reject_fraction": 0.25, "embedding_weight": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A student that leaves a share out, tracked; four steps an epoch in two micro-batches each."""
    place = tmp_path_factory.mktemp("recorded")
    make_cache(save_small_teacher(place / "teacher"), build_two_kinds(place), place / "cache")
    train_plainly(
        write_run(
            place / "run.toml", place / "shards", place / "run",
            data={"teacher_cache": str(place / "cache")}, distill=OPEN, batch={"micro_batch_size": 8},
            train={"epochs": 3, "max_steps": 0},
            tracking={"backend": "mlflow+tensorboard", "tracking_uri": f"sqlite:///{place}/mlflow.db",
                "experiment_name": "recorded", "every_steps": 2},
        )
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def threshold(place: Path) -> float:
    """That which the share gives, found anew; not the default."""
    with check_experiment(read_run(place / "run.toml"), 1) as experiment:
        assert experiment.objective.distill is not None
        assert abs(experiment.objective.distill.threshold - 2.0) > 0.1
        return experiment.objective.distill.threshold


def tree(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_run_file_checkpoint_summary_and_model_have_the_threshold_that_was_used(place: Path, threshold: float):
    run = place / "run"
    assert (
        tomllib.loads((run / "run.toml").read_text())["distill"] | OPEN | {"threshold": threshold}
        == (tomllib.loads((run / "run.toml").read_text())["distill"])
    )
    (checkpoint, *_) = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    assert tree(checkpoint / "manifest.json")["run"]["distill"]["threshold"] == threshold
    assert tree(run / "summary.json")["resolved"]["distill.threshold"] == threshold
    for model in ("best", "last"):
        extra = tree(run / model / "model.json")["extra"]
        assert extra["distill"] == {"gate": "any-dimension", "threshold": threshold, "reject_fraction": 0.25}
        assert extra["resolved"]["distill.threshold"] == threshold
    assert lineage_of(load_model(run / "best"), "", "", {})["gate"].startswith("any-dimension at ")


def test_tracker_has_the_threshold_and_every_other_value_that_was_open(place: Path, threshold: float):
    params = MlflowClient(f"sqlite:///{place}/mlflow.db").get_run(read_run_file(place / "run").run_id).data.params
    assert float(params["distill.threshold"]) == threshold
    assert params["distill.reject_fraction"] == "0.25"
    kept = tree(place / "run" / "summary.json")["resolved"]
    assert {key: json.loads(value) if isinstance(kept[key], float | int | list | bool) else value
            for key in kept for value in [params[f"resolved.{key}"]]} == kept  # fmt: skip
    assert kept["loss.target_weights"] == [1 / 3] * 3
    assert kept["data.pad_multiple_s"] == 0.0
    assert kept["batch.forward_rounds"].startswith("one round: graphs of 2 micro-batches")
    assert kept["train.total_steps"] == 12
    assert kept["batch.largest_global_batch"] == 16
    assert kept["batch.micro_batches"] == [2, 2]
    assert kept["train.zero_stage"] == 2
    assert kept["train.num_ranks"] == 1
    assert kept["train.device"] == "cpu"
    assert kept["optim.lr_head"] == 1e-2
    assert kept["model.speech.do_normalize"] is False


def test_both_trackers_have_every_second_step_and_mlflow_says_what_the_run_is(place: Path):
    client, run_id = MlflowClient(f"sqlite:///{place}/mlflow.db"), read_run_file(place / "run").run_id
    even = list(range(2, 13, 2))
    assert [one.step for one in client.get_metric_history(run_id, "train/loss")] == even
    board = EventAccumulator(str(place / "run" / "tensorboard" / "0001")).Reload()
    assert [one.step for one in board.Scalars("train/loss")] == even
    assert board.Images("plots/curves")
    assert [row["step"] for row in read_history(place / "run")] == list(range(1, 13))
    run = client.get_run(run_id)
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("**Student of speech.** It predicts activation, valence, dominance.")
    assert "gate any-dimension" in description
    test = tree(place / "run" / "summary.json")["test"]
    assert f"| CCC | {' | '.join(f'{value:.3f}' for value in test.values())} |" in description
    assert {one.dataset.name for one in run.inputs.dataset_inputs} > {"teacher cache"}


def test_ds_config_is_kept_beside_the_run_file_that_names_it(place: Path):
    assert tree(place / "run" / "ds_config.json") == tree(Path("ds_configs/zero2.json"))


def test_settings_in_a_summary_are_no_scores(place: Path):
    assert not [name for name in read_recorded(place / "run").scores if "resolved" in name]


@pytest.mark.parametrize("gate", ["any-dimension", "of another run"])
def test_evaluation_counts_by_the_gate_of_the_models_run(place: Path, threshold: float, tmp_path: Path, gate: str):
    model = place / "run" / "best"
    if gate == "of another run":
        model = tmp_path / "model"
        shutil.copytree(place / "run" / "best", model)
        described = tree(model / "model.json")
        described.pop("seal")
        described["extra"]["distill"] = {"gate": "per-dimension", "threshold": 0.5, "reject_fraction": 0.0}
        (model / "model.json").write_bytes(sealed_bytes(described))
    asked = Asked(models=(str(model),), shards=str(place / "shards"), splits=("Train",), out=tmp_path,
                  teacher_cache=str(place / "cache"))  # fmt: skip
    result = run_evaluation(asked, Ranks())
    write_results(tmp_path, result, Beside())
    found, page = tree(tmp_path / "metrics.json")["splits"]["Train"], (tmp_path / "report.html").read_text()
    if gate == "any-dimension":
        assert found["gate"] == {"name": "any-dimension", "threshold": threshold, "of_run": True}
        assert found["distilled_fraction"] == 0.75  # of 64 labelled utterances, 16 are omitted
        assert f"Gate: any-dimension at {threshold:.4g} standard deviations (of this model&#39;s run)" in page
    else:
        assert found["gate"] == {"name": "per-dimension", "threshold": 0.5, "of_run": True}
        assert 0 < found["distilled_fraction"] < 0.75
        assert "Gate: per-dimension at 0.5 standard deviations" in result_in_words(result)


def test_epoch_of_a_model_is_that_of_the_summary_counted_from_1(place: Path):
    run = place / "run"
    best = tree(run / "summary.json")["best_epoch"]
    (line,) = [line for line in read_validations(run) if line["step"] == tree(run / "summary.json")["best_step"]]
    assert best == line["epoch"] + 1
    assert epoch_of(load_model(run / "best").extra) == best
    assert epoch_of(load_model(run / "last").extra) == 3


@pytest.mark.parametrize(
    ("extra", "epoch"),
    [
        ({"epoch": 7, "valid_ccc": {"valence": 0.5}}, 8),
        ({"epoch": 9, "valid_ccc": {}}, 9),
        ({"epoch": 8, "valid_ccc": {"valence": 0.5}, "resolved": {}}, 8),
        ({}, None),
    ],
    ids=["best of an earlier version", "last of an earlier version", "today", "unknown"],
)
def test_epoch_of_a_folder_of_an_earlier_version_is_counted_from_1_too(extra: dict, epoch: int | None):
    assert epoch_of(extra) == epoch
