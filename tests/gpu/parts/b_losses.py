"""Part B: ten steps of every setting against the CPU's own: losses, distilled utterances, gradient norms."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from tests.gpu.material import write_run
from tests.gpu.outcome import NotApplicable, Outcome, check
from tests.gpu.settings import LARGE_NAME, LARGE_SECTIONS, SETTINGS, with_precision
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import take_steps

Steps = Sequence[Mapping[str, Any]]

ABOVE_LOSS = 10.0
"""A gradient's norm may differ by so many times what a loss may: it adds up the rounding of a whole backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A value of train.precision and how far its losses may be from the CPU's in float32."""

    name: str
    tolerance: float
    """Relative, with 1 as the least that it is relative to."""

    settings: tuple[str, ...]


def losses(outcome: Outcome, situation: Situation) -> None:
    """Every setting in every precision."""
    references = json.loads((situation.pack / "references.json").read_text())
    every = tuple(SETTINGS)
    few = ("student", "two micro-batches", "filter bank", "GRU", "group norm")
    precisions = (
        Precision(name="fp32", tolerance=1e-5, settings=every),
        Precision(name="bf16", tolerance=2e-2, settings=every if situation.on_gpu else ("two micro-batches",)),
        Precision(name="tf32", tolerance=2e-3, settings=few),
        # bfloat16 has 8 bits of mantissa: 24 layers leave an error of a hundredth on an embedding of order one.
        Precision(name="fp32", tolerance=1e-4, settings=(LARGE_NAME,)),
        Precision(name="bf16", tolerance=5e-2, settings=(LARGE_NAME,)),
    )
    for precision in precisions:
        worst = 0.0
        for name in precision.settings:
            with outcome.item(f"{precision.name}: {name}") as figures:
                if precision.name == "tf32":
                    situation.needs_gpu()
                if name not in references["settings"]:
                    raise NotApplicable("the packed references have none of this setting")
                _compare(name, precision, references, situation, figures)
            worst = max(worst, figures.get("loss", 0.0))
        if worst:
            large = " large" * (precision.settings == (LARGE_NAME,))
            outcome.show(f"{precision.name}{large} off by", f"{worst:.1e}")
    outcome.show("settings", len(every))


def _compare(
    name: str, precision: Precision, references: Mapping[str, Any], situation: Situation, figures: dict[str, Any]
) -> None:
    reference = references["settings"][name]
    steps = _steps(name, precision.name, len(reference), situation)
    figures |= far_apart(steps, reference)
    if precision.name == "fp32" and figures["loss"] > precision.tolerance and situation.on_gpu:
        figures["with TF32 off by hand"] = _without_tf32(name, reference, situation)
    words = f"more than {precision.tolerance:g}: {figures}"
    # The same utterances in each step, and as many of them distilled: the gate sees labels and teacher alone.
    check([one["keys"] for one in steps] == [one["keys"] for one in reference], "other utterances in a step")
    check(figures["num_distilled"] <= 1e-6, words)
    check(figures["loss"] <= precision.tolerance and figures["ccc_loss"] <= precision.tolerance, words)
    check(figures["gradient_norm"] <= ABOVE_LOSS * precision.tolerance, words)


def far_apart(steps: Steps, reference: Steps) -> dict[str, float]:
    """The largest difference of each figure over the steps: relative, to 1 where the reference is below."""
    check(len(steps) == len(reference) > 0, f"{len(steps)} steps, and {len(reference)} of the reference")
    apart = {}
    for figure in ("loss", "ccc_loss", "gradient_norm", "num_distilled"):
        pairs = [(float(one[figure]), float(other[figure])) for one, other in zip(steps, reference, strict=True)]
        check(all(isfinite(value) for pair in pairs for value in pair), f"{figure} is not finite: {pairs}")
        apart[figure] = max(abs(mine - theirs) / max(1.0, abs(theirs)) for mine, theirs in pairs)
    return apart


def _steps(name: str, precision: str, num_steps: int, situation: Situation) -> list[dict[str, Any]]:
    from ccts_dist.errors import ConfigError

    sections = with_precision({**SETTINGS, LARGE_NAME: LARGE_SECTIONS}[name], precision=precision)
    config = write_run(situation.work / f"{precision}-{name.replace(' ', '-')}.toml", situation.pack, **sections)
    try:
        return take_steps(config, num_steps)
    except ConfigError as error:
        if precision == "tf32" and "train.precision" in str(error):
            raise NotApplicable(str(error)) from error
        raise


def _without_tf32(name: str, reference: Steps, situation: Situation) -> dict[str, float]:
    """The same once more, in order to find out whether TF32 is to blame."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return far_apart(_steps(name, "fp32", len(reference), situation), reference)


if __name__ == "__main__":
    run_part("B", losses)
