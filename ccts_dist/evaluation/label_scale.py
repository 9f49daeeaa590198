"""Labels and predictions, which are on 0..1 within the library, as the corpus's raters would write them."""

from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from ccts_dist.records import SHARE, factor_and_offset, is_rating

Values = TypeVar("Values", float, Float64[np.ndarray, " rows"])


def on_scale(target: str, value: Values, scale: tuple[float, float]) -> Values:
    """A rating on the corpus's scale; of a target that is the variance of raters, the variance of such ratings; a share
    as it is."""
    factor, offset = factor_and_offset(target, scale)
    return offset + factor * value


def ends_of(target: str, scale: tuple[float, float]) -> tuple[float, float]:
    """The lowest and highest label that there can be: of a variance, half of the raters at each end."""
    low, high = scale
    if target.endswith(SHARE):
        return 0.0, 1.0
    return scale if is_rating(target) else (0.0, (high - low) ** 2 / 4)


def width_of(target: str, scale: tuple[float, float]) -> float:
    """A difference of 1 on 0..1, on the scale of ``on_scale``."""
    return factor_and_offset(target, scale)[0]
