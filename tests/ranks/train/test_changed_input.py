"""Windows, noise and speed, validations within an epoch and an early end: on two real ranks as on one."""

import pytest

from tests.helpers.processes.small_runs import build_two_kinds, read_history, read_validations, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

CHANGED = {
    "data": {"max_duration_s": 0.2},
    "augment": {"noises": ["pink", "babble"], "snr_db": [0, 10], "speed": [0.9, 1.1]},
    "optim": {"lr_scheduler": "linear", "warmup_steps": 3},
    "train": {"max_steps": 10, "eval_steps": 3},
}
STANDING = {
    "optim": {"learning_rate": 1e-12},
    "train": {"epochs": 3, "max_steps": 0, "eval_steps": 3, "early_stopping_patience": 2},
}
"""No weight moves, so that no loss falls."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("changed")
    build_two_kinds(place)
    for num_ranks in (1, 2):
        jobs = [
            Job(config=write_run(place / f"{name}.toml", place / "shards", place / f"{name}-{num_ranks}", **sections))
            for name, sections in (("changed", CHANGED), ("standing", STANDING))
        ]
        run_on_ranks(run_trainings, num_ranks, jobs, timeout_s=600)
    return place


def test_losses_agree_on_one_and_two_ranks(place):
    one, two = (read_history(place / f"changed-{num_ranks}") for num_ranks in (1, 2))
    assert [step["keys"] for step in one] == [step["keys"] for step in two]
    assert [step["train/lr_head"] for step in one] == [step["train/lr_head"] for step in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)
    for num_ranks in (1, 2):
        assert [line["step"] for line in read_validations(place / f"changed-{num_ranks}")] == [3, 4, 6, 8, 9, 10]


def test_one_and_two_ranks_end_early_at_the_same_step(place):
    for num_ranks in (1, 2):
        # The first validation is the best; those at 4 and 6 are the two without a lower loss.
        assert [line["step"] for line in read_validations(place / f"standing-{num_ranks}")] == [3, 4, 6]
        assert len(read_history(place / f"standing-{num_ranks}")) == 6
