"""Micro-batches cut by seconds, in one round and in two: the losses of the same batches cut by count."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.train.checkpoints.checkpoint import find_checkpoint, read_state
from ccts_dist.train.experiment import open_experiment
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

STEPS, SAVED_AT = 12, 6
STAGES = (0, 1, 2, 3)
BY_COUNT = {"micro_batch_size": 4}
BY_SECONDS = {"micro_batch_size": 8, "micro_batch_seconds": 2.0, "micro_batch_overhead_seconds": 0.1}
"""Long utterances last .4 s, short ones .1."""

ROUNDS = ("auto", "one", "two")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards of two kinds of utterance and a teacher's cache of them."""
    folder = tmp_path_factory.mktemp("seconds")
    make_cache(save_small_teacher(folder / "teacher"), build_two_kinds(folder), folder / "cache")
    return folder


def config_for(place: Path, name: str, stage: int, batch: dict) -> Path:
    return write_run(
        place / f"{name}.toml", place / "shards", place / "runs" / name,
        data={"teacher_cache": str(place / "cache")},
        distill={"embedding_weight": 1.0, "prediction_weight": 0.5, "gate": "any-dimension", "threshold": 0.6},
        batch=batch, train={"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs" / f"zero{stage}.json")},
    )  # fmt: skip


def jobs_for(place: Path, num_ranks: int, cases: Sequence[tuple[int, str]], tag: str = "") -> list[Job]:
    """For each stage and number of rounds by seconds, stopped in between and resumed; and by count as a whole."""
    jobs = [Job(config=config_for(place, f"count-{num_ranks}{tag}", 2, BY_COUNT))]
    for stage, rounds in cases:
        batch = {**BY_SECONDS, "forward_rounds": rounds}
        config = config_for(place, f"{rounds}-{stage}-{num_ranks}{tag}", stage, batch)
        jobs += [Job(config=config, set=(f"train.max_steps={SAVED_AT}",)), Job(config=config, resume="auto")]
    return jobs


def losses(place: Path, name: str) -> np.ndarray:
    steps = read_history(place / "runs" / name)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    return np.array([step["train/loss"] for step in steps])


def check_against_count(place: Path, num_ranks: int, cases: Sequence[tuple[int, str]], tag: str = "") -> None:
    expected = losses(place, f"count-{num_ranks}{tag}")
    assert np.isfinite(expected).all()
    assert abs(expected[0] - expected[-1]) > 0.01, "nothing was learnt, so nothing was compared"
    keys = [step["keys"] for step in read_history(place / "runs" / f"count-{num_ranks}{tag}")]
    for stage, rounds in cases:
        name = f"{rounds}-{stage}-{num_ranks}{tag}"
        assert [step["keys"] for step in read_history(place / "runs" / name)] == keys
        print(name, np.abs(losses(place, name) - expected).max())
        assert np.abs(losses(place, name) - expected).max() <= 1e-5, name


def test_losses_cut_by_seconds_are_those_cut_by_count_on_two_ranks_under_zero_2(place):
    cases = [(2, rounds) for rounds in ROUNDS]
    run_on_ranks(run_trainings, 2, jobs_for(place, 2, cases), timeout_s=300)
    check_against_count(place, 2, cases)
    recorded = {}
    for rounds in ROUNDS:
        found = find_checkpoint(place / "runs" / f"{rounds}-2-2", lambda _: None)
        assert found is not None
        recorded[rounds] = read_state(found[0]).graph_samples
    assert recorded["one"] is None
    assert recorded["two"] is None
    assert recorded["auto"] is not None
    assert recorded["auto"] > 16 * 6_600, "it follows from the memory of this machine, and all graphs fit"


def test_number_of_micro_batches_differs_from_step_to_step(place):
    """What makes the runs above a test of a boundary that is set by hand."""
    experiment = open_experiment(read_run(config_for(place, "numbers", 2, BY_SECONDS)), Ranks(rank=0, num_ranks=2))
    numbers = {len(step.micro_batches) for step in experiment.loader.epoch(0)}
    experiment.close()
    assert len(numbers) > 1


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_losses_cut_by_seconds_are_those_cut_by_count_under_every_stage(place, num_ranks):
    """Each stage with each number of ranks, and both with each number of rounds, of which ZeRO-3 has one.

    All three at once state nothing new: rounds are taken before the stage reduces, and ranks share a batch before
    either.
    """
    cases = [(stage, ROUNDS[(stage + num_ranks) % 3] if stage < 3 else "auto") for stage in STAGES]
    run_on_ranks(run_trainings, num_ranks, jobs_for(place, num_ranks, cases, "-stages"), timeout_s=900)
    check_against_count(place, num_ranks, cases, "-stages")
