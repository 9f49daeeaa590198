"""Figures of a split, by hand."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.plotting import save_picture
from ccts_dist.shards import open_shard_set, plots
from ccts_dist.shards.statistics import LabelStatistics, SplitStatistics, split_statistics
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


def figures(split: str, targets: list[str], categories: dict[str, int]) -> SplitStatistics:
    """Two utterances; only the first target has labels."""
    some, none = (2, 0.5, 0.1, (1, 1)), (0, math.nan, math.nan, (0, 0))
    labels = {}
    for number, target in enumerate(targets):
        labelled, mean, std, bins = none if number else some
        labels[target] = LabelStatistics(num_labelled=labelled, mean=mean, std=std, histogram=bins + (0,) * 8)
    return SplitStatistics(
        split=split,
        num_shards=1,
        num_utterances=2,
        num_speakers=1,
        num_without_speaker=0,
        num_unlabelled=0,
        hours=0.1,
        shortest_s=1.0,
        longest_s=2.0,
        durations={1: 1, 2: 1},
        duration_tenths={10: 1, 20: 1},
        categories=categories,
        labels=labels,
    )


@pytest.mark.parametrize(
    ("targets", "categories", "shown"),
    [
        ([], {}, []),
        (["valence"], {}, ["valence, 0..1"]),
        (["valence", "arousal"], {}, ["valence, 0..1", "arousal, 0..1"]),
        ([], {"Happy": 2}, ["% of categories"]),
        (["valence"], {"Happy": 2}, ["% of categories", "valence, 0..1"]),
    ],
)
@pytest.mark.parametrize("splits", [["Train"], ["Train", "Test"]])
def test_a_picture_of_a_set_has_a_drawing_of_each_thing_there_is_and_no_empty_one(
    targets: list[str],
    categories: dict[str, int],
    shown: list[str],
    splits: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    drawn: list[str] = []

    def keep(figure: Any, path: Path) -> None:
        drawn.extend(axes.get_xlabel() for axes in figure.axes)
        save_picture(figure, path)

    monkeypatch.setattr(plots, "save_picture", keep)
    plots.draw_set(tmp_path / "a.png", "set", [figures(split, targets, categories) for split in splits])
    assert drawn == ["hours", "duration, bins of 0.1 s", *shown]
    assert (tmp_path / "a.png").stat().st_size
