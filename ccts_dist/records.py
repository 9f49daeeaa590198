"""The records that go from stage to stage, and the words for them.

Axis words in tensor annotations: ``batch`` utterances, ``samples`` of audio, ``frames`` of an encoder, ``tokens`` of a
transcript, ``hidden`` features, ``dim`` emotion dimensions (or the named targets of a run).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

DIMENSIONS = ("activation", "valence", "dominance")
"""The order of the emotion dimensions, everywhere. Index by name: ``DIMENSIONS.index("valence")``."""

VARIANCE = ".variance"
"""Ending of the name of a target that is the variance of another one's raters: see ``varied_target``."""

SHARE = ".share"
"""Ending of the name of a label that is the share of the raters who gave one answer: "A.share" of the category A,
"valence.7.share" of the grade 7. It is on 0..1 whatever the scale."""

SAMPLE_RATE_HZ = 16_000
"""Sample rate of all audio in shards and models; other rates are resampled when shards are built."""


def varied_target(target: str) -> str | None:
    """Whose raters' variance a target is: "valence" of "valence.variance"; None for a target that is a rating."""
    return target.removesuffix(VARIANCE) if target.endswith(VARIANCE) and target != VARIANCE else None


def is_rating(target: str) -> bool:
    """True for a target on the corpus's own scale; False for a variance or a share of raters."""
    return varied_target(target) is None and not target.endswith(SHARE)


def factor_and_offset(target: str, scale: tuple[float, float]) -> tuple[float, float]:
    """Factor and offset from a target's 0..1 to its ratings' scale: a variance grows with the square, a share stays."""
    low, high = scale
    if target.endswith(SHARE):
        return 1.0, 0.0
    return (high - low, low) if varied_target(target) is None else ((high - low) ** 2, 0.0)


def mapped_category(category: str | None, category_map: Mapping[str, str]) -> str | None:
    """A corpus's category by its name in ``model.category_map``; None for one that is mapped to none."""
    return (category_map.get(category, category) or None) if category is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One recording as a corpus reader yields it, before its audio has been opened."""

    key: str
    """Unique in the corpus; any Unicode text without control characters."""

    audio: Path
    """Audio file in any format libsndfile reads."""

    segment_s: tuple[float, float] | None = None
    """Beginning and end within ``audio``, in seconds; None for all of it."""

    split: str
    """Named group of utterances, as the corpus calls it: "Train", "Development", "Test1"."""

    labels: Mapping[str, float]
    """Mean rating per target on 0..1; a target nobody rated is absent."""

    scale: tuple[float, float]
    """The corpus's own rating scale (lowest, highest); ``rating = low + label * (high - low)``."""

    transcript: str = ""
    transcript_confidence: float | None = None
    """0..1, when a speech recognizer read the transcript; None when it is the corpus's own."""

    speaker: str | None = None
    gender: str | None = None
    category: str | None = None
    """Categorical emotion as the corpus spells it."""

    label_variance: Mapping[str, float] = field(default_factory=dict)
    """Population variance of the raters per target, on 0..1 ratings; absent where unknown."""

    num_raters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An utterance that a reader or the builder omitted, and why."""

    key: str
    reason: str
    source: str
    """The file that was at fault, relative to the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOutput:
    """Output of a teacher for one utterance, as cached."""

    embedding: Float32[np.ndarray, " hidden"]
    prediction: Float32[np.ndarray, " dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The fit of labels on teacher predictions that decides who is distilled (paper, section on the condition).

    Residual of dimension j: ``r_j = w_j * prediction_j + b_j - label_j``.
    """

    targets: tuple[str, ...]
    w: tuple[float, ...]
    b: tuple[float, ...]
    residual_std: tuple[float, ...]
    """Standard deviation of the residuals over the fitted rows; divides by n."""

    num_rows: tuple[int, ...]
    """Labelled training utterances that the fit of each dimension has seen."""

    splits: tuple[str, ...]
    """The training splits the fit comes from, and no others."""
