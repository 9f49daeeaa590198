"""Cross-entropy of categorical emotions over a global batch: the mean over the rows whose category is known.

Optionally with a weight for each class, and focal (Lin et al. 2017): each row's cross-entropy times (1 - p)^gamma, p
the probability of its own category. The mean is then weighted, as torch's is: sum of w CE over sum of w.

The target of a row is a category, or a distribution over them, such as the shares of its raters' votes. With shares q a
row's cross-entropy is - sum_c q_c log p_c; weight and focal factor go to each term, as if each share were a row of its
own. A distribution that is all one category gives the same as that category.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ccts_dist.losses.constants import constant

CategoryTarget = Int64[Tensor, " batch"] | Float[Tensor, "batch categories"]
"""Number of the category, -1 where it is unknown; or the share of each, NaN where the row's are unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryTerm:
    """How a row's cross-entropy counts."""

    class_weights: tuple[float, ...] = ()
    """Weights of each category, in order; empty for 1 each."""

    focal_gamma: float = 0.0
    """0 for the plain cross-entropy."""


PLAIN = CategoryTerm()


def categorised(target: CategoryTarget, weight: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """True for the rows that count and whose target is known."""
    return (target >= 0 if target.ndim == 1 else (target >= 0).all(dim=1)) & (weight > 0)


def category_shares(
    target: CategoryTarget, weight: Float[Tensor, " batch"], term: CategoryTerm = PLAIN
) -> Float64[Tensor, " batch"]:
    """Weight of each row in the mean: that of its class; 0 for rows that ``categorised`` leaves out."""
    known = categorised(target, weight)
    if target.ndim == 2:
        return _weighted_shares(target, known, term).sum(dim=1)
    if not term.class_weights:
        return known.double()
    of_class = constant(term.class_weights, target.device)
    return torch.where(known, of_class[target.clamp(min=0)], 0.0)


def _weighted_shares(
    target: Float[Tensor, "batch categories"], known: Bool[Tensor, " batch"], term: CategoryTerm
) -> Float64[Tensor, "batch categories"]:
    shares = torch.where(known[:, None], target, 0.0).double()
    return shares * constant(term.class_weights, target.device) if term.class_weights else shares


def cross_entropy_sums(
    scores: Float[Tensor, "batch categories"],
    target: CategoryTarget,
    weight: Float[Tensor, " batch"],
    term: CategoryTerm = PLAIN,
) -> Float64[Tensor, "2"]:
    """Cross-entropy in nats added up over the rows of ``categorised``, each by its share, and the shares added up.

    The first carries gradient; both may be added over micro-batches and ranks. Other rows are replaced by zeros, so
    that what stands in them reaches neither value nor gradient; without any row the gradient is zero, of the same
    shape.

    Args:
        scores: of each category, before any softmax.
        target: category of each row, or shares that add up to 1.
        weight: 1 for rows that count, 0 for others.
        term: class weights and focal exponent.
    """
    known = categorised(target, weight)
    wide = torch.where(known[:, None], scores, 0.0).double()
    if target.ndim == 2:
        each = -wide.log_softmax(dim=1)
        if term.focal_gamma:
            each = each * _remainder(-each) ** term.focal_gamma
        weighted = _weighted_shares(target, known, term)
        return torch.stack([(each * weighted).sum(), weighted.sum()])
    own = wide.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    each = wide.logsumexp(dim=1) - own
    if term.focal_gamma:
        each = each * _remainder(-each) ** term.focal_gamma
    shares = category_shares(target, weight, term)
    return torch.stack([(torch.where(known, each, 0.0) * shares).sum(), shares.sum()])


def divergence_sums(
    scores: Float[Tensor, "batch categories"],
    shares: Float[Tensor, "batch categories"],
    weight: Float[Tensor, " batch"],
) -> Float64[Tensor, "2"]:
    """Kullback-Leibler divergence of predictions from the shares in nats, added up over known rows; and their number.

    It is the cross-entropy less the entropy of the shares, which no model can go below.
    """
    known = categorised(shares, weight)
    entropy = torch.special.entr(torch.where(known[:, None], shares, 0.0).double()).sum()
    sums = cross_entropy_sums(scores, shares, weight)
    return torch.stack([sums[0] - entropy, known.sum().double()])


def _remainder(log_probability: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """1 - p; above 0, since a power below 1 has no derivative there."""
    return (-torch.expm1(log_probability)).clamp(min=1e-12)


def mean_cross_entropy(sums: Float64[Tensor, "2"]) -> Float64[Tensor, ""]:
    """The mean, from ``cross_entropy_sums`` of the whole batch; 0 where no row has a category."""
    return sums[0] / over(sums[1])


def over(shares: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Divisor: the shares added up, and 1 where there are none."""
    return torch.where(shares > 0, shares, 1.0)
