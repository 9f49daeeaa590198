"""Pictures that stand in a page: SVG in the page's own ink, with words for those who do not see it."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INK = "#010203"
"""Stands for the page's text colour until the picture is written; nothing is drawn in it otherwise."""

COLOURS = ("#3b82c4", "#d9772b", "#3f9b5f", "#b05fc0", "#b8922e", "#5f7fa8")
"""Seen on white and on black."""

_DPI = 160
"""Of what is an image within a picture: as fine as a phone shows it."""


@contextmanager
def drawing(name: str, *, width: float = 4.2, height: float = 3.4) -> Iterator[Any]:
    """A matplotlib figure for the length of the block, within which it must be turned into text with ``to_svg``.

    Args:
        name: unique in the page: the picture's ids begin with it.
        width: in inches, as ``height``.
    """
    import matplotlib  # half a second, and only pictures need it
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    )
    settings: dict[Any, Any] = {
        **ink,
        "axes.facecolor": "none",
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 9,
        "grid.alpha": 0.25,
        "legend.framealpha": 0,
        "savefig.facecolor": "none",
        "svg.fonttype": "path",  # a reader's fonts are of other widths
        "svg.hashsalt": name,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        yield figure


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
