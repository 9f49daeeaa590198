"""Tables of a database: ``db.TABLE.parquet`` or ``db.TABLE.csv``, whose rows are files or segments of files."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ccts_dist.corpus.cells import printable, table_rows, text_fault
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited

Index = tuple[str, int, int | None]
"""File, begin and end of a segment in nanoseconds. The end of a whole file is None."""

_TIME = re.compile(r"(?:(\d{1,4}) days? )?(\d{1,4}):(\d\d):(\d\d)(?:\.(\d{1,9}))?")
_BATCH_ROWS = 256
_MOST_ROWS = 20_000_000


def read_cells(root: Path, table: str, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Place and cells of each row of a table: text in CSV; text, number or None in Parquet; durations in nanoseconds.

    Raises:
        CorpusError: there is no such table, it cannot be read, or it lacks a column.
    """
    stem = f"db.{table}"
    if "/" in table or "\0" in table:
        raise CorpusError(f"{root}: table {printable(table)!r} can be no file. Restore db.yaml.")
    if (root / f"{stem}.parquet").is_file():
        return _parquet_cells(root / f"{stem}.parquet", columns)
    if (root / f"{stem}.csv").is_file():
        name = f"{stem}.csv"
        rows = table_rows(root / name, columns)
        return ((f"{name} line {line}", [row[column] or None for column in columns]) for line, row in rows)
    kinds = "only its pickle, which can run code" if (root / f"{stem}.pkl").is_file() else "neither"
    remedy = 'Save it by audformat\'s Database.save(storage_format="parquet").'
    raise CorpusError(f"{root}: looked for {printable(stem)}.parquet or .csv and found {kinds}. {remedy}")


def index_of(file: object, start: object = None, end: object = None) -> Index:
    """The index of a row.

    Raises:
        ValueError: why it has none, in words.
    """
    if not isinstance(file, str) or text_fault(file):
        raise ValueError("file is no name")
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"file {printable(file)!r} leaves the folder of the database")
    begin, until = _nanoseconds(start), _nanoseconds(end)
    if until is None and not begin:
        return file, 0, None
    if until is None:
        raise ValueError("begins within the file and names no end")
    if not 0 <= (begin or 0) < until:
        raise ValueError("start and end span nothing")
    return file, begin or 0, until


def _nanoseconds(cell: object) -> int | None:
    if cell is None or cell == "NaT":
        return None
    if isinstance(cell, int):
        return cell
    time = _TIME.fullmatch(str(cell))
    if time is None:
        raise ValueError(f"{printable(str(cell))[:60]!r} is no time such as '0 days 00:00:01.500000'")
    days, hours, minutes, seconds = (int(part or 0) for part in time.groups()[:4])
    whole = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    return whole * 10**9 + int((time[5] or "").ljust(9, "0"))


def _parquet_cells(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    number = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(read_limited(path, "label file")))
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            found = ", ".join(map(printable, file.schema_arrow.names))
            raise CorpusError(f"{path}: looked for the columns {', '.join(missing)} and found {found}.")
        if file.metadata.num_rows > _MOST_ROWS:
            raise CorpusError(f"{path}: has {file.metadata.num_rows:,} rows, more than {_MOST_ROWS:,}. Split it.")
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
            for cells in zip(*(_values(batch[column]) for column in columns), strict=True):
                number += 1
                yield f"{path.name} row {number}", list(cells)
    except (OSError, pa.ArrowException, ValueError) as error:
        words = printable(" ".join(str(error).split()))[:200]
        raise CorpusError(f"{path}: cannot be read ({words}). Restore it.") from error


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_duration(column.type):
        column = column.cast(pa.duration("ns")).cast(pa.int64())
    return column.to_pylist()
