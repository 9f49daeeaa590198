"""Labels and predictions, which are on 0..1 within the library, as the corpus's raters would write them."""

from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from ccts_dist.records import varied_target

Values = TypeVar("Values", float, Float64[np.ndarray, " rows"])


def on_scale(target: str, value: Values, scale: tuple[float, float]) -> Values:
    """A rating on the corpus's scale; of a target that is the variance of raters, the variance of such ratings."""
    low, high = scale
    return low + (high - low) * value if varied_target(target) is None else (high - low) ** 2 * value


def ends_of(target: str, scale: tuple[float, float]) -> tuple[float, float]:
    """The lowest and highest label that there can be: of a variance, half of the raters at each end."""
    low, high = scale
    return scale if varied_target(target) is None else (0.0, (high - low) ** 2 / 4)


def width_of(target: str, scale: tuple[float, float]) -> float:
    """A difference of 1 on 0..1, on the scale of ``on_scale``."""
    low, high = scale
    return high - low if varied_target(target) is None else (high - low) ** 2
