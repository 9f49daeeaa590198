"""The exponential moving average of the weights: its number, and that it is what is validated, selected and saved."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from ccts_dist.config import parse_run
from ccts_dist.distributed import Ranks, barrier, rank_facts
from ccts_dist.errors import ConfigError, StopRequested
from ccts_dist.train.run_folder import RunFolder
from ccts_dist.train.zero.ds_config import read_ds_config
from ccts_dist.train.zero.engine import Engine
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, read_history, read_validations, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

CASES = [("zero0", "fp32"), ("zero0", "bf16"), ("zero1", "fp32"), ("zero2", "bf16"), ("zero3", "fp32"),
         ("zero3", "bf16"), ("zero3_offload", "fp32")]  # fmt: skip
DECAY, STEPS = 0.75, 10


def build_engine(stage: str, precision: str, *, decay: float, resume_from: Path | None = None) -> Engine:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate allows one Accelerator per process
    run = parse_run(
        {
            "run_name": "r",
            "output_dir": "o",
            "data": {"shards": "s"},
            "model": {"speech": {"encoder": "e"}},
            "batch": {"global_batch_size": 2, "micro_batch_size": 1},
            "train": {
                "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json"), "precision": precision, "ema_decay": decay
            },
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model[0].bias.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([{"params": trained, "lr": 0.5, "name": "rest"}])
    ds_config = read_ds_config(Path(run.train.deepspeed))
    return Engine(model, optimizer, run, ds_config=ds_config, ranks=rank_facts(), resume_from=resume_from)


def take_step(engine: Engine, factor: float = 1.0) -> bool:
    engine.train(True)
    engine.start_step(1)
    engine.backward(compute(engine).pow(2).mean() * factor)
    return engine.step().skipped


def compute(engine: Engine) -> torch.Tensor:
    dtype = next(engine._engine.module.parameters()).dtype
    return engine._engine(torch.ones(4, 5, dtype=dtype)).float()


def output_of(engine: Engine) -> torch.Tensor:
    engine.train(False)
    with torch.no_grad():
        return compute(engine)


def exact_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The float32 weights that the optimizer moves, on rank 0."""
    return {name: tensor.double() for name, tensor in engine.snapshot().tensors["weights"]}


