"""A plain manifest, for every corpus that has no reader of its own: one row per utterance, as CSV or as JSON lines.

Columns: ``key``, ``audio`` and, each if there is one, ``split``, ``transcript``, ``speaker``, ``gender``, ``category``,
``num_raters``. Every other named column is a target, unless the targets are given; ``<target>.variance`` is the
variance of its raters.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccts_dist.corpus.cells import (
    RowError,
    csv_records,
    has_bad_bytes,
    json_row,
    no_record,
    parse_label,
    parse_number,
    printable,
    split_record,
    text_fault,
    text_lines,
)
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, folder_of_row
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import SHARE, Rejected, Utterance
from ccts_dist.redaction import redact

NEEDED_COLUMNS = ("key", "audio")
DESCRIBING_COLUMNS = ("split", "transcript", "speaker", "gender", "category", "num_raters")
VARIANCE = ".variance"
"""Ends the name of the column with the variance of a target's raters, in squared points of the scale."""

WHOLE = "all"
"""The split of a manifest without that column."""

_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_DELIMITERS = ",;\t"
_MOST_RATERS = 1_000_000

Row = Mapping[str, Any]
"""Column to cell: text in CSV; text, number or null in JSON."""


class _NoRowError(Exception):
    """Why a line of the manifest gives no row, and the key if there is one."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


@dataclass(slots=True)
class _Reading:
    """Settings that are the same for all rows."""

    path: Path
    targets: tuple[str, ...]
    scale: tuple[float, float]
    has_splits: bool
    folders: dict[Path, AudioFolder] = field(default_factory=dict)


def read_manifest(
    path: str | Path,
    *,
    name: str | None = None,
    release: str = "unknown",
    targets: Sequence[str] | None = None,
    scale: tuple[float, float] = (1.0, 7.0),
) -> Corpus:
    """Every row of a manifest as an ``Utterance``, or as a ``Rejected`` with the reason.

    A manifest is JSON lines (one object per line) if its name ends in ``.jsonl``, ``.ndjson`` or ``.json``, else CSV
    with a header, separated by commas, semicolons or tabs. Both are UTF-8. Keys are taken as they are spelt: two that
    look alike but differ in Unicode normalisation are two. An empty or absent rating leaves that target out; an
    utterance with no rating at all is kept, unlabelled. Opens no audio.

    Args:
        path: the manifest; ``audio`` is relative to its folder, or absolute.
        name: of the corpus; None for the file's name without its ending.
        release: of the corpus, for the manifest of the shard set.
        targets: columns with ratings; other unknown columns are then passed over. None for every column that is not
            one of those named above; a column without a single number is then refused.
        scale: lowest and highest rating, the same for all targets.

    Raises:
        CorpusError: no such file, a column is missing, or one is no target.
        ConfigError: the scale is not two numbers in rising order.
    """
    path, scale = Path(path), (float(scale[0]), float(scale[1]))
    if not (math.isfinite(scale[0]) and math.isfinite(scale[1]) and scale[0] < scale[1]):
        raise ConfigError(f"scale {scale[0]:g} {scale[1]:g}: must be two numbers, the lower one first.")
    if not path.is_file():
        raise CorpusError(f"{path}: no such file. Give a manifest in CSV or JSON lines.")
    columns = _columns(path)
    missing = [column for column in NEEDED_COLUMNS if column not in columns]
    if missing:
        found = ", ".join(map(printable, columns)) or "an empty file"
        raise CorpusError(f"{path}: looked for the columns {', '.join(missing)} and found {found}.")
    reading = _Reading(
        path=path,
        targets=_targets(path, columns, targets),
        scale=scale,
        has_splits="split" in columns,
    )
    utterances = tuple(_utterances(reading))
    if not utterances:
        raise CorpusError(f"{path}: no row. Give a manifest with an utterance per row.")
    return Corpus(
        name=_name_of(path) if name is None else name,
        release=release,
        scale=scale,
        targets=reading.targets,
        utterances=utterances,
        unnamed=tuple(path for folder in reading.folders.values() for path in folder.unnamed),
    )


def _name_of(path: Path) -> str:
    """A file's name without its ending, as it can be stored."""
    return printable(path.stem) if has_bad_bytes(path.stem) else path.stem


