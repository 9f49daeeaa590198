"""One run file, one and two ranks, some of them under the real launcher: the same batches, losses and weights."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccts_dist.config import BatchConfig, DataConfig, read_run
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.comparison import compare_runs
from ccts_dist.report.comparison_text import verdict
from ccts_dist.report.recorded import read_recorded
from ccts_dist.shards.merge import merge_shards
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.train.experiment import open_experiment
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.small_runs import LONG, build_two_kinds, make_cache, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

DISTIL = {"embedding_weight": 1.0, "embedding_loss": "mse", "prediction_weight": 0.5}
SETTINGS = {
    "without teacher": None,
    "distilled": {**DISTIL, "gate": "none"},
    "rank 0 gated out": {**DISTIL, "gate": "any-dimension", "threshold": 0.6},
    "soft": {**DISTIL, "gate": "soft", "embedding_loss": "cosine", "prediction_loss": "ccc"},
    "a share omitted": {**DISTIL, "gate": "per-dimension", "reject_fraction": 0.4},
}
LAUNCHED = "rank 0 gated out"
MANY_PASSES = ("distilled", "soft", "a share omitted")
"""Runs that take four micro-batches a step on one rank and one on two: that must not matter either."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards of two kinds of utterance and a teacher's cache of them."""
    folder = tmp_path_factory.mktemp("ranks")
    shard_set = build_two_kinds(folder)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


def config_for(place: Path, name: str, num_ranks: int, distil: dict | None, **sections: dict) -> Path:
    if distil is not None:
        sections = {"distill": distil, "data": {"teacher_cache": str(place / "cache")}, **sections}
    return write_run(
        place / f"{name}-{num_ranks}.toml", place / "shards", output_of(place, name, num_ranks), **sections
    )


def output_of(place: Path, name: str, num_ranks: int) -> Path:
    return place / "runs" / name / str(num_ranks)


def train(place: Path, name: str, num_ranks: int, distil: dict | None, **sections: dict) -> Path:
    launch_well(num_ranks, "launch/train.py", "--config", str(config_for(place, name, num_ranks, distil, **sections)))
    return output_of(place, name, num_ranks)


def fifty_steps(setting: str, num_ranks: int) -> dict:
    micro = 4 if setting in MANY_PASSES and num_ranks == 1 else 16
    return {"distil": SETTINGS[setting], "batch": {"micro_batch_size": micro}}


MICRO_BATCH = {"loss": {"scope": "micro-batch"}, "batch": {"micro_batch_size": 4}, "train": {"max_steps": 12}}


@pytest.fixture(scope="module")
def without_launcher(place):
    """All that the launcher is not asked for, one after the other in ranks that are there already."""
    for ranks in (1, 2):
        configs = [config_for(place, name, ranks, **fifty_steps(name, ranks)) for name in SETTINGS if name != LAUNCHED]
        configs.append(config_for(place, "micro-batch", ranks, SETTINGS[LAUNCHED], **MICRO_BATCH))
        run_on_ranks(run_trainings, ranks, [Job(config=config) for config in configs], timeout_s=900)


@pytest.fixture
def one_and_two(place, setting, request):
    """The folders of a setting's run on one rank and of that on two."""
    if setting == LAUNCHED:
        return [train(place, setting, ranks, **fifty_steps(setting, ranks)) for ranks in (1, 2)]
    request.getfixturevalue("without_launcher")
    return [output_of(place, setting, ranks) for ranks in (1, 2)]


