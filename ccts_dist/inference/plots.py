"""The curves of a recording's windows as a picture."""

from collections.abc import Sequence
from pathlib import Path

from ccts_dist.errors import ConfigError, without_controls
from ccts_dist.inference.windows import Curve
from ccts_dist.plotting import color_of, drawing, save_picture, scale_ticks
from ccts_dist.shards.plots import KINDS

_DOTS = 60
"""Up to so many windows each is a dot too."""


def pictures_are_in_folder(place: Path, num_recordings: int) -> bool:
    """True if ``place`` is a folder for a picture of each recording; it is made if need be. False: one picture's file.

    Raises:
        ConfigError: one picture for several recordings, another kind of picture, or no such place.
    """
    kind = place.suffix.lower()
    if kind in KINDS and not place.is_dir():
        if num_recordings > 1:
            raise ConfigError(
                f"--plot {place}: is one picture, and there are {num_recordings} recordings. Name a folder."
            )
        return False
    if kind and not place.is_dir():
        raise ConfigError(
            f"--plot {place}: pictures are {', '.join(KINDS)} files. Name such a file, or a folder without a dot."
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--plot {place}: cannot be made ({error.strerror}). Name another folder.") from error
    return True


def picture_in(folder: Path, curve: Curve, taken: set[str]) -> Path:
    """A file of its own for a recording: its name without folders, numbered where that is ``taken``.

    Names that differ in case alone count as one: some file systems store them as one file.
    """
    stem = Path(curve.name).name
    name, number = f"{stem}.png", 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name.casefold())
    return folder / name


def draw_curve(path: Path, curve: Curve, *, targets: tuple[str, ...], scale: tuple[float, float]) -> None:
    """Draw each target over time, and its mean as a dashed line.

    A last window that is nearer than half a hop is a mark without a line.

    The picture's title and a description in words are in the file, as SVG, PNG and PDF have places for them.

    Args:
        curve: with its windows kept.
        targets: what is drawn, one below the other.
        scale: lowest and highest rating of the corpus, for the axes.

    Raises:
        ConfigError: the file cannot be written.
    """
    minutes = curve.end_s > 600
    times = [time / 60 if minutes else time for time in curve.middles_s]
    mean, whole = curve.mean(), _num_regular(times)
    kind = path.suffix.lower()
    words = {"Title": _title(curve), "Subject" if kind == ".pdf" else "Description": description(curve, targets)}
    if kind != ".png":
        words |= {"CreationDate" if kind == ".pdf" else "Date": None}  # the same curve, the same file
    with drawing(width=9.0, height=0.8 + 1.7 * len(targets), page=False) as figure:
        panels = figure.subplots(len(targets), 1, sharex=True, squeeze=False)[:, 0]
        figure.suptitle(_title(curve), x=0.01, ha="left")
        for number, (target, axes) in enumerate(zip(targets, panels, strict=True)):
            values = [row[curve.numbers.index(target)] for row in curve.ratings]
            color = color_of(target, number)
            axes.plot(times[:whole], values[:whole], "o-" if len(values) <= _DOTS else "-", markersize=3, color=color)
            axes.plot(times[whole:], values[whole:], "o", markersize=4, color=color, fillstyle="none")
            axes.axhline(mean[target], color=color, linewidth=1.0, linestyle="--")
            axes.annotate(f"mean {mean[target]:.2f}", (1.005, mean[target]), xycoords=("axes fraction", "data"),
                          va="center", fontsize="small")  # fmt: skip
            axes.set_ylabel(target)
            if not target.endswith(".variance"):
                axes.set_yticks(scale_ticks(*scale))
                axes.set_ylim(min(scale[0], *values), max(scale[1], *values))
        panels[-1].set_xlim(0, curve.end_s / 60 if minutes else curve.end_s)
        hollow = "; hollow: the last window, which ends with the recording" if whole < len(times) else ""
        panels[-1].set_xlabel(("minutes" if minutes else "seconds") + ", at the middle of each window" + hollow)
        save_picture(figure, path, metadata=words)


def _num_regular(times: Sequence[float]) -> int:
    """How many windows, from the first on, are a hop apart: the last may lie nearer, since it ends with the recording.

    A line to it would be a stroke upwards or downwards.
    """
    near = len(times) > 2 and times[-1] - times[-2] < 0.5 * (times[1] - times[0])
    return len(times) - near


def _title(curve: Curve) -> str:
    return without_controls(Path(curve.name).name)  # which SVG cannot hold


def description(curve: Curve, targets: tuple[str, ...]) -> str:
    """The curves in words, for who cannot see them."""
    parts = []
    mean = curve.mean()
    for target in targets:
        values = [row[curve.numbers.index(target)] for row in curve.ratings]
        highest, lowest = (values.index(extreme(values)) for extreme in (max, min))
        parts.append(
            f"{target} has a mean of {mean[target]:.2f}, is lowest ({values[lowest]:.2f}) at "
            f"{curve.middles_s[lowest]:.1f} s and highest ({values[highest]:.2f}) at {curve.middles_s[highest]:.1f} s"
        )
    return (
        f"Emotion over the {curve.end_s:.1f} s of {_title(curve)} in {curve.num_windows} windows: {'; '.join(parts)}."
    )
