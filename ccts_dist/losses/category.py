"""Cross-entropy of categorical emotions over a global batch: the mean over the rows whose category is known."""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


def categorised(category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """True for the rows that count and whose category is known (not -1)."""
    return (category >= 0) & (weight > 0)


def cross_entropy_sums(
    scores: Float[Tensor, "batch categories"], category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"]
) -> Float64[Tensor, "2"]:
    """Cross-entropy in nats added up over the rows of ``categorised``, and how many they are.

    The first carries gradient; both may be added over passes and ranks. Other rows are replaced by zeros, so that what
    stands in them reaches neither value nor gradient; without any row the gradient is zero, of the same shape.

    Args:
        scores: of each category, before any softmax.
        category: number of the category, -1 where it is unknown.
        weight: 1 for rows that count, 0 for others.
    """
    known = categorised(category, weight)
    wide = torch.where(known[:, None], scores, 0.0).double()
    own = wide.gather(1, category.clamp(min=0)[:, None]).squeeze(1)
    each = torch.where(known, wide.logsumexp(dim=1) - own, 0.0)
    return torch.stack([each.sum(), known.double().sum()])


def mean_cross_entropy(sums: Float64[Tensor, "2"]) -> Float64[Tensor, ""]:
    """The mean, from ``cross_entropy_sums`` of the whole batch; 0 where no row has a category."""
    return sums[0] / sums[1].clamp(min=1)
