"""The ranges that a run file's numbers may lie in; they stand in the annotations of the fields."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Between:
    """A closed range for a number; ``None`` leaves that side open."""

    low: int | float | None = None
    high: int | float | None = None

    def words(self) -> str:
        """The rule as an error message states it."""
        if self.high is None:
            return f"at least {self.low}"
        return f"between {self.low} and {self.high}"


Count = Annotated[int, Between(1)]
CountOrZero = Annotated[int, Between(0)]
Positive = Annotated[float, Between(1e-12)]
"""Positive number, as small as anyone could mean, but not 0."""
NotNegative = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
Speed = Annotated[float, Between(0.5, 2)]
Decibels = Annotated[float, Between(-100, 100)]
