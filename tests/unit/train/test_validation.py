"""Validations within an epoch and an early end: training itself is not disturbed, and a resume changes nothing."""

import json
from pathlib import Path

import pytest

from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import build_two_kinds, read_history, read_validations, write_run

pytestmark = pytest.mark.long

NUM_STEPS = 12
"""Three epochs of four steps."""

EVERY = "train.eval_steps=3"
AT = [3, 4, 6, 8, 9, 12]
"""Every three steps and at the end of every epoch, once where both come together."""

STANDING = {"name": "sgd", "learning_rate": 1e-12, "lr_scheduler": "constant", "warmup_steps": 0}
"""No weight moves, so that no loss falls."""

PLATEAU = {"lr_scheduler": "plateau", "plateau_patience": 0, "warmup_steps": 0, "learning_rate": 0.1}


def config_for(place: Path, name: str, **sections: dict) -> Path:
    train = {"epochs": 3, "max_steps": 0, "save_steps": 3, "save_total_limit": 9} | sections.pop("train", {})
    return write_run(
        place / f"{name}.toml", place / "shards", place / "runs" / name,
        # Dropout: training draws random numbers, which validations must leave alone.
        model={"dropout": 0.3}, batch={"micro_batch_size": 4}, data={"num_workers": 1},
        optim={"name": "adam", "learning_rate": 3e-3, "lr_scheduler": "cosine", "warmup_steps": 5}
        | sections.pop("optim", {}),
        train=train, **sections,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("validations")
    build_two_kinds(place)

    def checkpoint(of: str, step: int) -> Path:
        return place / "runs" / of / "checkpoints" / f"step-{step:08d}"

    train_plainly(config_for(place, "seldom"))
    train_plainly(config_for(place, "often"), EVERY)
    # This checkpoint holds what the validation at step 6 found; the other is of a step that has not been validated.
    train_plainly(config_for(place, "after"), EVERY, resume="auto", continues=checkpoint("often", 6))
    train_plainly(config_for(place, "before"), EVERY, resume="auto", continues=checkpoint("seldom", 3))
    stop = ("train.early_stopping_patience=2", EVERY)
    early, later, again = (config_for(place, name, optim=STANDING) for name in ("early", "later", "early-resumed"))
    train_plainly(early, *stop)
    train_plainly(again, *stop, resume="auto", continues=checkpoint("early", 3))
    train_plainly(later, *stop)
    train_plainly(later, "train.early_stopping_patience=4", EVERY, resume="auto")
    train_plainly(config_for(place, "plateau", optim=PLATEAU), EVERY)
    return place


def outputs(place: Path, *names: str) -> list[Path]:
    return [place / "runs" / name for name in names]


def weights(output: Path, model: str = "last") -> bytes:
    return (output / model / "model.safetensors").read_bytes()


def test_model_is_validated_every_few_steps_and_at_the_end_of_every_epoch_once(place):
    seldom, often = outputs(place, "seldom", "often")
    assert [line["step"] for line in read_validations(seldom)] == [4, 8, 12]
    lines = read_validations(often)
    assert [line["step"] for line in lines] == AT
    assert [line["step"] for line in lines if "epoch/train_loss" in line] == [4, 8, 12]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]


def test_training_goes_on_as_if_it_had_not_been_validated(place):
    seldom, often = outputs(place, "seldom", "often")
    assert read_history(often) == read_history(seldom)
    assert weights(often) == weights(seldom)
    shared = [line["valid/loss"] for line in read_validations(often) if line["step"] % 4 == 0]
    assert shared == [line["valid/loss"] for line in read_validations(seldom)]


def test_the_best_model_may_come_from_within_an_epoch(place):
    (often,) = outputs(place, "often")
    losses = {line["step"]: line["valid/loss"] for line in read_validations(often)}
    best = min(losses, key=lambda step: losses[step])
    assert json.loads((often / "summary.json").read_text())["best_step"] == best
    bests = [line["step"] for line in read_validations(often) if line["best"]]
    assert bests[-1] == best
    assert json.loads((often / "best" / "model.json").read_text())["extra"]["step"] == best


@pytest.mark.parametrize("resumed", ["after", "before"])
def test_going_on_just_after_or_before_a_validation_is_exact(place, resumed):
    often, again = outputs(place, "often", resumed)
    assert read_validations(again) == read_validations(often)
    assert read_history(again) == read_history(often)
    for model in ("last", "best"):
        assert weights(again, model) == weights(often, model)


def test_training_ends_when_the_loss_has_not_fallen_for_so_many_validations(place):
    # The first validation, at step 3, is the best; those at 4 and 6 are the two without a lower loss.
    for output in outputs(place, "early", "early-resumed"):
        assert [line["step"] for line in read_validations(output)] == [3, 4, 6]
        assert [line["best"] for line in read_validations(output)] == [True, False, False]
        assert len(read_history(output)) == 6
        summary = json.loads((output / "summary.json").read_text())
        assert (summary["steps"], summary["best_step"]) == (6, 3)
        state = json.loads((output / "checkpoints" / "step-00000006" / "state.json").read_text())
        assert (state["finished"], state["since_best"], state["step_in_epoch"]) == (True, 2, 2)
    first, again = outputs(place, "early", "early-resumed")
    assert weights(first) == weights(again)


def test_a_run_that_ended_early_goes_on_under_a_higher_limit(place):
    (later,) = outputs(place, "later")
    assert [line["step"] for line in read_validations(later)] == [3, 4, 6, 8, 9]
    assert [step["step"] for step in read_history(later)] == list(range(1, 10))


def test_plateau_counts_validations_within_epochs_too(place):
    (output,) = outputs(place, "plateau")
    no_better = [line["step"] for line in read_validations(output) if not line["best"]]
    assert set(no_better) & {6, 9}, "one within an epoch"
    for step in read_history(output):
        power = sum(validated < step["step"] for validated in no_better)
        assert step["train/lr_head"] == pytest.approx(0.1 * 0.75**power)


def test_warm_up_and_cosine_stand_in_the_history(place):
    (seldom,) = outputs(place, "seldom")
    rates = [step["train/lr_head"] / 3e-3 for step in read_history(seldom)]
    # A step's line reports the rate that the next one has: 2/5 after the first.
    assert rates[:5] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[-2] == pytest.approx(0.0495156, rel=1e-4)  # (1 + cos(pi 6 / 7)) / 2


@pytest.mark.fast
def test_an_equal_loss_is_no_fall_and_training_ends_when_patience_is_used_up(tmp_path):
    build_two_kinds(tmp_path, num_train=16, num_valid=4)
    still = {**STANDING, "encoder_lr_scale": 0.0}
    config = write_run(
        tmp_path / "still.toml", tmp_path / "shards", tmp_path / "still", optim=still,
        train={"epochs": 9, "max_steps": 0, "early_stopping_patience": 2},
    )  # fmt: skip
    lines = read_validations(train_plainly(config))
    assert len({line["valid/loss"] for line in lines}) == 1
    assert [(line["step"], line["best"]) for line in lines] == [(1, True), (2, False), (3, False)]
