from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import TeacherError
from ccts_dist.records import Condition
from ccts_dist.teacher.fit import FitSums, ShardFit, add_fit_sums, fit_teacher, num_rejected
from tests.tiers import examples


def sums_of(embedding: np.ndarray) -> FitSums:
    mean = embedding.sum(0) / max(1, len(embedding))
    return FitSums(
        condition=np.zeros((6, 3)), num_rows=len(embedding), mean=mean, squares=((embedding - mean) ** 2).sum(0)
    )


@examples(50)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), offset=st.sampled_from([0.0, 1e6]))
def test_mean_and_deviation_of_the_embedding_are_those_of_all_rows_whatever_shards_they_come_in(cuts, offset):
    embedding = np.random.default_rng(0).normal(size=(60, 4)) + offset
    bounds = [0, *sorted(cuts), 60]
    whole = sums_of(embedding[:0])
    for low, high in pairwise(bounds):
        whole = add_fit_sums(whole, sums_of(embedding[low:high]))
    assert whole.num_rows == 60
    np.testing.assert_allclose(whole.mean, embedding.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.std, embedding.std(0), rtol=1e-8)


def test_sums_have_names():
    sums = FitSums(condition=np.arange(6.0).reshape(6, 1), num_rows=0, mean=np.zeros(1), squares=np.zeros(1))
    assert sums.named() == {
        "n": (0.0,),
        "prediction": (1.0,),
        "label": (2.0,),
        "prediction^2": (3.0,),
        "label^2": (4.0,),
        "prediction*label": (5.0,),
    }


def test_too_few_labels_are_refused():
    with pytest.raises(TeacherError, match=r"'valence' has 0 labels in the splits Train"):
        fit_teacher([sums_of(np.zeros((2, 4)))], targets=("valence", "activation", "dominance"), splits=("Train",))


def test_number_left_out_counts_utterances_and_not_dimensions():
    # Residuals p - y of (.3, .3), (0, .1), (.1, missing), (.3, missing) against 2 * .1.
    part = ShardFit(
        sums=sums_of(np.zeros((4, 1))),
        prediction=np.array([[0.8, 0.8], [0.5, 0.6], [0.6, 0.1], [0.8, 0.1]], np.float32),
        label=np.array([[0.5, 0.5], [0.5, 0.5], [0.5, np.nan], [0.5, np.nan]]),
    )
    condition = Condition(
        targets=("a", "b"), w=(1.0, 1.0), b=(0.0, 0.0), residual_std=(0.1, 0.1), num_rows=(4, 2), splits=("Train",)
    )
    assert num_rejected(part, condition, 2.0) == 2
    assert num_rejected(part, condition, 4.0) == 0