def _utterances(reading: _Reading) -> Iterator[Utterance | Rejected]:
    seen: dict[str, int] = {}
    source = reading.path.name
    for line, row in _rows(reading.path):
        if isinstance(row, _NoRowError):
            yield Rejected(key=printable(row.key) or f"line {line}", reason=str(row), source=source)
            continue
        key = row.get("key")
        key = "" if key is None else str(key)
        with suppress(RowError):  # its audio is named, whatever is wrong with the row
            _audio(reading, _text(row, "audio", line, source), line)
        try:
            _check_key(row, key, seen, line, source)
            seen[key] = line
            yield _utterance(reading, row, key, line, source)
        except RowError as error:
            yield Rejected(key=printable(key) or f"line {line}", reason=error.reason, source=error.source)


def _check_key(row: Row, key: str, seen: Mapping[str, int], line: int, source: str) -> None:
    if not _text(row, "key", line, source):
        raise RowError(f"line {line}: key is empty", source)
    if key in seen:
        raise RowError(f"line {line}: duplicate of line {seen[key]}, which comes first", source)


def _utterance(reading: _Reading, row: Row, key: str, line: int, source: str) -> Utterance:
    speaker, gender, category = (_text(row, name, line, source) for name in ("speaker", "gender", "category"))
    split = _text(row, "split", line, source).strip() if reading.has_splits else WHOLE
    if not split:
        raise RowError(f"line {line}: split is empty", source)
    labels = {}
    for target in reading.targets:
        label = _label(row, target, reading.scale, line, source)
        if label is not None:
            labels[target] = label
    return Utterance(
        key=key,
        audio=_audio(reading, _text(row, "audio", line, source), line),
        split=split,
        labels=labels,
        scale=reading.scale,
        transcript=_text(row, "transcript", line, source, any_character=True),
        speaker=speaker.strip() or None,
        gender=gender.strip() or None,
        category=category.strip() or None,
        label_variance=_variances(reading, row, labels, line),
        num_raters=_num_raters(row, line, source),
    )


def _audio(reading: _Reading, cell: str, line: int) -> Path:
    source = reading.path.name
    if not cell.strip():
        raise RowError(f"line {line}: audio is empty", source)
    if "://" in cell:
        raise RowError(
            f"line {line}: audio is the address {redact(cell)[:100]!r}, and files are read: fetch it", source
        )
    for text in dict.fromkeys((cell, cell.strip())):
        audio = reading.path.parent / text
        found = folder_of_row(reading.folders, audio.parent, f"line {line}", source).find(audio.name)
        if found is not None:
            return found
    raise RowError("missing audio", cell.strip())


def _label(row: Row, column: str, scale: tuple[float, float], line: int, source: str) -> float | None:
    """The label of a target; None where nobody rated."""
    cell = _number_cell(row, column, line, source)
    try:
        return parse_label(cell, (0.0, 1.0) if column.endswith(SHARE) else scale) if cell else None
    except ValueError as error:
        raise RowError(f"line {line}: {printable(column)} {error}", source) from error


def _variances(reading: _Reading, row: Row, labels: Mapping[str, float], line: int) -> dict[str, float]:
    """Variances on 0..1 ratings, of the targets that have a label."""
    source, span, variances = reading.path.name, reading.scale[1] - reading.scale[0], {}
    for target in labels:
        cell = _number_cell(row, target + VARIANCE, line, source)
        if not cell:
            continue
        try:
            variance = parse_number(cell)
        except ValueError as error:
            raise RowError(f"line {line}: {printable(target)}{VARIANCE} {error}", source) from error
        if not 0 <= variance <= span**2:
            raise RowError(f"line {line}: {printable(target)}{VARIANCE} {cell} is off 0..{span**2:g}", source)
        variances[target] = variance / span**2
    return variances


def _num_raters(row: Row, line: int, source: str) -> int | None:
    cell = _number_cell(row, "num_raters", line, source)
    if not cell:
        return None
    try:
        number = parse_number(cell)
    except ValueError as error:
        raise RowError(f"line {line}: num_raters {error}", source) from error
    if not (0 <= number <= _MOST_RATERS and number.is_integer()):
        raise RowError(f"line {line}: num_raters {cell} is not a whole number from 0", source)
    return int(number)


def _text(row: Row, column: str, line: int, source: str, *, any_character: bool = False) -> str:
    """A text cell; "" where there is none.

    Args:
        any_character: take control characters too, but NUL, which is a sign of another encoding.
    """
    cell = row.get(column)
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise RowError(f"line {line}: {column} is no text but {printable(json.dumps(cell)[:60])}", source)
    text = str(cell)
    fault = text_fault(text)
    if any_character and fault:
        fault = "is not valid Unicode" if has_bad_bytes(text) else "holds NUL" if "\0" in text else ""
    if fault:
        raise RowError(f"line {line}: {column} {fault}", source)
    return text


