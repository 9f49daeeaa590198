"""Cross-entropy of categorical emotions over a global batch: the mean over the rows whose category is known."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


def categorised(category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"]) -> Int64[Tensor, " rows"]:
    """The rows that count and whose category is known (not -1)."""
    return torch.nonzero((category >= 0) & (weight > 0)).squeeze(1)


def cross_entropy_sums(
    scores: Float[Tensor, "batch categories"], category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"]
) -> Float64[Tensor, "2"]:
    """Cross-entropy in nats added up over the rows of ``categorised``, and how many they are.

    The first carries gradient; both may be added over passes and ranks. Other rows are left out by index, so that what
    stands in them reaches neither value nor gradient; without any row the gradient is zero, of the same shape.

    Args:
        scores: of each category, before any softmax.
        category: number of the category, -1 where it is unknown.
        weight: 1 for rows that count, 0 for others.
    """
    rows = categorised(category, weight)
    wide = scores[rows].double()
    own = wide.gather(1, category[rows][:, None]).squeeze(1)
    return torch.stack([(wide.logsumexp(dim=1) - own).sum(), rows.new_tensor(len(rows), dtype=torch.float64)])


def mean_cross_entropy(sums: Float64[Tensor, "2"]) -> Float64[Tensor, ""]:
    """The mean, from ``cross_entropy_sums`` of the whole batch; 0 where no row has a category."""
    return sums[0] / sums[1].clamp(min=1)
