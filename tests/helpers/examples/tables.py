"""Tables of predictions that were never predicted: labels, and labels with an error, speaker by speaker."""

import numpy as np

from ccts_dist.records import DIMENSIONS
from ccts_dist.scoring import PredictionTable


def make_table(
    num_speakers: int = 12,
    each: int = 15,
    *,
    targets: tuple[str, ...] = DIMENSIONS,
    noise: float = 0.1,
    seed: int = 0,
    labels_seed: int = 0,
) -> PredictionTable:
    """``each`` utterances of every speaker, a twelfth of them without a speaker; some have no label.

    Args:
        noise: deviation of what is added to a label.
        seed: of the errors.
        labels_seed: of all else.
    """
    truth, errors = np.random.default_rng(labels_seed), np.random.default_rng([seed, 1])
    count, width = num_speakers * each, len(targets)
    labels = truth.uniform(0, 1, (count, width))
    predictions = 0.2 + 0.6 * labels + errors.normal(0, noise, (count, width))
    labels[truth.uniform(size=(count, width)) < 0.05] = np.nan
    return PredictionTable(
        targets=targets,
        keys=tuple(f"MSP/<ü> & {row}" for row in range(count)),
        speakers=tuple(None if row % 12 == 11 else f"speaker {row % num_speakers}" for row in range(count)),
        genders=tuple(("Female", "Male", None)[row % 3] for row in range(count)),
        duration_s=truth.uniform(1, 11, count),
        num_words=truth.integers(0, 30, count),
        labels=labels,
        predictions=predictions,
    )
