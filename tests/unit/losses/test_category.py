"""Cross-entropy of categories: hand-worked, additive, and blind to rows that do not count."""

import math

import pytest
import torch

from ccts_dist.losses.category import (
    CategoryTerm,
    category_shares,
    cross_entropy_sums,
    divergence_sums,
    mean_cross_entropy,
)

NAN = math.nan


def test_value_and_gradient_are_those_worked_by_hand():
    # Softmax of (0, ln 3) is (1/4, 3/4): the true first one costs ln 4, and pulls by 1/4 - 1 and 3/4.
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    sums = cross_entropy_sums(scores, torch.tensor([0, 1]), torch.ones(2))
    assert sums.tolist() == pytest.approx([math.log(4) + math.log(2), 2])
    loss = mean_cross_entropy(sums)
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == pytest.approx([-3 / 8, 3 / 8, 1 / 4, -1 / 4])


def test_unknown_categories_and_rows_of_no_weight_reach_neither_value_nor_gradient():
    scores = torch.tensor([[1.0, 2.0], [NAN, NAN], [math.inf, 0.0]], requires_grad=True)
    sums = cross_entropy_sums(scores, torch.tensor([1, -1, 0]), torch.tensor([1.0, 1.0, 0.0]))
    assert sums.tolist() == pytest.approx([math.log(1 + math.exp(-1)), 1])
    sums[0].backward()
    assert scores.grad is not None
    assert scores.grad[1:].abs().sum() == 0
    assert scores.grad[0].abs().sum() > 0


def test_without_a_known_category_the_loss_is_zero_and_so_is_its_gradient():
    scores = torch.randn(3, 4, requires_grad=True)
    loss = mean_cross_entropy(cross_entropy_sums(scores, torch.full((3,), -1), torch.ones(3)))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0


def test_sums_add_up_over_parts():
    generator = torch.Generator().manual_seed(2)
    scores, category = torch.randn(12, 3, generator=generator), torch.randint(-1, 3, (12,), generator=generator)
    parts = [cross_entropy_sums(scores[at : at + 4], category[at : at + 4], torch.ones(4)) for at in (0, 4, 8)]
    whole = cross_entropy_sums(scores, category, torch.ones(12))
    assert torch.stack(parts).sum(0).tolist() == pytest.approx(whole.tolist(), abs=1e-12)


def test_class_weights_give_the_weighted_mean_of_torch():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    category, weights = torch.randint(0, 3, (9,), generator=generator), (0.25, 1.0, 4.0)
    term = CategoryTerm(class_weights=weights)
    sums = torch.stack([cross_entropy_sums(scores[at], category[at], torch.ones(3), term)
                        for at in (slice(0, 3), slice(3, 6), slice(6, 9))]).sum(0)  # fmt: skip
    expected = torch.nn.functional.cross_entropy(scores, category, weight=torch.tensor(weights).double())
    assert mean_cross_entropy(sums).item() == pytest.approx(expected.item())
    assert mean_cross_entropy(sums).item() != pytest.approx(
        torch.nn.functional.cross_entropy(scores, category).item(), rel=0.01
    )
    counts = torch.ones(3)
    counts[1] = 0
    assert category_shares(torch.tensor([2, 2, -1]), counts, term).tolist() == [4.0, 0.0, 0.0]


def test_focal_loss_is_the_one_worked_by_hand():
    # The true category has 3/4: its cross-entropy ln(4/3) counts (1/4)^2; at 1/4, ln 4 counts (3/4)^2.
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    sums = cross_entropy_sums(scores, torch.tensor([1, 0]), torch.ones(2), CategoryTerm(focal_gamma=2.0))
    assert sums.tolist() == pytest.approx([math.log(4 / 3) / 16 + math.log(4) * 9 / 16, 2])


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradient_of_the_focal_loss_is_finite_where_a_category_is_certain(gamma: float):
    scores = torch.tensor([[80.0, 0.0], [0.0, 80.0]], dtype=torch.float64, requires_grad=True)
    cross_entropy_sums(scores, torch.tensor([0, 0]), torch.ones(2), CategoryTerm(focal_gamma=gamma))[0].backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0].abs().max() < 1e-3
    assert scores.grad[1].tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)


def test_cross_entropy_of_votes_is_the_one_worked_by_hand():
    # Predicted (1/4, 3/4), voted (1/2, 1/2): ln 4 / 2 + ln(4/3) / 2. Gradient: prediction less votes.
    scores = torch.tensor([[0.0, math.log(3.0)], [NAN, 1.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    votes = torch.tensor([[0.5, 0.5], [NAN, NAN], [1.0, 0.0]])
    sums = cross_entropy_sums(scores, votes, torch.tensor([1.0, 1.0, 0.0]))
    assert sums.tolist() == pytest.approx([math.log(4) / 2 + math.log(4 / 3) / 2, 1])
    sums[0].backward()
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, 0, 0, 0, 0])
    assert category_shares(votes, torch.ones(3)).tolist() == [1, 0, 1]
    divergence = divergence_sums(scores.detach(), votes, torch.ones(3))
    assert divergence.tolist() == pytest.approx([math.log(4) / 2 + math.log(4 / 3) / 2 - math.log(2) + math.log(2), 2])


def test_class_weights_and_focal_factor_go_to_each_share_of_the_votes():
    # As above with weights 3 and 1 and gamma 2: (3 ln 4 (3/4)^2 + ln(4/3) (1/4)^2) / 2 over (3 + 1) / 2.
    scores = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    term = CategoryTerm(class_weights=(3.0, 1.0), focal_gamma=2.0)
    sums = cross_entropy_sums(scores, torch.tensor([[0.5, 0.5]]), torch.ones(1), term)
    assert sums.tolist() == pytest.approx([(3 * math.log(4) * 9 + math.log(4 / 3)) / 32, 2])


@pytest.mark.parametrize("term", [CategoryTerm(), CategoryTerm(class_weights=(0.5, 1.0, 4.0), focal_gamma=2.0)])
def test_unanimous_votes_give_what_the_category_gives(term: CategoryTerm):
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    category = torch.tensor([0, 1, 2, 2, -1, 0, 1])
    votes = torch.nn.functional.one_hot(category.clamp(min=0), 3).float()
    votes[4] = NAN
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1, 1])
    hard, soft = (cross_entropy_sums(scores, target, weight, term).tolist() for target in (category, votes))
    assert soft == pytest.approx(hard, abs=1e-12)
    assert category_shares(votes, weight, term).tolist() == category_shares(category, weight, term).tolist()
