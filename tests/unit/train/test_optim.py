"""Learning rates by hand, and schedules that go on where they stopped."""

import json

import pytest
import torch
from torch import nn

from ccts_dist.config import OptimConfig
from ccts_dist.errors import ConfigError
from ccts_dist.files.strict_json import json_text
from ccts_dist.train.optim import (
    build_optimizer,
    build_schedule,
    check_warmup,
    describe_groups,
    rates_by_group,
)


def optimizer_for(config: OptimConfig) -> torch.optim.Optimizer:
    encoder, head = nn.Linear(2, 2), nn.Linear(2, 1)
    return build_optimizer({"speech": list(encoder.parameters()), "head": list(head.parameters())}, config)


def test_encoder_gets_its_share_of_the_learning_rate():
    assert rates_by_group(optimizer_for(OptimConfig(learning_rate=4e-4, encoder_lr_scale=0.25))) == {
        "encoder": 1e-4,
        "head": 4e-4,
    }


def test_frozen_encoder_leaves_no_empty_group():
    trained = {"speech": [], "text": [], "head": list(nn.Linear(2, 1).parameters())}
    for config in (OptimConfig(), OptimConfig(speech_lr_scale=0.5), OptimConfig(text_lr_scale=0.5)):
        assert list(rates_by_group(build_optimizer(trained, config))) == ["head"]


@pytest.mark.parametrize(
    ("factors", "rates"),
    [
        ({}, {"encoder": 0.25, "head": 1.0}),
        ({"speech_lr_scale": 0.5}, {"speech": 0.5, "text": 0.25, "head": 1.0}),
        ({"text_lr_scale": 0.125}, {"speech": 0.25, "text": 0.125, "head": 1.0}),
        ({"speech_lr_scale": 0.5, "text_lr_scale": 0.125}, {"speech": 0.5, "text": 0.125, "head": 1.0}),
    ],
)
def test_each_encoder_has_a_rate_of_its_own_if_the_run_file_reports_so(factors, rates):
    parts = {name: nn.Linear(2, 2) for name in ("speech", "text", "head")}
    trained = {name: list(part.parameters()) for name, part in parts.items()}
    optimizer = build_optimizer(trained, OptimConfig(learning_rate=1.0, encoder_lr_scale=0.25, **factors))
    assert rates_by_group(optimizer) == rates
    by_name = {group["name"]: group["params"] for group in optimizer.param_groups}
    for name in rates:
        expected = trained["speech"] + trained["text"] if name == "encoder" else trained[name]
        assert [id(p) for p in by_name[name]] == [id(p) for p in expected]
    assert describe_groups(optimizer) == ", ".join(
        f"{name} {rate:g} ({12 if name == 'encoder' else 6} parameters)" for name, rate in rates.items()
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizer_is_the_one_that_is_named(name, kind):
    assert type(optimizer_for(OptimConfig(name=name))) is kind


@pytest.mark.parametrize(
    ("weight_decay", "every", "decays"),
    [(0.0, False, [0.0, 0.0]), (0.03, True, [0.03, 0.03]), (0.03, False, [0.03, 0.0, 0.03, 0.0])],
)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_holds_for_matrices_and_for_the_rest_if_the_run_file_reports_so(name, weight_decay, every, decays):
    config = OptimConfig(name=name, learning_rate=1.0, weight_decay=weight_decay, decay_norms_and_biases=every)
    optimizer = optimizer_for(config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    assert [group["name"] for group in optimizer.param_groups] == sorted(["encoder", "head"] * (len(decays) // 2))
    assert rates_by_group(optimizer) == {"encoder": 0.25, "head": 1.0}
    split = len(decays) > 2
    for group in optimizer.param_groups if split else ():
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])
    words = (", 2 without weight decay", ", 1 without weight decay") if split else ("", "")
    assert describe_groups(optimizer) == f"encoder 0.25 (6 parameters{words[0]}), head 1 (3 parameters{words[1]})"


def test_part_of_vectors_alone_is_one_group():
    config = OptimConfig(weight_decay=0.1)
    (group,) = build_optimizer({"head": [nn.Parameter(torch.zeros(3))]}, config).param_groups
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_steps_are_those_of_plain_ones(name):
    config, results = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.05), []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = build_optimizer({"head": list(model.parameters())}, config, fused=fused)
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_adamw_shrinks_a_weight_without_a_gradient_by_rate_times_decay():
    weight, bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([2.0]))
    config = OptimConfig(name="adamw", learning_rate=0.1, weight_decay=0.25)
    optimizer = build_optimizer({"head": [weight, bias]}, config)
    weight.grad, bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.25))
    assert bias.item() == 2.0, "vectors are spared"


@pytest.mark.parametrize("factor", [0.75, 0.5])
def test_plateau_lowers_the_rate_after_more_than_two_validations_without_a_fall(factor):
    config = OptimConfig(learning_rate=1.0, encoder_lr_scale=0.25, plateau_factor=factor, plateau_patience=2)
    optimizer = optimizer_for(config)
    schedule = build_schedule(optimizer, config, total_steps=100)
    rates = []
    for loss in (1.0, 0.9, 0.9, 0.95, 0.91, 0.8):  # best 0.9, then three that do not fall below it
        schedule.after_validation(loss)
        rates.append(rates_by_group(optimizer)["head"])
    assert rates == [1.0, 1.0, 1.0, 1.0, factor, factor]
    assert rates_by_group(optimizer)["encoder"] == 0.25 * factor


