"""The gate by which an evaluation counts whom a student was distilled from: that of the model's own run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from ccts_dist.config.renamed import with_present_names
from ccts_dist.config.schema import DEFAULT_THRESHOLD, THRESHOLD_GATES
from ccts_dist.loader.row_gate import ConfidenceGate, RandomGate, RowGate
from ccts_dist.losses.gate import GATES, gated_on
from ccts_dist.records import Condition
from ccts_dist.shards.teacher_cache import TeacherCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate of ``[distill]``, with the threshold that was used."""

    name: str = "any-dimension"
    """One of ``losses.gate.GATES``, but "keys": the file does not come with the model."""

    threshold: float = DEFAULT_THRESHOLD
    """In standard deviations of the residuals; gates without one have no use for it."""

    of_run: bool = False
    """True if the model's run had it; else it is the default, since no run is known to have distilled the model."""

    targets: tuple[str, ...] = ()
    """Whose residuals it looks at; empty for all."""

    fit: Mapping[str, Sequence[float | None]] | None = None
    """w, b and residual_std of a robust fit; None for the fit of the teacher's cache."""

    fit_of: str = ""
    """Digest of the teacher cache that the robust fit was made of; it is of no use with another."""

    share: float = 0.0
    """Share that the gate "random" rejects."""

    seed: int = 0
    """Seed of the gate "random"."""

    min_confidence: float = 0.0
    """Least confidence of the gate "confidence"."""

    @property
    def has_threshold(self) -> bool:
        """True if it compares residuals with the threshold."""
        return self.name in THRESHOLD_GATES

    @property
    def by_row(self) -> RowGate | None:
        """The gate that decides by key or transcript; None where residuals do."""
        if self.name == "random":
            return RandomGate(share=self.share, seed=self.seed)
        return ConfidenceGate(least=self.min_confidence) if self.name == "confidence" else None

    def in_words(self) -> str:
        """Name, threshold and what else it looks at."""
        if self.name == "random":
            return f"random, {self.share:.4g} rejected"
        if self.name == "confidence":
            return f"confidence of at least {self.min_confidence:.4g}"
        kind = "robust " if self.fit is not None else ""
        at = f" at {self.threshold:.4g} {kind}standard deviations" if self.has_threshold else ""
        of = f" of {', '.join(self.targets)}" if self.targets else ""
        return f"{self.name}{at}{of}"

    def on(self, cache: TeacherCache) -> tuple["Gate", Condition]:
        """The gate as a cache allows it, and the condition that it compares residuals with.

        A robust fit holds for the cache it was made of: with another the gate takes that one's own fit.
        """
        if self.fit is None or self.fit_of != cache.digest or len(self.fit["w"]) != len(cache.targets):
            return replace(self, fit=None, fit_of=""), gated_on(cache.condition, self.targets)
        w, b, residual_std = (
            tuple(math.inf if number is None else float(number) for number in self.fit[name])
            for name in ("w", "b", "residual_std")
        )
        return self, gated_on(replace(cache.condition, w=w, b=b, residual_std=residual_std), self.targets)


DEFAULT_GATE = Gate()


def gate_from(extra: Mapping[str, Any]) -> Gate:
    """The gate in ``extra`` of a model folder, or the default.

    Folders of earlier versions have none, and some gates are of no use without the run's files.
    """
    distill = extra.get("distill")
    if not isinstance(distill, Mapping) or distill.get("gate") not in GATES or distill["gate"] == "keys":
        return DEFAULT_GATE
    gate = Gate(name=distill["gate"], of_run=True)
    if gate.name == "random":
        share, seed = distill.get("reject_fraction"), distill.get("seed")
        if _is_number(share) and 0 <= share < 1 and isinstance(seed, int):
            return replace(gate, share=float(share), seed=seed)
        return DEFAULT_GATE
    if gate.name == "confidence":
        least = distill.get("min_confidence")
        return replace(gate, min_confidence=float(least)) if _is_number(least) else DEFAULT_GATE
    targets, fit = distill.get("gate_targets", ()), distill.get("fit")
    if isinstance(targets, Sequence) and all(isinstance(target, str) for target in targets):
        gate = replace(gate, targets=tuple(targets))
    fit = with_present_names(fit) if isinstance(fit, Mapping) else fit
    if _is_fit(fit):
        gate = replace(gate, fit=fit, fit_of=str(extra.get("teacher_cache", "")))
    if not gate.has_threshold:
        return gate
    threshold = distill.get("threshold")
    if not _is_number(threshold) or not threshold > 0:
        return DEFAULT_GATE
    return replace(gate, threshold=float(threshold))


def _is_fit(fit: Any) -> TypeGuard[Mapping[str, list[float | None]]]:
    columns = [fit.get(name) for name in ("w", "b", "residual_std")] if isinstance(fit, Mapping) else [None]
    lists = [column for column in columns if isinstance(column, list)]
    return (
        len(lists) == len(columns)
        and len({len(column) for column in lists}) == 1
        and all(number is None or _is_number(number) for column in lists for number in column)
    )


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
