"""How often and how patiently requests to a store are repeated."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a store is believed in."""

    attempts: int = 8
    """Tries per file; with the waits below, a store may be away for a minute."""

    stall_s: float = 30.0
    """A transfer that brings no byte for so long is given up and tried again."""

    first_wait_s: float = 0.5
    """Before the second try; doubled before each next one. Every wait is shortened by up to a half, at random."""

    longest_wait_s: float = 30.0

    def wait_s(self, attempt: int, luck: float) -> float:
        """Seconds to wait after a try that failed; ``attempt`` counts from 1, ``luck`` is on 0..1."""
        return min(self.longest_wait_s, self.first_wait_s * 2 ** (attempt - 1)) * (0.5 + 0.5 * luck)
