"""Optimizer and learning-rate schedule, as torch has them."""

import math
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import lr_scheduler

from ccts_dist.config import OptimConfig
from ccts_dist.errors import ConfigError


def build_optimizer(
    trained: Mapping[str, Sequence[nn.Parameter]], config: OptimConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """An optimizer over the trained parameters: encoders at their share of the learning rate, the head at all of it.

    Both encoders are one group, "encoder", unless the run file gives one of them a rate of its own. A group without
    parameters is omitted: DeepSpeed loses the state of such a group, or crashes.

    Args:
        trained: parameters under "speech", "text" and "head".
        config: names the optimizer and the rates.
        fused: Adam in one kernel for all parameters of a group, without temporaries; for a GPU.
    """
    speech, text, head = ([*trained.get(name, ())] for name in ("speech", "text", "head"))
    if config.speech_lr_scale is None and config.text_lr_scale is None:
        encoders = {"encoder": (speech + text, config.encoder_lr_scale)}
    else:
        own = {"speech": (speech, config.speech_lr_scale), "text": (text, config.text_lr_scale)}
        encoders = {
            name: (parameters, config.encoder_lr_scale if factor is None else factor)
            for name, (parameters, factor) in own.items()
        }
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": config.learning_rate * factor, "name": name}
        for name, (parameters, factor) in {**encoders, "head": (head, 1.0)}.items()
        if parameters
    ]
    if config.weight_decay and not config.decay_norms_and_biases:
        groups = [part for group in groups for part in _by_decay(group)]
    if config.name == "sgd":
        return torch.optim.SGD(groups, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    # None is torch's own choice; False would also rule out its second fastest way.
    return kind(groups, weight_decay=config.weight_decay, fused=True if fused else None)


def _by_decay(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A group in two of one name and rate, the second without weight decay: norms, biases and other vectors."""
    decayed = [parameter for parameter in group["params"] if parameter.ndim > 1]
    others = [parameter for parameter in group["params"] if parameter.ndim <= 1]
    parts = [{**group, "params": decayed}, {**group, "params": others, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


@runtime_checkable
class Schedule(Protocol):
    """Learning rates over time. Works on the optimizer that DeepSpeed wraps, and is never prepared by Accelerate:
    that would advance it once per rank."""

    def after_step(self) -> None:
        """An optimizer step was taken (or skipped, alike on all ranks)."""
        ...

    def after_validation(self, loss: float) -> None:
        """The model was validated."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        ...


class PlateauSchedule:
    """Times ``factor`` when the validation loss has not fallen for more than ``patience`` validations."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
        self._scheduler = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=config.plateau_factor, patience=config.plateau_patience, threshold=0.0
        )

    def after_step(self) -> None:
        """Nothing: only validations count."""

    def after_validation(self, loss: float) -> None:
        """Count a validation by its loss."""
        self._scheduler.step(loss)

    def state(self) -> dict[str, Any]:
        """Best loss, bad validations in a row, rates."""
        keys = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        rates = [group["lr"] for group in self._scheduler.optimizer.param_groups]
        return {key: getattr(self._scheduler, key) for key in keys} | {"rates": rates}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        for key, value in state.items():
            if key != "rates":
                setattr(self._scheduler, key, inf if value is None else value)  # the best of no finite loss yet
        set_rates(self._scheduler.optimizer, state["rates"])


class CycleSchedule:
    """One cycle of the learning rate up and down, over all steps (torch's OneCycleLR)."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self._total_steps = total_steps
        peaks = [group["lr"] for group in optimizer.param_groups]
        self._scheduler = lr_scheduler.OneCycleLR(
            optimizer, max_lr=peaks, total_steps=max(2, total_steps), cycle_momentum=False
        )

    def after_step(self) -> None:
        """One step along the cycle; beyond its end the last rate stays."""
        if self._scheduler.last_epoch < self._total_steps - 1:
            self._scheduler.step()

    def after_validation(self, loss: float) -> None:
        """Nothing: only steps count."""

    def state(self) -> dict[str, Any]:
        """Steps taken, and rates."""
        rates = [group["lr"] for group in self._scheduler.optimizer.param_groups]
        return {"last_epoch": self._scheduler.last_epoch, "rates": rates}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._scheduler.last_epoch = state["last_epoch"]
        set_rates(self._scheduler.optimizer, state["rates"])


def share_of_rate(schedule: str, steps_done: int, *, warmup_steps: int, total_steps: int) -> float:
    """The next step's share of the learning rate.

    While fewer than W = ``warmup_steps`` steps are done, (steps done + 1) / W; no step is spent at a rate of 0. Then
    "constant" stays at 1; "linear" and "cosine" fall over what is left of T = ``total_steps`` as in transformers: with
    x = (steps done - W) / (T - W), 1 - x and (1 + cos(pi x)) / 2. Beyond the end the last step's stays.
    """
    if steps_done < warmup_steps:
        return (steps_done + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (max(warmup_steps, min(steps_done, total_steps - 1)) - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2


class SteppedSchedule:
    """A learning rate that is a function of the steps done: warm-up, then constant, linear or cosine decay."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> None:
        self._optimizer, self._config, self._total_steps = optimizer, config, total_steps
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._steps_done = 0
        self._set()

    def after_step(self) -> None:
        """One step further."""
        self._steps_done += 1
        self._set()

    def after_validation(self, loss: float) -> None:
        """Nothing: only steps count."""

    def state(self) -> dict[str, Any]:
        """Steps taken, and rates, for people: they follow from the steps."""
        return {"last_epoch": self._steps_done, "rates": [group["lr"] for group in self._optimizer.param_groups]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; towards the end that training has now, should that have changed."""
        self._steps_done = state["last_epoch"]
        self._set()

    def _set(self) -> None:
        share = share_of_rate(
            self._config.lr_scheduler,
            self._steps_done,
            warmup_steps=self._config.warmup_steps,
            total_steps=self._total_steps,
        )
        set_rates(self._optimizer, [peak * share for peak in self._peaks])


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> Schedule:
    """The schedule that the run file names; ``total_steps`` is the length of the whole training."""
    if config.lr_scheduler == "plateau":
        return PlateauSchedule(optimizer, config)
    if config.lr_scheduler == "onecycle":
        return CycleSchedule(optimizer, total_steps)
    return SteppedSchedule(optimizer, config, total_steps)


def check_warmup(config: OptimConfig, total_steps: int) -> None:
    """Refuse a warm-up that training would end in.

    Raises:
        ConfigError: it is as long as training, or longer.
    """
    if config.warmup_steps and config.warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_steps = {config.warmup_steps}: training has {total_steps} steps in all and would end "
            "before it. Lower it, or train longer."
        )


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give each parameter group its learning rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """Parameter groups and their learning rates, for people."""
    groups_in_words = []
    for name, rate in rates_by_group(optimizer).items():
        sizes = [
            (sum(p.numel() for p in group["params"]), group["weight_decay"])
            for group in optimizer.param_groups
            if group["name"] == name
        ]
        spared = sum(size for size, decay in sizes if len(sizes) > 1 and decay == 0.0)
        words = f", {spared:,} without weight decay" if spared else ""
        groups_in_words.append(f"{name} {rate:g} ({sum(size for size, _ in sizes):,} parameters{words})")
    return ", ".join(groups_in_words)


def rates_by_group(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Learning rate of each named parameter group."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
