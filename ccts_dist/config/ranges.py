"""The ranges that a run file's numbers may have, as annotations; ``config.reader`` enforces them."""

from dataclasses import dataclass
from typing import Annotated

_LEAST = 1e-12
"""For numbers that may be as small as anyone could mean, but not 0."""


@dataclass(frozen=True, slots=True)
class Between:
    """A closed range for a number; ``None`` leaves that side open."""

    low: int | float | None = None
    high: int | float | None = None

    def words(self) -> str:
        """The rule as an error message states it."""
        if self.high is None:
            return "more than 0" if self.low == _LEAST else f"at least {self.low}"
        return f"between {self.low} and {self.high}"


Count = Annotated[int, Between(1)]
CountOrZero = Annotated[int, Between(0)]
Positive = Annotated[float, Between(_LEAST)]
NotNegative = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
