"""The gate by which an evaluation counts whom a student was distilled from: that of the model's own run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ccts_dist.config.schema import DEFAULT_THRESHOLD, THRESHOLD_GATES
from ccts_dist.losses.condition import GATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate of ``[distill]``, with the threshold that was used."""

    name: str = "any-dimension"
    """One of ``losses.condition.GATES``."""

    threshold: float = DEFAULT_THRESHOLD
    """In standard deviations of the residuals; "none" and "soft" have no use for it."""

    of_run: bool = False
    """Whether the model's run had it; else it is the default, since no run is known to have distilled the model."""

    @property
    def has_threshold(self) -> bool:
        """Whether it compares residuals with the threshold."""
        return self.name in THRESHOLD_GATES

    def in_words(self) -> str:
        """Name and threshold."""
        return f"{self.name} at {self.threshold:.4g} standard deviations" if self.has_threshold else self.name


DEFAULT_GATE = Gate()


def gate_from(extra: Mapping[str, Any]) -> Gate:
    """The gate in ``extra`` of a model folder; the default where there is none, as in folders of earlier versions."""
    distill = extra.get("distill")
    if not isinstance(distill, Mapping) or distill.get("gate") not in GATES:
        return DEFAULT_GATE
    if distill["gate"] not in THRESHOLD_GATES:
        return Gate(name=distill["gate"], of_run=True)
    threshold = distill.get("threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
        return DEFAULT_GATE
    return Gate(name=distill["gate"], threshold=float(threshold), of_run=True)
