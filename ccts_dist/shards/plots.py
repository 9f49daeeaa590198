"""A shard set as a picture: hours by split, durations, categories, label histograms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccts_dist.errors import ConfigError
from ccts_dist.plotting import MODEL, OTHER, REJECTED, TEACHER, drawing, legend_above, save_picture
from ccts_dist.records import is_rating
from ccts_dist.shards.statistics import NUM_BINS, SplitStatistics

KINDS = (".png", ".svg", ".pdf")

_COLORS = (MODEL, OTHER, TEACHER, "#7d6fd1", "#a48a1e", REJECTED)
_WIDTHS = (1, 2, 5, 10, 20, 50, 100, 600)
_MOST_BINS = 40
_COLUMNS, _MOST_CATEGORIES = 3, 10


def check_picture(path: Path) -> None:
    """Refuse a file that no picture can be written to, before anything is counted.

    Raises:
        ConfigError: another kind of picture, or no folder to put it in.
    """
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"{path}: pictures are {', '.join(KINDS)} files. Name such a file with --plot.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}. Name a file in one that is there with --plot.")


def draw_set(path: Path, title: str, splits: Sequence[SplitStatistics]) -> None:
    """Draw the figures of a set's splits into a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    check_picture(path)
    targets = [target for target in splits[0].labels if is_rating(target)] if splits else []
    first = 3 if any(split.categories for split in splits) else 2
    if first + len(targets) > _COLUMNS:
        first = _COLUMNS  # the targets begin a row
    num_columns = min(_COLUMNS, first + len(targets))
    num_rows = -(-(first + len(targets)) // num_columns)
    with drawing(width=3.6 * num_columns, height=0.6 + 2.7 * num_rows, page=False) as figure:
        figure.suptitle(title, x=0.01, ha="left")
        places = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
        hours, durations, *others = places
        labels = others[first - 2 :]
        colors = {split.split: _COLORS[number % len(_COLORS)] for number, split in enumerate(splits)}
        hours.barh(list(colors), [split.hours for split in splits], color=list(colors.values()))
        hours.invert_yaxis()
        hours.grid(visible=False, axis="y")
        hours.set_xlabel("hours")
        width = _bin_width(splits)
        for split in splits:
            shares, edges = duration_shares(split, width)
            durations.stairs(shares, edges, label=split.split, color=colors[split.split], linewidth=1.4)
        durations.set_xlabel(f"duration, bins of {width / 10:g} s")
        durations.set_ylabel("% of utterances")
        edges = [number / NUM_BINS for number in range(NUM_BINS + 1)]
        for target, axes in zip(targets, labels, strict=False):
            for split in splits:
                label = split.labels[target]
                if label.num_labelled:
                    shares = [100 * count / label.num_labelled for count in label.histogram]
                    axes.stairs(shares, edges, color=colors[split.split], linewidth=1.4)
            axes.set_xlabel(f"{target}, 0..1")
            axes.set_ylabel("% of labels")
            axes.set_xlim(0, 1)
        for axes in labels[: len(targets)]:
            axes.set_ylim(0, max(one.get_ylim()[1] for one in labels[: len(targets)]))
        if any(split.categories for split in splits):
            _draw_categories(others[0], splits, colors)
        elif first > 2:
            others[0].remove()
        for axes in labels[len(targets) :]:
            axes.remove()
        if len(splits) > 1:
            legend_above(figure, durations, columns=len(splits), side="right")
        save_picture(figure, path)


def _draw_categories(axes: Any, splits: Sequence[SplitStatistics], colors: Mapping[str, str]) -> None:
    """Percent of each split's categorised utterances; the most frequent categories on top."""
    counts = sum((Counter(split.categories) for split in splits), Counter[str]())
    names = [name for name, _ in counts.most_common(_MOST_CATEGORIES)]
    height = 0.8 / len(splits)
    for number, split in enumerate(splits):
        total = sum(split.categories.values())
        shares = [100 * split.categories.get(name, 0) / max(1, total) for name in names]
        places = [place + (number - (len(splits) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, shares, height=height, color=colors[split.split])
    axes.set_yticks(range(len(names)), [name[:16] for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    rest = len(counts) - len(names)
    axes.set_xlabel(f"% of categories{f'; {rest} more are not shown' if rest else ''}")


def duration_shares(split: SplitStatistics, width: int) -> tuple[list[float], list[float]]:
    """Percent of a split's utterances in each bin of ``width`` tenths of a second, and the bins' edges in seconds."""
    counts = Counter[int]()
    for tenth, count in split.duration_tenths.items():
        counts[tenth // width] += count
    bins = range(min(counts, default=0), max(counts, default=0) + 1)
    shares = [100 * counts[number] / split.num_utterances for number in bins]
    return shares, [number * width / 10 for number in (*bins, bins[-1] + 1)]


def _bin_width(splits: Sequence[SplitStatistics]) -> int:
    """In tenths of a second: the smallest round one with which there are few enough bins."""
    longest = max((max(split.duration_tenths, default=0) for split in splits), default=0)
    shortest = min((min(split.duration_tenths, default=0) for split in splits), default=0)
    return next((width for width in _WIDTHS if (longest - shortest) / width <= _MOST_BINS), _WIDTHS[-1])