@pytest.mark.parametrize(
    "setting", [name if name == LAUNCHED else pytest.param(name, marks=pytest.mark.long) for name in SETTINGS]
)
def test_losses_of_fifty_steps_and_final_weights_agree_on_one_and_two_ranks(setting, one_and_two):
    one, two = one_and_two
    compared = compare_runs(read_recorded(one), read_recorded(two), tolerance=1e-5)
    assert compared.num_steps == (50, 50)
    assert compared.same_steps
    assert (compared.keys_known, compared.keys_part_at) == (True, None)
    assert compared.agrees, verdict(compared)
    weights_one, weights_two = (load_file(output / "last" / "model.safetensors") for output in (one, two))
    assert weights_one.keys() == weights_two.keys()
    assert max(np.abs(weights_one[name] - weights_two[name]).max() for name in weights_one) <= 1e-5
    steps = read_history(two)
    assert steps[0]["train/loss"] != steps[-1]["train/loss"], "nothing was learnt, so nothing was compared"
    assert all(np.isfinite(step["train/loss"]) for step in steps), "two runs without a loss agree as well"
    if setting == LAUNCHED:
        fractions = [step["distill/fraction"] for step in steps]
        assert min(fractions) > 0
        assert sum(fractions[:4]) / 4 == pytest.approx(0.5, abs=0.1), "the short ones are kept, the long ones are not"
    if setting == "a share omitted":
        shares = [step[f"distill/fraction_{target}"] for step in steps for target in DIMENSIONS]
        assert 0.6 < sum(shares) / len(shares) < 1, "of 40 % some dimension is omitted, of none all"


@pytest.mark.long
def test_losses_by_micro_batch_agree_where_the_micro_batches_are_the_same(place, without_launcher):
    """Four micro-batches of one rank and two of two ranks are the same four parts of a batch."""
    one, two = (output_of(place, "micro-batch", ranks) for ranks in (1, 2))
    compared = compare_runs(read_recorded(one), read_recorded(two), tolerance=1e-5)
    assert compared.num_steps == (12, 12)
    assert (compared.keys_known, compared.keys_part_at) == (True, None)
    assert compared.agrees, verdict(compared)
    experiment = open_experiment(read_run(place / "micro-batch-1.toml"), Ranks())
    experiment.close()
    assert experiment.objective.scope == "micro-batch", "the exact loss agrees on any ranks"


def test_rank_0_has_batches_of_long_utterances_alone(place):
    """What makes the run above one in which a rank has nothing to distil."""
    loader = Loader(
        open_shard_set(place / "shards"), ("Train",), batch=BatchConfig(global_batch_size=16, micro_batch_size=16),
        data=DataConfig(shards="", num_workers=0, bucket_batches=1), targets=DIMENSIONS, seed=3,
        ranks=Ranks(rank=0, num_ranks=2),
    )  # fmt: skip
    long_alone = [all(batch.num_samples >= LONG) for step in loader.epoch(0) for batch in step.micro_batches]
    assert sum(long_alone) >= len(long_alone) / 2


def test_training_on_merged_shards_is_bit_equal_to_the_side_car(place):
    distil = SETTINGS[LAUNCHED]
    side_car = train(place, "side-car", 2, distil, train={"max_steps": 9})
    shard_set = open_shard_set(place / "shards")
    merge_shards(shard_set, open_teacher_cache(place / "cache", shard_set), place / "merged")
    output = place / "runs" / "merged"
    config = write_run(
        place / "merged.toml", place / "merged", output, distill=distil, data={"teacher_cache": "merged"},
        train={"max_steps": 9},
    )  # fmt: skip
    launch_well(2, "launch/train.py", "--config", str(config))
    assert read_history(output) == read_history(side_car)
    assert (output / "last/model.safetensors").read_bytes() == (side_car / "last/model.safetensors").read_bytes()


def test_first_reduced_gradient_and_every_steps_keys_agree_with_adam(place):
    gradients, keys = [], []
    for num_ranks in (1, 2):
        output = place / "runs" / f"adam-{num_ranks}"
        config = write_run(
            place / f"adam-{num_ranks}.toml", place / "shards", output, distill=SETTINGS[LAUNCHED],
            data={"teacher_cache": str(place / "cache")}, optim={"name": "adam", "learning_rate": 1e-3},
            train={"max_steps": 12},
        )  # fmt: skip
        launch_well(num_ranks, "tests/helpers/ranks/record_gradients.py", "--config", str(config))
        gradients.append(load_file(output / "gradients.safetensors"))
        keys.append([step["keys"] for step in read_history(output)])
    assert keys[0] == keys[1]
    assert len(keys[0]) == 12
    one = np.concatenate([gradients[0][name].ravel() for name in sorted(gradients[0])]).astype(np.float64)
    two = np.concatenate([gradients[1][name].ravel() for name in sorted(gradients[1])]).astype(np.float64)
    assert np.linalg.norm(one) > 0
    assert np.linalg.norm(one - two) / np.linalg.norm(one) <= 1e-6
