"""TensorBoard as tracker: what its event files hold, read back by TensorBoard's own reader."""

from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ccts_dist.config.schema import TrackingConfig
from ccts_dist.tracking import Tracking, open_tracking
from ccts_dist.tracking.several import SeveralTrackings

BOARD = TrackingConfig(backend="tensorboard")


def start(output: Path, *, resume: bool = False) -> Tracking:
    return open_tracking(BOARD, run_name="student", output=output, resume=resume)


def read(output: Path, number: int = 1) -> EventAccumulator:
    events = EventAccumulator(str(output / "tensorboard" / f"{number:04d}"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def steps(events: EventAccumulator, key: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in events.Scalars(key)]


def text(events: EventAccumulator, name: str) -> str:
    return events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_metrics_settings_texts_and_pictures_are_in_the_event_file_before_it_is_closed(tmp_path: Path):
    run = start(tmp_path)
    assert isinstance(run, Tracking)
    run.params({"seed": 1, "model": {"targets": ["valence"]}})
    run.metrics({"train/loss": 0.5, "train/ccc_valence": 0.25}, 3)
    run.description("**A student**")
    run.tags({"note": "first"})
    run.inputs(shard_set_digest="abc", splits={"Train": 10}, shards="https://user:secret@host/shards")
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "curves.png")
    run.artifact(tmp_path / "curves.png", "plots")
    run.artifact(tmp_path / "summary.json")
    events = read(tmp_path)
    assert steps(events, "train/loss") == [(3, 0.5)]
    assert steps(events, "train/ccc_valence") == [(3, 0.25)]
    assert '| model.targets | ["valence"] |' in text(events, "params")
    assert text(events, "description") == "**A student**"
    assert text(events, "tags/note") == "first"
    assert '"shard_set_digest": "abc"' in text(events, "inputs")
    assert "secret" not in text(events, "inputs")
    (image,) = events.Images("plots/curves")
    assert (image.width, image.height, image.step) == (4, 3, 3)
    run.close("FINISHED")
    run.close("FAILED")
    assert text(read(tmp_path), "status") == "FINISHED"


def test_resumed_run_holds_no_step_twice_and_a_new_start_leaves_the_old_one_alone(tmp_path: Path):
    first = start(tmp_path)
    for step in range(1, 6):
        first.metrics({"loss": step / 8}, step)
    # Killed: nothing is closed. The checkpoint was of step 3.
    second = start(tmp_path, resume=True)
    for step in range(4, 8):
        second.metrics({"loss": step / 8}, step)
    second.close("FINISHED")
    assert steps(read(tmp_path), "loss") == [(step, step / 8) for step in range(1, 8)]
    third = start(tmp_path)
    third.metrics({"loss": 1.0}, 1)
    third.close("FINISHED")
    assert steps(read(tmp_path, 2), "loss") == [(1, 1.0)]
    assert len(steps(read(tmp_path), "loss")) == 7


def test_disk_that_fails_ends_the_reports_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "tensorboard").write_text("in the way")
    run = start(tmp_path)
    run.metrics({"loss": 1.0}, 1)
    run.flush()
    run.close("FINISHED")
    assert "nothing more is written to TensorBoard; training goes on" in caplog.text


@pytest.mark.integration
def test_both_trackers_get_every_call(tmp_path: Path):
    config = TrackingConfig(backend="mlflow+tensorboard", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = open_tracking(config, run_name="both", output=tmp_path / "run", resume=False)
    assert isinstance(run, SeveralTrackings)
    assert run.run_id
    run.params({"seed": 3})
    run.metrics({"loss": 0.5}, 2)
    run.inputs(shard_set_digest="abc", splits={"Train": 10})
    run.flush()
    run.close("FINISHED")
    assert steps(read(tmp_path / "run"), "loss") == [(2, 0.5)]
    from mlflow import MlflowClient

    found = MlflowClient(config.tracking_uri).get_run(run.run_id)
    assert (found.data.metrics["loss"], found.data.params["seed"], found.info.status) == (0.5, "3", "FINISHED")
