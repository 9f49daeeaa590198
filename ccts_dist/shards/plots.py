"""A shard set as a picture: hours by split, label histograms, durations."""

from collections.abc import Sequence
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.shards.statistics import NUM_BINS, SplitStatistics

KINDS = (".png", ".svg", ".pdf")


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only pictures need it
    from matplotlib.figure import Figure

    check_picture(path)
    targets = list(splits[0].labels) if splits else []
    figure = Figure(figsize=(3.6 * (2 + len(targets)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    hours, durations, *labels = figure.subplots(1, 2 + len(targets))
    hours.barh([split.split for split in splits], [split.hours for split in splits])
    hours.invert_yaxis()
    hours.set_xlabel("hours")
    for split in splits:
        longest = max(split.durations, default=0)
        share = [100 * split.durations.get(second, 0) / split.num_utterances for second in range(longest + 1)]
        durations.stairs(share, range(longest + 2), label=split.split)
    durations.set_xlabel("seconds")
    durations.set_ylabel("% of utterances")
    edges = [number / NUM_BINS for number in range(NUM_BINS + 1)]
    for target, axes in zip(targets, labels, strict=True):
        for split in splits:
            label = split.labels[target]
            if label.num_labelled:
                axes.stairs([100 * count / label.num_labelled for count in label.histogram], edges, label=split.split)
        axes.set_xlabel(f"{target}, 0..1")
        axes.set_ylabel("% of labels")
    if len(splits) > 1:
        durations.legend(fontsize="small", loc="best")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Name another file with --plot.") from error
