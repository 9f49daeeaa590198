"""A page that stands by itself: no script, nothing fetched, readable on a phone and in the dark."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --faint: #5b6570; --line: #d5dae0; --band: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --ink: #e4e7ea; --faint: #9aa4af; --line: #363d45; --band: #1d2226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p { max-width: 48rem; } .note { border-left: 4px solid #d9772b; padding-left: .8rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; max-width: 36rem; } svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .85rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; color: var(--faint); }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td.long { min-width: 9rem; overflow-wrap: anywhere; }
small { color: var(--faint); display: block; font-size: .75rem; white-space: nowrap; }
audio { width: 12rem; height: 2.2rem; display: block; }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""Whatever a corpus has in its keys and words, nothing is fetched and nothing is run."""


@dataclass(frozen=True, slots=True)
class Markup:
    """Text that is HTML already; any other text is escaped."""

    text: str


Cell = str | int | Markup


def page(title: str, parts: Sequence[Markup]) -> str:
    """A whole document."""
    body = "\n".join(part.text for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def heading(words: str, level: int = 2) -> Markup:
    """A heading of that level."""
    return Markup(f"<h{level}>{html.escape(words)}</h{level}>")


def paragraph(words: str, *, note: bool = False) -> Markup:
    """A paragraph; a note is one that a reader must not miss."""
    return Markup(f"<p{' class=note' if note else ''}>{html.escape(words)}</p>")


def pictures(svgs: Sequence[tuple[str, str]]) -> Markup:
    """Pictures side by side where there is room: for each its ``<svg>`` and a caption."""
    figures = (f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for svg, caption in svgs)
    return Markup(f'<div class="pictures">{"".join(figures)}</div>')


def with_small(words: str, below: str) -> Markup:
    """A cell with a second, fainter line."""
    return Markup(f"{html.escape(words)}<small>{html.escape(below)}</small>")


def player(flac: bytes, name: str) -> Markup:
    """A recording that can be read."""
    import base64

    data = base64.b64encode(flac).decode()
    return Markup(
        f'<audio controls preload="none" aria-label="{html.escape(name)}" src="data:audio/flac;base64,{data}"></audio>'
    )


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], *, long: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where the page is narrow.

    Args:
        caption: what it shows.
        header: a word for each column.
        rows: cells; text is escaped.
        long: numbers of the columns whose words may be broken anywhere.
    """
    head = "".join(f'<th scope="col">{html.escape(word)}</th>' for word in header)
    lines = []
    for row in rows:
        cells = []
        for number, cell in enumerate(row):
            words = cell.text if isinstance(cell, Markup) else html.escape(str(cell))
            cells.append(f'<td class="long">{words}</td>' if number in long else f"<td>{words}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return Markup(
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
