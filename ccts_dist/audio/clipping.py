"""Recordings that are nothing but clipped: far too loud, or of another scale than their format states."""

import numpy as np
from jaxtyping import Int16

CLIPPED_SHARE = 0.5
"""Share of samples at full scale above which a recording counts as clipped; speech that was merely too loud has some
percent."""

IN_WORDS = (
    f"more than {CLIPPED_SHARE:.0%} of its samples are at full scale: it is clipped, or of another scale than its "
    "format states"
)
"""For people, behind the name of a recording."""

_FULL_SCALE = 32_767


def is_clipped(whole: Int16[np.ndarray, " samples"]) -> bool:
    """True if more than ``CLIPPED_SHARE`` of the samples are at full scale, to either side."""
    return bool(np.mean((whole >= _FULL_SCALE) | (whole <= -_FULL_SCALE)) > CLIPPED_SHARE)