def _number_cell(row: Row, column: str, line: int, source: str) -> str:
    """The text of a number's cell; "" where there is none."""
    cell = row.get(column)
    if isinstance(cell, bool) or not isinstance(cell, str | int | float | None):
        shown = printable(json.dumps(cell)[:60])
        raise RowError(f"line {line}: {printable(column)} {shown} is not a number", source)
    return "" if cell is None else str(cell).strip()


def _columns(path: Path) -> tuple[str, ...]:
    """Named columns, in order of appearance; of JSON lines those of any line."""
    if not _is_json(path):
        header, _ = _header(path)
        doubles = [column for column in header if column and header.count(column) > 1]
        if doubles:
            raise CorpusError(f"{path}: column {printable(doubles[0])!r} comes twice. Leave one of them out.")
        return tuple(column for column in header if column)
    rows = [row for _, row in _rows(path) if not isinstance(row, _NoRowError)]
    if not rows:
        raise CorpusError(f"{path}: no line is a JSON object. Write one object per line, not a list of them.")
    return tuple(dict.fromkeys(column for row in rows for column in row))


def _targets(path: Path, columns: Sequence[str], given: Sequence[str] | None) -> tuple[str, ...]:
    known = (*NEEDED_COLUMNS, *DESCRIBING_COLUMNS)
    if given is not None:
        for target in given:
            if target not in columns or target in known:
                found = ", ".join(printable(column) for column in columns if column not in known) or "none"
                raise CorpusError(
                    f"{path}: looked for the target {target!r} among the other columns and found {found}."
                )
        return tuple(dict.fromkeys(given))
    others = [column for column in columns if column not in known]
    targets = [column for column in others if not column.endswith(VARIANCE)]
    for column in others:
        fault = text_fault(column) if column.strip() else "has no name"
        if not fault and column.endswith(VARIANCE) and column.removesuffix(VARIANCE) not in targets:
            fault = "is the variance of no column"
        if fault:
            raise CorpusError(f"{path}: column {printable(column)!r} {fault}. Rename it or leave it out.")
    wordy = _wordy_column(path, targets)
    if wordy:
        rest = ",".join(target for target in targets if target != wordy)
        raise CorpusError(
            f"{path}: column {wordy!r} holds no number, so it is no target. Leave it out, or name the targets: "
            f"--targets {rest or 'activation,valence,dominance'}"
        )
    return tuple(targets)


def _wordy_column(path: Path, targets: Sequence[str]) -> str:
    """The first of the columns that holds something and never a number; "" if there is none."""
    filled, unsure = set(), set(targets)
    for _, row in _rows(path):
        if not unsure:
            break
        cells = {} if isinstance(row, _NoRowError) else {target: row.get(target) for target in unsure}
        for target, cell in cells.items():
            if _is_number(cell):
                unsure.discard(target)
            elif cell is not None and str(cell).strip():
                filled.add(target)
    return next((target for target in targets if target in unsure and target in filled), "")


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return not isinstance(cell, bool)


def _rows(path: Path) -> Iterator[tuple[int, Row | _NoRowError]]:
    """Line and row of each utterance, or why a line gives none."""
    if _is_json(path):
        for line, text in text_lines(path):
            if text.strip():
                yield line, _json_row(line, text)
        return
    header, delimiter = _header(path)
    records = csv_records(path, delimiter, len(header))
    next(records, None)
    for line, cells in records:
        if isinstance(cells, csv.Error):
            yield line, _NoRowError(no_record(line, cells))
        elif len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
            at = header.index("key")
            key = cells[at] if at < len(cells) else ""
            yield line, _NoRowError(f"line {line}: {len(cells)} cells, and the header has {len(header)}", key)
        else:
            yield line, {column: cell for column, cell in zip(header, cells, strict=False) if column}


def _json_row(line: int, text: str) -> Row | _NoRowError:
    try:
        return json_row(text)
    except ValueError as error:
        return _NoRowError(f"line {line}: {error}")


def _header(path: Path) -> tuple[list[str], str]:
    """The column names of a CSV, and what separates its cells."""
    first = next((text for _, text in text_lines(path) if text.strip()), "")
    for delimiter in _DELIMITERS:
        cells = split_record(first, delimiter)
        if not isinstance(cells, csv.Error):
            header = [cell.strip() for cell in cells]
            if all(column in header for column in NEEDED_COLUMNS):
                return header, delimiter
    cells = split_record(first)
    if isinstance(cells, csv.Error):
        raise CorpusError(f"{path}: {no_record(1, cells)}. Give a manifest with a header.")
    return [cell.strip() for cell in cells], ","


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in _JSON_SUFFIXES
