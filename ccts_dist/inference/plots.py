"""The curves of a recording's windows as a picture."""

from pathlib import Path

from ccts_dist.errors import ConfigError, without_controls
from ccts_dist.inference.windows import Curve
from ccts_dist.shards.plots import KINDS

_DOTS = 60
"""Up to so many windows each is a dot too."""


def pictures_are_in_folder(place: Path, num_recordings: int) -> bool:
    """Whether ``place`` is a folder for a picture of each recording; it is made if need be. False: one picture's file.

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
    """Draw each target over time, and its mean as a line.

    The picture's title and a description in words are in the file, as SVG, PNG and PDF have places for them.

    Args:
        curve: with its windows kept.
        targets: what is drawn, one below the other.
        scale: lowest and highest rating of the corpus, for the axes.

    Raises:
        ConfigError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only pictures need it
    from matplotlib.figure import Figure

    minutes = curve.end_s > 600
    times = [time / 60 if minutes else time for time in curve.middles_s]
    figure = Figure(figsize=(9, 0.8 + 1.7 * len(targets)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(targets), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(_title(curve))
    mean = curve.mean()
    for target, axes in zip(targets, panels, strict=True):
        values = [row[curve.numbers.index(target)] for row in curve.ratings]
        axes.plot(times, values, "o-" if len(values) <= _DOTS else "-", markersize=3, linewidth=1.0)
        axes.axhline(mean[target], color="grey", linewidth=0.8, linestyle="--")
        axes.set_ylabel(target)
        if not target.endswith(".variance"):
            axes.set_ylim(min(scale[0], *values), max(scale[1], *values))
        axes.margins(x=0.01)
    panels[-1].set_xlabel("minutes" if minutes else "seconds")
    kind = path.suffix.lower()
    words = {"Title": _title(curve), "Subject" if kind == ".pdf" else "Description": description(curve, targets)}
    if kind != ".png":
        words |= {"CreationDate" if kind == ".pdf" else "Date": None}  # the same curve, the same file
    try:
        with mpl.rc_context({"svg.hashsalt": "ccts-dist"}):
            figure.savefig(path, metadata=words)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Name another place with --plot.") from error


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
