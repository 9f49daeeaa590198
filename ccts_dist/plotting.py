"""The style of all pictures, and matplotlib figures as SVG for a page or as files."""

import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccts_dist.errors import ConfigError

MODEL, OTHER, TEACHER, REJECTED = "#3480c4", "#d9772b", "#1f9e89", "#8b95a0"
"""One meaning each on a page: the model, what it is compared with, the teacher and what its gate accepts, what the gate
rejects. Seen on white and on black, and distinguished without red and green."""

_TARGETS = ("#cc6677", "#a48a1e", "#7d6fd1", "#3aa0b8", "#a0522d", "#708090")
_KNOWN = ("activation", "valence", "dominance")

INTERVAL = {"markersize": 5, "capsize": 2.5, "elinewidth": 1.3, "linestyle": "none"}
"""Style of marks with their intervals."""

_INK = "#010203"
"""Stands for the page's text colour until the picture is written; nothing is drawn in it otherwise."""

_DPI = 200
"""Resolution of what is an image within a picture, and of pictures as PNG: as fine as a phone shows it."""


def color_of(target: str, number: int = 0) -> str:
    """The colour of a target in every picture; of unknown targets by their number."""
    place = _KNOWN.index(target) if target in _KNOWN else len(_KNOWN) + number
    return _TARGETS[place % len(_TARGETS)]


@contextmanager
def drawing(name: str = "ccts-dist", *, width: float = 3.7, height: float = 2.9, page: bool = True) -> Iterator[Any]:
    """A matplotlib figure in the style of all pictures, to be written within the block: ``to_svg``, ``save_picture``.

    Args:
        name: unique in the page: the picture's ids begin with it.
        width: in inches, as ``height``.
        page: for a page, in its ink and on its ground; else on white.
    """
    import matplotlib  # half a second, and only pictures need it
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, ground = (_INK, "none") if page else ("#2b3138", "white")
    colored = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), ink
    )
    settings: dict[Any, Any] = {
        **colored,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.linewidth": 0.7,
        "axes.prop_cycle": cycler(color=(MODEL, OTHER, TEACHER, *_TARGETS)),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.titlesize": "large",
        "font.family": "sans-serif",
        "font.size": 9,
        "grid.alpha": 0.16,
        "grid.linewidth": 0.6,
        "legend.fontsize": "small",
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "lines.linewidth": 1.4,
        "savefig.facecolor": ground,
        "svg.fonttype": "path",  # a reader's fonts are of other widths
        "svg.hashsalt": name,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=ground)
        FigureCanvasAgg(figure)
        yield figure


def scale_ticks(low: float, high: float) -> list[float]:
    """Ticks of a rating scale, both ends among them: whole numbers if a few are equally far apart, else quarters.

    >>> scale_ticks(1.0, 7.0)
    [1.0, 3.0, 5.0, 7.0]
    """
    spaces = next((count for count in (4, 3, 6, 5, 2) if (high - low) % count == 0), 4)
    return [low + number * (high - low) / spaces for number in range(spaces + 1)]


def span_decades(values: Iterable[float]) -> bool:
    """True if a logarithmic axis is needed: all are positive, and the largest is more than ten times the least."""
    low = high = None
    for value in values:
        low, high = min(value, low or value), max(value, high or value)
        if value <= 0:
            return False
    return low is not None and high is not None and bool(high > 10 * low)


def legend_above(figure: Any, axes: Any, *, columns: int = 3, side: str = "left") -> None:
    """The legend of the axes' marks above all panels, where no data are; none of a picture without named marks."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc=f"outside upper {side}", ncols=columns, borderpad=0, columnspacing=1.2)


def save_picture(figure: Any, path: Path, *, metadata: Mapping[str, str | None] | None = None) -> None:
    """Write the figure into a PNG, SVG or PDF file, by the name's ending.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        figure.savefig(path, dpi=_DPI, metadata=metadata)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Name another file for the plot.") from error


def to_svg(figure: Any, name: str, alternative: str) -> str:
    """The figure as an ``<svg>`` element. Equal figures give equal text.

    Args:
        name: as ``drawing`` has it.
        alternative: what the picture shows, in words.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=_DPI, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].rstrip()
    # Ids are shared by the whole page.
    text = re.sub(r'(\bid=")', rf"\g<1>{name}-", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor")
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None, "matplotlib gives one"
    words = html.escape(alternative, quote=True)
    return re.sub(
        r"^<svg[^>]*>",
        lambda _: (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]} '
            f'role="img" aria-label="{words}">'
        ),
        text,
    )