def test_plateau_before_its_first_validation_is_plain_json_and_goes_on_alike():
    config = OptimConfig(learning_rate=1.0, plateau_factor=0.5, plateau_patience=0)
    optimizer = build_optimizer({"head": [nn.Parameter(torch.zeros(1))]}, config)
    state = json.loads(json_text(build_schedule(optimizer, config, 9).state()))
    assert state["best"] is None
    schedule = build_schedule(optimizer, config, 9)
    schedule.restore(state)
    schedule.after_validation(3.0)  # a fall from nothing
    assert rates_by_group(optimizer) == {"head": 1.0}
    schedule.after_validation(3.0)
    assert rates_by_group(optimizer) == {"head": 0.5}


@pytest.mark.parametrize(
    ("kind", "warmup_steps"),
    [("plateau", 0), ("onecycle", 0), ("constant", 0), ("constant", 20), ("linear", 0), ("linear", 9), ("cosine", 20)],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # no optimizer step here, only rates
def test_schedule_goes_on_where_it_stopped(kind, warmup_steps):
    config = OptimConfig(learning_rate=1.0, lr_scheduler=kind, warmup_steps=warmup_steps)

    def follow(schedule, optimizer, steps):
        seen = []
        for step in steps:
            schedule.after_step()
            if step % 4 == 3:
                schedule.after_validation(1.0)
            seen.append(rates_by_group(optimizer))
        return seen

    whole_optimizer = optimizer_for(config)
    whole = follow(build_schedule(whole_optimizer, config, 40), whole_optimizer, range(40))
    first_optimizer = optimizer_for(config)
    first = build_schedule(first_optimizer, config, 40)
    seen = follow(first, first_optimizer, range(13))  # amid a plateau: two validations without a fall, of three
    state = json.loads(json.dumps(first.state()))
    second_optimizer = optimizer_for(config)
    second = build_schedule(second_optimizer, config, 40)
    second.restore(state)
    assert seen + follow(second, second_optimizer, range(13, 40)) == whole


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_one_cycle_peaks_at_the_learning_rate_and_ends_near_zero():
    config = OptimConfig(learning_rate=1e-3, encoder_lr_scale=1.0, lr_scheduler="onecycle")
    optimizer = optimizer_for(config)
    schedule = build_schedule(optimizer, config, 100)
    rates = []
    for _ in range(120):  # steps beyond the end keep the last rate
        schedule.after_step()
        rates.append(rates_by_group(optimizer)["head"])
    assert max(rates) == pytest.approx(1e-3, rel=1e-3)
    assert rates[-1] < 1e-7


def rates_of(schedule: str, warmup_steps: int, *, total_steps: int, num_steps: int) -> list[float]:
    """The rate of each step of the rest, whose learning rate is 2; that of the encoders is half of it throughout."""
    config = OptimConfig(learning_rate=2.0, encoder_lr_scale=0.5, lr_scheduler=schedule, warmup_steps=warmup_steps)
    optimizer = optimizer_for(config)
    plan = build_schedule(optimizer, config, total_steps)
    rates = []
    for _ in range(num_steps):
        now = rates_by_group(optimizer)
        assert now["encoder"] == now["head"] / 2
        rates.append(now["head"])
        plan.after_step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        # Steps 1 to 8 of a training of 6.
        ("constant", 0, [2, 2, 2, 2, 2, 2, 2, 2]),
        ("constant", 4, [0.5, 1, 1.5, 2, 2, 2, 2, 2]),
        ("linear", 0, [2, 10 / 6, 8 / 6, 1, 4 / 6, 2 / 6, 2 / 6, 2 / 6]),
        ("linear", 2, [1, 2, 2, 1.5, 1, 0.5, 0.5, 0.5]),
        # (1 + cos 45, 90 and 135 degrees) / 2 of 2
        ("cosine", 2, [1, 2, 2, 1.70710678, 1, 0.29289322, 0.29289322, 0.29289322]),
        ("cosine", 5, [0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2]),
    ],
)
def test_warm_up_and_decay_by_hand(schedule, warmup_steps, expected):
    assert rates_of(schedule, warmup_steps, total_steps=6, num_steps=8) == pytest.approx(expected)


def test_a_constant_rate_without_warm_up_is_the_learning_rate_itself():
    config = OptimConfig(learning_rate=0.1, encoder_lr_scale=0.3, lr_scheduler="constant")
    optimizer = optimizer_for(config)
    schedule = build_schedule(optimizer, config, 5)
    for _ in range(9):
        schedule.after_step()
        assert rates_by_group(optimizer) == {"encoder": 0.1 * 0.3, "head": 0.1}
    schedule.restore({"last_epoch": 4, "rates": [0.1 * 0.3, 0.1]})  # as earlier versions wrote it
    assert rates_by_group(optimizer) == {"encoder": 0.1 * 0.3, "head": 0.1}


def test_a_warm_up_that_training_would_end_in_is_refused():
    config = OptimConfig(lr_scheduler="linear", warmup_steps=10)
    check_warmup(config, 11)
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps = 10: training has 10 steps in all"):
        check_warmup(config, 10)
    check_warmup(OptimConfig(), 0)
