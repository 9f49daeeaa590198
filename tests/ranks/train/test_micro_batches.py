"""A global batch in one piece, or cut into micro-batches and over ranks: the same losses, weights and gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

CUTS = {"1x1": (1, 16), "1x4": (1, 4), "2x2": (2, 4), "4x1": (4, 4)}
"""Ranks x micro-batches: number of ranks, and most utterances of one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """For each cut, 50 steps of SGD and two of Adam; the distilled loss, whose gate leaves whole micro-batches out."""
    place = tmp_path_factory.mktemp("micro-batches")
    make_cache(save_small_teacher(place / "teacher"), build_two_kinds(place), place / "cache")
    for num_ranks in sorted({ranks for ranks, _ in CUTS.values()}):
        jobs = []
        for cut, (ranks, micro) in CUTS.items():
            if ranks == num_ranks:
                jobs += [
                    Job(config=config_for(place, cut, micro, optimizer), record_gradient=True)
                    for optimizer in (*OPTIM, *GATED)
                ]
        run_on_ranks(run_trainings, num_ranks, jobs, timeout_s=600)
    return place


OPTIM = {"sgd": ({"name": "sgd", "learning_rate": 1e-2}, 50), "adam": ({"name": "adam", "learning_rate": 1e-3}, 2)}


GATED = {
    "random": {"gate": "random", "reject_fraction": 0.4},
    "robust": {"residual_scale": "robust", "gate_targets": ["valence"], "threshold": 1.0},
    "keys": {"gate": "keys"},
}


def config_for(place: Path, cut: str, micro: int, optimizer: str) -> Path:
    optim, steps = OPTIM.get(optimizer, OPTIM["adam"])
    gate: dict[str, Any] = GATED.get(optimizer, {"gate": "any-dimension", "threshold": 0.6})
    if gate.get("gate") == "keys":
        keys = place / "keys.txt"
        keys.write_text("".join(f"Train_{number}\n" for number in range(0, 64, 3)))
        gate = gate | {"gate_keys": str(keys)}
    return write_run(
        place / f"{cut}-{optimizer}.toml", place / "shards", place / "runs" / f"{cut}-{optimizer}",
        data={"teacher_cache": str(place / "cache")},
        distill={"embedding_weight": 1.0, "prediction_weight": 0.5, **gate},
        batch={"micro_batch_size": micro}, optim=optim, train={"max_steps": steps},
    )  # fmt: skip


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "1x1"])
def test_losses_of_fifty_steps_and_final_weights_are_those_of_one_big_batch(place, cut):
    whole, parts = place / "runs" / "1x1-sgd", place / "runs" / f"{cut}-sgd"
    one, other = read_history(whole), read_history(parts)
    assert len(one) == 50
    assert [step["keys"] for step in one] == [step["keys"] for step in other]
    losses = np.array([[step["train/loss"] for step in steps] for steps in (one, other)])
    assert abs(losses[0, 0] - losses[0, -1]) > 0.01, "nothing was learnt, so nothing was compared"
    weights = [load_file(output / "last" / "model.safetensors") for output in (whole, parts)]
    off = max(np.abs(weights[0][name] - weights[1][name]).max() for name in weights[0])
    print(cut, "losses", np.abs(losses[0] - losses[1]).max(), "weights", off)
    assert np.abs(losses[0] - losses[1]).max() <= 1e-5
    assert off <= 1e-5


@pytest.mark.parametrize("of", ["adam", *GATED])
@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "1x1"])
def test_first_reduced_gradient_with_adam_is_that_of_one_big_batch(place, cut, of):
    gradients = [load_file(place / "runs" / f"{name}-{of}" / "gradients.safetensors") for name in ("1x1", cut)]
    assert gradients[0].keys() == gradients[1].keys()
    one, other = (
        np.concatenate([gradient[name].ravel() for name in sorted(gradient)]).astype(np.float64)
        for gradient in gradients
    )
    assert np.linalg.norm(one) > 0
    print(cut, "gradient", np.linalg.norm(one - other) / np.linalg.norm(one))
    assert np.linalg.norm(one - other) / np.linalg.norm(one) <= 1e-6


def test_each_gate_distils_others(place):
    fractions = {of: read_history(place / "runs" / f"1x1-{of}")[0]["distill/fraction"] for of in ("adam", *GATED)}
    assert all(0 < share < 1 for share in fractions.values()), fractions
    assert len(set(fractions.values())) > 1
