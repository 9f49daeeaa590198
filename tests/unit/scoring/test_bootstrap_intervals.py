"""Intervals over speakers."""

import math

import pytest
import torch

from ccts_dist.losses.ccc import concordance_sums
from ccts_dist.scoring import bootstrap, clusters_of, sums_by_speaker
from ccts_dist.scoring.bootstrap_intervals import _effective, _ends
from ccts_dist.scoring.measures import SplitSums, ccc_of, mae_of, row_sums


def split(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(count, 2, generator=generator)
    printed = 0.5 * label + 0.3 * torch.rand(count, 2, generator=generator)
    label[3, 1] = torch.nan
    weight = torch.ones(count)
    weight[5] = 0
    printed[5] = torch.inf
    return printed, label, weight


def test_row_sums_add_up_to_those_of_the_loss():
    printed, label, weight = split()
    torch.testing.assert_close(row_sums(printed, label, weight).sum(0)[:6], concordance_sums(printed, label, weight))


def test_ccc_of_any_number_of_sums_at_once_is_that_of_a_split():
    printed, label, weight = split()
    sums = SplitSums(("a", "b"))
    sums.add(printed, label, weight)
    both = torch.stack([row_sums(printed, label, weight).sum(0)] * 3, dim=1)
    for row in ccc_of(both).tolist():
        assert row == pytest.approx(list(sums.ccc().values()), abs=1e-12)


def test_utterance_of_an_unknown_speaker_is_a_speaker_of_its_own():
    assert clusters_of(["ann", None, "bob", "ann", None]) == [0, 1, 2, 0, 3]
    rows = torch.arange(5, dtype=torch.float64)[:, None, None].expand(5, 7, 1)
    assert sums_by_speaker(["ann", None, "bob", "ann", None], rows)[:, 0, 0].tolist() == [3, 1, 2, 4]


def test_one_speaker_gives_a_figure_without_an_interval():
    (a, _) = bootstrap(row_sums(*split()).sum(0, keepdim=True), ccc_of)
    assert math.isnan(a.low)
    assert not a.is_known
    assert 0 < a.value < 1


def test_interval_by_hand():
    # Two speakers: one predicted perfectly, one exactly the wrong way round. Drawn: both (CCC 0, in half of all
    # draws), or one of them twice (1 or -1, in a quarter each); nothing is skewed, and no draw biased.
    rows = row_sums(
        torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.ones(4)
    )
    (found,) = bootstrap(sums_by_speaker(["a", "a", "b", "b"], rows), ccc_of)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -1.0, 1.0), abs=1e-9)


def test_ends_lie_farther_out_with_few_speakers_as_worked_by_hand():
    # Ten equal speakers: t of 9 degrees is 2.26216, times sqrt(10 / 9) 2.38453, below which .99145 of a normal lie.
    assert _ends(10.0) == pytest.approx((0.00855, 0.99145), abs=1e-5)
    # Ever so many: the usual 2.5 %.
    assert _ends(1e6) == pytest.approx((0.025, 0.975), abs=1e-5)


def test_uneven_speakers_amount_to_fewer():
    # One states 6, four state 1: 100 / 40.
    assert _effective(torch.tensor([6.0, 1, 1, 1, 1], dtype=torch.float64)) == pytest.approx(2.5)
    assert _effective(torch.full((7,), 3.0, dtype=torch.float64)) == pytest.approx(7)
    assert _effective(torch.zeros(3, dtype=torch.float64)) == 0


def test_interval_of_a_figure_of_labels_alone_is_the_same_whatever_was_predicted():
    _, label, _ = split(20)
    uneven = torch.zeros(20, 2)
    uneven[0] = 1
    found = [
        bootstrap(row_sums(printed, label, torch.ones(20)), lambda sums: sums[2] / sums[0])
        for printed in (torch.full((20, 2), 0.5), uneven)
    ]
    assert found[0] == found[1]


def test_interval_holds_the_figure_is_wider_with_fewer_speakers_and_comes_again():
    printed, label, weight = split(400)
    rows = row_sums(printed, label, weight)
    widths = []
    for num_speakers in (100, 8):
        # Sorted by label, so that few speakers differ more than many do within themselves.
        order = label[:, 0].argsort()
        cluster = torch.empty(400, dtype=torch.int64)
        cluster[order] = torch.arange(400) * num_speakers // 400
        by_speaker = sums_by_speaker([str(number) for number in cluster.tolist()], rows)
        found = bootstrap(by_speaker, ccc_of)
        for one in found:
            assert one.low <= one.value <= one.high
        widths.append(found[0].high - found[0].low)
        assert bootstrap(by_speaker, ccc_of) == found
        assert bootstrap(by_speaker, ccc_of, seed=1) != found
    assert widths[1] > widths[0]


def test_draws_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch):
    by_speaker = row_sums(*split(50))
    whole = bootstrap(by_speaker, ccc_of, replicates=200)
    monkeypatch.setattr("ccts_dist.scoring.bootstrap_intervals._NUMBERS_AT_ONCE", 50 * 7)
    for one, other in zip(bootstrap(by_speaker, ccc_of, replicates=200), whole, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_figure_that_most_draws_do_not_have_has_no_interval():
    # Two labels among twenty speakers: a draw seldom has both.
    label = torch.full((20, 1), torch.nan)
    label[:2] = torch.tensor([[0.0], [1.0]])
    (found,) = bootstrap(row_sums(torch.linspace(0, 1, 20)[:, None], label, torch.ones(20)), mae_of)
    assert found.value == pytest.approx((0 + 18 / 19) / 2, abs=1e-6)
    assert not found.is_known
