"""Figures of a split, by hand."""

import dataclasses
import math
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.statistics import split_statistics
from tests.helpers.examples.shard_examples import build_example, make_utterances


def test_counts_durations_and_label_moments_by_hand(tmp_path: Path):
    labels = [{"valence": 0.2}, {"valence": 0.4}, {"valence": 0.9}, {}]
    utterances = [
        dataclasses.replace(utterance, labels=label, split="Train")
        for utterance, label in zip(make_utterances(tmp_path, 4), labels, strict=True)
    ]
    build_example(utterances, tmp_path / "s", tmp_path, shard_bytes=1)
    figures = split_statistics(open_shard_set(tmp_path / "s"), "Train")
    assert (figures.num_shards, figures.num_utterances, figures.num_speakers) == (4, 4, 3)
    assert (figures.shortest_s, figures.longest_s) == (1600 / 16_000, 1720 / 16_000)
    assert figures.hours == pytest.approx((1600 + 1640 + 1680 + 1720) / 16_000 / 3600)
    valence = figures.labels["valence"]
    assert valence.num_labelled == 3
    assert valence.mean == pytest.approx(0.5)
    assert valence.std == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 3))
    assert figures.labels["activation"].num_labelled == 0
    assert math.isnan(figures.labels["activation"].mean)
    assert valence.histogram == (0, 0, 1, 0, 1, 0, 0, 0, 0, 1)
    assert (figures.num_unlabelled, figures.num_without_speaker) == (1, 0)
    assert (figures.durations, figures.categories) == ({0: 4}, {"Happy": 4})
    with pytest.raises(ConfigError, match="no split 'Test1'"):
        split_statistics(open_shard_set(tmp_path / "s"), "Test1")
