"""What intervals promise: that 95 of a hundred hold the truth, or nearly."""

import pytest

from tests.bench.scoring.coverage import TRUTH, covered, draw_split


def test_truth_is_that_of_the_population_worked_by_hand():
    # 2 * .7 / (.49 + .09 + .2025 + 1 + .04) and 2 * .4 / (.16 + .16 + .36 + 1 + .09).
    assert TRUTH[:2] == pytest.approx((1.4 / 1.8225, 0.8 / 1.77), abs=1e-12)


def test_most_talkative_tenth_of_the_uneven_speakers_states_two_fifths():
    import numpy as np

    printed = draw_split(np.random.default_rng(0), 3_000, "uneven")[:, 0, 0].sort(descending=True).values
    assert 0.35 < float(printed[:300].sum() / printed.sum()) < 0.45


@pytest.mark.long
def test_intervals_of_two_thousand_splits_of_150_uneven_speakers_hold_the_truth():
    for share in covered(2_000, 150, "uneven"):  # the harder case; the bench has the others
        assert 0.92 <= share <= 0.97
