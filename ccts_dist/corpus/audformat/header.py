"""Header of a database: ``db.yaml`` with its schemes, and its tables with their columns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccts_dist.corpus.audformat.tables import read_cells
from ccts_dist.corpus.cells import printable
from ccts_dist.corpus.folders import listing
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited

HEADER = "db.yaml"
_MOST_NESTED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    table: str
    name: str
    scheme: Mapping[str, Any]
    """Its scheme's fields; empty without a scheme."""

    field: str | None = None
    """Field of the labels of its scheme: "gender" of a speaker."""


class Header:
    """The facts of ``db.yaml`` that a reader needs.

    Args:
        root: folder of the database.

    Raises:
        CorpusError: there is none, or it is no YAML mapping.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / HEADER
        if not self.path.is_file():
            raise CorpusError(f"{root}: looked for {HEADER} and found {listing(root)}. Give an audformat database.")
        self._tree = _mapping(_read_yaml(self.path))
        self.tables = {str(name): _mapping(table) for name, table in _mapping(self._tree.get("tables")).items()}
        self._misc = {str(name): _mapping(table) for name, table in _mapping(self._tree.get("misc_tables")).items()}
        schemes = {str(name): _mapping(scheme) for name, scheme in _mapping(self._tree.get("schemes")).items()}
        self._columns = [
            Column(table=table, name=str(name), scheme=schemes.get(str(_mapping(column).get("scheme_id")), {}))
            for table, facts in self.tables.items()
            for name, column in _mapping(facts.get("columns")).items()
        ]

    @property
    def name(self) -> str:
        """Name of the database."""
        return printable(str(self._tree.get("name") or self.root.resolve().name))

    def split_of(self, table: str) -> str | None:
        """The split that a table belongs to."""
        split = self.tables[table].get("split_id")
        return None if split is None else printable(str(split))

    def is_segmented(self, table: str) -> bool:
        """True if its rows are segments of files."""
        return self.tables[table].get("type") == "segmented"

    def find(self, name: str) -> tuple[Column, ...]:
        """The columns that a name stands for, each as ``TABLE.COLUMN``.

        A ``*`` stands for any characters but dots. ``TABLE.COLUMN.FIELD`` is a field of the labels of the column's
        scheme.

        Raises:
            CorpusError: there is no such column, or without a ``*`` more than one.
        """
        stem, _, field = name.rpartition(".")
        found = _matching(name, self._columns)
        if not found and (found := _matching(stem, self._columns)):
            found = [Column(table=one.table, name=one.name, scheme=one.scheme, field=field) for one in found]
        if not found or (len(found) > 1 and "*" not in name):
            names = [printable(f"{one.table}.{one.name}") for one in self._columns]
            there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "no column"
            raise CorpusError(f"{self.path}: looked for one column {name!r} and found {there}.")
        return tuple(found)

    def texts(self, column: Column) -> Mapping[str, str]:
        """Meaning of each label of a column: a field of it, or the text that its scheme gives it.

        Raises:
            CorpusError: the labels have no such field.
        """
        labels = column.scheme.get("labels")
        if column.field is None:
            pairs = _mapping(labels).items()
            return {str(label): text for label, text in pairs if isinstance(text, str)}
        if isinstance(labels, str) and labels in self._misc:  # a table of the labels
            levels = self._misc[labels].get("levels")  # a mapping, and a list in databases before version 0.16
            if isinstance(levels, Mapping | list) and len(levels) == 1:
                rows = read_cells(self.root, labels, [*map(str, levels), column.field])
                return {str(label): str(text) for _, (label, text) in rows if text is not None}
        facts = {str(label): _mapping(fields).get(column.field) for label, fields in _mapping(labels).items()}
        if not any(value is not None for value in facts.values()):
            where = f"labels of {column.table}.{column.name}"
            raise CorpusError(f"{self.path}: {printable(where)} have no field {column.field!r}. Name another.")
        return {label: str(value) for label, value in facts.items() if value is not None}


def _matching(name: str, columns: list[Column]) -> list[Column]:
    pattern = re.compile("[^.]*".join(map(re.escape, name.split("*"))))
    return [one for one in columns if pattern.fullmatch(f"{one.table}.{one.name}")]


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_yaml(path: Path) -> object:
    """The tree of a YAML file. ``<<``, which can make much out of little, is refused."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        def flatten_mapping(self, node: object) -> None:
            """Leave ``<<`` in place, which no constructor takes."""

    try:
        data, nested = read_limited(path, "header of a database"), 0
        for event in yaml.parse(data, Loader):
            nested += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if nested > _MOST_NESTED:  # libyaml's composer would overflow its stack
                raise ValueError(f"nested more than {_MOST_NESTED} deep")
        tree = yaml.load(data, Loader)  # "!!bool x" is a KeyError, "!!timestamp x" an AttributeError
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, yaml.YAMLError) as error:
        words = printable(" ".join(str(error).split()))[:200]
        raise CorpusError(f"{path}: cannot be read ({words}). Restore it.") from error
    if not isinstance(tree, Mapping):
        raise CorpusError(f"{path}: is no mapping in YAML. Restore it.")
    return tree
