"""Cross-entropy of categorical emotions over a global batch: the mean over the rows whose category is known.

Optionally with a weight for each class, and focal (Lin et al. 2017): each row's cross-entropy times (1 - p)^gamma, p
the probability of its own category. The mean is then weighted, as torch's is: sum of w CE over sum of w.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ccts_dist.losses.constants import constant


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryTerm:
    """How a row's cross-entropy counts."""

    class_weights: tuple[float, ...] = ()
    """Of each category, in order; empty for 1 each."""

    focal_gamma: float = 0.0
    """0 for the plain cross-entropy."""


PLAIN = CategoryTerm()


def categorised(category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """True for the rows that count and whose category is known (not -1)."""
    return (category >= 0) & (weight > 0)


def category_shares(
    category: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"], term: CategoryTerm = PLAIN
) -> Float64[Tensor, " batch"]:
    """Weight of each row in the mean: that of its class; 0 for rows that ``categorised`` leaves out."""
    known = categorised(category, weight)
    if not term.class_weights:
        return known.double()
    of_class = constant(term.class_weights, category.device)
    return torch.where(known, of_class[category.clamp(min=0)], 0.0)


def cross_entropy_sums(
    scores: Float[Tensor, "batch categories"],
    category: Int64[Tensor, " batch"],
    weight: Float[Tensor, " batch"],
    term: CategoryTerm = PLAIN,
) -> Float64[Tensor, "2"]:
    """Cross-entropy in nats added up over the rows of ``categorised``, each by its share, and the shares added up.

    The first carries gradient; both may be added over micro-batches and ranks. Other rows are replaced by zeros, so
    that what stands in them reaches neither value nor gradient; without any row the gradient is zero, of the same
    shape.

    Args:
        scores: of each category, before any softmax.
        category: number of the category, -1 where it is unknown.
        weight: 1 for rows that count, 0 for others.
        term: class weights and focal exponent.
    """
    known = categorised(category, weight)
    wide = torch.where(known[:, None], scores, 0.0).double()
    own = wide.gather(1, category.clamp(min=0)[:, None]).squeeze(1)
    each = wide.logsumexp(dim=1) - own
    if term.focal_gamma:
        each = each * _remainder(-each) ** term.focal_gamma
    shares = category_shares(category, weight, term)
    return torch.stack([(torch.where(known, each, 0.0) * shares).sum(), shares.sum()])


def _remainder(log_probability: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """1 - p; above 0, since a power below 1 has no derivative there."""
    return (-torch.expm1(log_probability)).clamp(min=1e-12)


def mean_cross_entropy(sums: Float64[Tensor, "2"]) -> Float64[Tensor, ""]:
    """The mean, from ``cross_entropy_sums`` of the whole batch; 0 where no row has a category."""
    return sums[0] / over(sums[1])


def over(shares: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """What to divide by: the shares added up, and 1 where there are none."""
    return torch.where(shares > 0, shares, 1.0)
