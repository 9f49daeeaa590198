"""Student's t, which standard libraries lack."""

import math


def t_quantile(freedom: int, coverage: float = 0.95) -> float:
    """The t that a Student variable lies below in size with probability ``coverage``.

    Args:
        freedom: degrees of freedom, at least 1.
        coverage: above 0 and below 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):  # halves the angle's range each time: to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _coverage(middle, freedom) < coverage else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _coverage(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