def average_on_a_rank(folder: Path, cases: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """On one rank, for every case: how far the engine's average is from one that float64 makes of its weights."""
    reported = {}
    for case in cases:
        engine, stored = build_engine(*case, decay=DECAY), folder / "-".join(case)
        with engine.averaged():
            before = output_of(engine)
        facts = {"before the first step": float((before - output_of(engine)).abs().max())}
        expected: dict[str, torch.Tensor] = {}
        for number in range(4):
            skipped = take_step(engine, float("nan") if number == 2 else 1.0)
            assert skipped == (number == 2)
            for name, weight in exact_weights(engine).items():
                if not skipped:
                    former = expected.get(name, weight)
                    expected[name] = DECAY * former + (1 - DECAY) * weight
        own, plain = exact_weights(engine), output_of(engine)
        with engine.averaged():
            found, whole, computed = exact_weights(engine), engine.full_state(), output_of(engine)
        facts["average"] = max((float((found[name] - expected[name]).abs().max()) for name in found), default=0.0)
        facts["moved"] = max((float((found[name] - own[name]).abs().max()) for name in found), default=1.0)
        facts["computed with"] = _off(whole, computed, case[1])
        facts["put back"] = float((output_of(engine) - plain).abs().max())
        with pytest.raises(StopRequested), engine.averaged():
            raise StopRequested("now")
        facts["put back after a stop"] = float((output_of(engine) - plain).abs().max())
        if engine.ranks.is_first:
            stored.mkdir()
        barrier()
        facts["files"] = len(engine.save(stored))
        resumed = build_engine("zero1", "fp32", decay=DECAY, resume_from=stored)
        with resumed.averaged():
            taken_up = exact_weights(resumed)
        facts["taken up"] = float(all(torch.equal(taken_up[name], found[name]) for name in found))
        reported["-".join(case)] = facts
    return reported


def _off(whole: dict[str, torch.Tensor], computed: torch.Tensor, precision: str) -> float:
    """How far an output is from that of a model with these weights; 0 on ranks that have none."""
    if not whole:
        return 0.0
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model.load_state_dict(whole)
    with torch.no_grad():
        return float((model.to(dtype)(torch.ones(4, 5, dtype=dtype)).float() - computed).abs().max())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    return run_on_ranks(average_on_a_rank, 2, tmp_path_factory.mktemp("average"), CASES, timeout_s=300)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_average_is_that_of_float64_and_leaves_the_weights_as_they_were(reported, case):
    rounding = 1e-6 if case[1] == "fp32" else 1e-2
    for rank in reported:
        facts = rank["-".join(case)]
        assert facts["before the first step"] == 0
        assert facts["average"] <= 1e-6
        assert facts["moved"] > 1e-3
        assert facts["computed with"] <= rounding
        assert facts["put back"] == facts["put back after a stop"] == 0
        assert facts["taken up"] == 1
    assert reported[0]["-".join(case)]["files"] == 2, "weights and average; plain SGD has no state"


def halve(decay: float) -> float:
    """On one rank: the average of the weights 0, -1, -2 of three steps."""
    engine = build_engine("zero0", "fp32", decay=decay)
    with torch.no_grad():
        engine._engine.module[2].weight.fill_(2.0)
    for _ in range(3):
        engine.train(True)
        engine.start_step(1)
        engine.backward(2.0 * engine._engine.module[2].weight.sum() + 0.0 * compute(engine).sum())
        engine.step()
    with engine.averaged():
        return float(engine.full_state()["2.weight"][0, 0])


def test_average_by_hand():
    """Weights 1, 0, -1 after the steps; with decay 0.5 the average is 1, then 0.5, then -0.25."""
    assert run_on_ranks(halve, 1, 0.5) == [-0.25]


SETTINGS = {1: "zero0", 2: "zero3"}


def config_for(place: Path, name: str, stage: str, **train: float | bool) -> Path:
    return write_run(
        place / f"{name}.toml", place / "shards", place / "runs" / name,
        data={"valid_splits": ["Development"], "test_splits": ["Development"]},
        optim={"name": "adam", "learning_rate": 3e-3},
        train={"max_steps": STEPS, "eval_steps": 3, "save_steps": 1, "save_total_limit": 99, "ema_decay": DECAY,
               "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json"), **train},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same training on one rank and on two, that on two once more from its middle, and one without average."""
    place = tmp_path_factory.mktemp("trainings")
    build_two_kinds(place)
    jobs = {ranks: [Job(config=config_for(place, f"on-{ranks}", stage))] for ranks, stage in SETTINGS.items()}
    jobs[1].append(Job(config=config_for(place, "without", "zero0", ema_decay=0.0)))
    middle = place / "runs" / "on-1" / "checkpoints" / "step-00000005"
    jobs[2].append(Job(config=config_for(place, "resumed", "zero2"), continues=middle, resume="auto"))
    for num_ranks, of_these in jobs.items():
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=300)
    return place


def model_of(place: Path, name: str, which: str = "last") -> dict[str, np.ndarray]:
    return load_file(place / "runs" / name / which / "model.safetensors")


def test_saved_model_is_the_average_of_the_weights_after_each_step(place):
    steps = [load_file(place / "runs/on-1/checkpoints" / f"step-{step:08d}" / "weights.safetensors")
             for step in range(1, STEPS + 1)]  # fmt: skip
    average = steps[0]
    for weights in steps[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in weights}
    saved = model_of(place, "on-1")
    assert saved.keys() == average.keys()
    assert max(np.abs(saved[name] - average[name]).max() for name in saved) <= 1e-6
    assert max(np.abs(saved[name] - steps[-1][name]).max() for name in saved) > 1e-3


def test_average_agrees_on_any_ranks_and_stages_and_after_a_resume(place):
    for which in ("last", "best"):
        plain = model_of(place, "on-1", which)
        for name in ("on-2", "resumed"):
            other = model_of(place, name, which)
            assert max(np.abs(plain[key] - other[key]).max() for key in plain) <= 1e-5, (which, name)
    for name in ("on-2", "resumed"):
        losses = [[one["valid/loss"] for one in read_validations(place / "runs" / run)] for run in ("on-1", name)]
        np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


def test_validation_scores_the_average_that_best_holds_and_training_is_as_without(place):
    averaged, plain = place / "runs" / "on-1", place / "runs" / "without"
    assert read_history(averaged) == read_history(plain), "the weights are moved as ever"
    pairs = zip(read_validations(averaged), read_validations(plain), strict=True)
    assert min(abs(one["valid/loss"] - other["valid/loss"]) for one, other in pairs) > 1e-4

    summary = json.loads((averaged / "summary.json").read_text())
    assert summary["test"] == pytest.approx(summary["valid"], abs=1e-6), "the folder best/, scored on the same split"


def test_decay_must_not_change_within_a_run(place):
    run = parse_run({**_tree(place / "on-1.toml"), "train": {"ema_decay": 0.5}})
    with RunFolder(run, Ranks(), resume=True) as folder, pytest.raises(ConfigError, match=r"train\.ema_decay = 0\.5"):
        folder.find_resume_point("auto", run, "", lambda _: None)


def _tree(path: Path) -> dict:

    return tomllib.loads(path.read_text())
