"""CCC of the probes, and its interval."""

import pytest
import torch

from ccts_dist.losses.ccc import concordance_sums
from ccts_dist.metrics import SplitSums
from ccts_dist.probe.scores import add_by_cluster, bootstrap_interval, ccc_of, clusters_of, row_sums


def split(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(count, 2, generator=generator)
    said = 0.5 * label + 0.3 * torch.rand(count, 2, generator=generator)
    label[3, 1] = torch.nan
    weight = torch.ones(count)
    weight[5] = 0
    said[5] = torch.inf
    return said, label, weight


def test_row_sums_add_up_to_those_of_the_loss():
    said, label, weight = split()
    torch.testing.assert_close(row_sums(said, label, weight).sum(0), concordance_sums(said, label, weight))


def test_ccc_is_that_of_evaluation():
    said, label, weight = split()
    sums = SplitSums(("a", "b"))
    sums.add(said, label, weight)
    assert ccc_of(row_sums(said, label, weight).sum(0)).tolist() == pytest.approx(list(sums.ccc().values()), abs=1e-9)


def test_utterance_of_an_unknown_speaker_is_a_speaker_of_its_own():
    assert clusters_of(["ann", None, "bob", "ann", None]) == [0, 1, 2, 0, 3]


def test_one_speaker_gives_no_interval():
    assert bootstrap_interval(row_sums(*split()).sum(0, keepdim=True)).isnan().all()


def test_interval_by_hand():
    # Two speakers: one predicted perfectly, one exactly the wrong way round. Drawn: both (CCC 0, in half of all
    # replicates), or one of them twice (1 or -1, in a quarter each).
    rows = row_sums(
        torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.ones(4)
    )
    by_speaker = torch.zeros(2, 6, 1, dtype=torch.float64)
    add_by_cluster(by_speaker, torch.tensor([0, 0, 1, 1]), rows)
    assert bootstrap_interval(by_speaker).flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-9)


def test_interval_holds_the_score_and_is_wider_with_fewer_speakers():
    said, label, weight = split(400)
    rows = row_sums(said, label, weight)
    widths = []
    for num_speakers in (100, 8):
        by_speaker = torch.zeros(num_speakers, 6, 2, dtype=torch.float64)
        # Sorted by label, so that few speakers differ more than many do within themselves.
        order = label[:, 0].argsort()
        cluster = torch.empty(400, dtype=torch.int64)
        cluster[order] = torch.arange(400) * num_speakers // 400
        add_by_cluster(by_speaker, cluster, rows)
        low, high = bootstrap_interval(by_speaker)
        assert (low <= ccc_of(rows.sum(0))).all()
        assert (high >= ccc_of(rows.sum(0))).all()
        widths.append(float(high[0] - low[0]))
        torch.testing.assert_close(bootstrap_interval(by_speaker), torch.stack([low, high]), rtol=0, atol=0)
    assert widths[1] > widths[0]
