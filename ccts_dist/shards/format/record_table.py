"""Many small records as columns: a manifest's list of twenty thousand shards in three megabytes instead of twenty."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from jaxtyping import Int64

from ccts_dist.limits import MOST_TEXT_BYTES

Record = TypeVar("Record")

_DIGESTS = re.compile(r"(?:[0-9a-f]{64})+")


class RecordTable(Sequence[Record], Generic[Record]):
    """Records of one dataclass, kept as columns; each is made when it is asked for.

    The dataclass has numbers, texts, and other dataclasses of such. Equal to any sequence of equal records.
    """

    def __init__(self, cls: type[Record], columns: Mapping[str, Any], length: int) -> None:
        self._cls, self._columns, self._length = cls, dict(columns), length
        self._order: Int64[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Record]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.take(np.arange(self._length)[at])
        if not -self._length <= at < self._length:
            raise IndexError(at)
        return _record(self._cls, self._columns, at)

    def __iter__(self) -> Iterator[Record]:
        return (self[at] for at in range(self._length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RecordTable({list(self)!r})"

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "RecordTable[Record]":
        """The records of some rows, in that order."""
        return RecordTable(self._cls, _taken(self._columns, rows), len(rows))

    def texts(self, name: str) -> list[str]:
        """One column of texts."""
        return [_text(value) for value in self._columns[name]]

    def numbers(self, name: str) -> Int64[np.ndarray, " rows"]:
        """One column of numbers."""
        return self._columns[name]

    def rows_where(self, name: str, text: str) -> Int64[np.ndarray, " rows"]:
        """The rows whose column ``name`` is ``text``."""
        return np.flatnonzero(self._columns[name] == text.encode())

    def find(self, name: str, text: str) -> int | None:
        """The first row whose column ``name`` is ``text``; None if there is none. Looks one column up, sorted."""
        column = self._columns[name]
        if self._order is None:
            self._order = np.argsort(column, kind="stable")
        wanted = text.encode()
        if len(wanted) > column.dtype.itemsize:
            return None
        at = int(np.searchsorted(column, wanted, sorter=self._order))
        found = int(self._order[at]) if at < self._length else -1
        return found if found >= 0 and column[found] == wanted else None


def texts_of(records: Sequence[Any], name: str) -> list[str]:
    """One field, of texts, of all records."""
    return records.texts(name) if isinstance(records, RecordTable) else [getattr(record, name) for record in records]


def numbers_of(records: Sequence[Any], name: str) -> Int64[np.ndarray, " rows"]:
    """One field, of whole numbers, of all records."""
    if isinstance(records, RecordTable):
        return records.numbers(name)
    return np.array([getattr(record, name) for record in records], np.int64)


def table_of(cls: type[Record], trees: Sequence[Any]) -> RecordTable[Record] | None:
    """The table of some JSON objects; None when any of them is not exactly of the dataclass's form."""
    columns = _columns(cls, trees)
    return None if columns is None else RecordTable(cls, columns, len(trees))


def _columns(cls: Any, trees: Sequence[Any]) -> dict[str, Any] | None:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    if not all(isinstance(tree, dict) and tree.keys() == set(names) for tree in trees):
        return None
    columns = {}
    for name in names:
        values, kind, pattern = [tree[name] for tree in trees], hints[name], None
        if typing.get_origin(kind) is typing.Annotated:
            kind, pattern = typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            column = _columns(kind, values)
        else:
            fits = all(type(value) is kind and (pattern is None or pattern.fullmatch(value)) for value in values)
            column = _column(values, kind) if fits else None
        if column is None:
            return None
        columns[name] = column
    return columns


def _column(values: Sequence[Any], kind: type) -> Any:
    if kind is int:
        fits = all(-(2**63) <= value < 2**63 for value in values)
        return np.array(values, np.int64) if fits else None
    joined = "".join(values)
    if joined and all(len(value) == 64 for value in values) and _DIGESTS.fullmatch(joined):
        return np.frombuffer(bytes.fromhex(joined), "V32")
    try:
        texts = [value.encode() for value in values]
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return None
    # Fixed width, padded with NUL, which therefore cannot end a text.
    return None if "\0" in joined or max(map(len, texts), default=0) > MOST_TEXT_BYTES else np.array(texts, "S")


def _record(cls: Any, columns: Mapping[str, Any], at: int) -> Any:
    values = {}
    for field in dataclasses.fields(cls):
        column = columns[field.name]
        if isinstance(column, dict):
            values[field.name] = _record(field.type, column, at)
        else:
            values[field.name] = int(column[at]) if column.dtype.kind == "i" else _text(column[at])
    return cls(**values)


def _taken(columns: Mapping[str, Any], rows: Int64[np.ndarray, " taken"]) -> dict[str, Any]:
    return {
        name: _taken(column, rows) if isinstance(column, dict) else column[rows] for name, column in columns.items()
    }


def _text(value: Any) -> str:
    return value.tobytes().hex() if isinstance(value, np.void) else value.decode()


def _same(one: object, other: object) -> bool:
    return one == other
