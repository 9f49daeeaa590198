"""The JSON body of a request to a served model, read without a copy of what it carries.

A JSON parser makes a hundred bytes of an empty object's three, and holds the interpreter's lock meanwhile. So a body's
strings are cut out first, where they lie. What is left is small, or the body is refused; only that is parsed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from ccts_dist.errors import RequestError

FORMS = ("dataframe_records", "dataframe_split", "inputs")
"""Fields of a body, one of which has the recordings; MLflow's names."""

_STRUCTURE_BYTES, _STRUCTURE_BYTES_PER_RECORDING = 4_096, 256
"""Bytes of a body outside its strings: braces, commas, and the white space of an indented body."""

_SHORT_BYTES = 6 * 4_096
"""Longer strings can only be base64: the longest path of Linux has 4,096 bytes, each six once escaped."""

_MAX_ESCAPED_QUOTES = 1_000
"""Most escaped quotes of a body. Base64 has none, and a path few."""

_MAX_NAME_CHARACTERS = 200

_GZIP = b"\x1f\x8b"
"""First bytes of what gzip has written."""

_ESCAPED = {rb"\/": b"/", rb"\u002b": b"+", rb"\u002B": b"+", rb"\u002f": b"/", rb"\u002F": b"/", rb"\u003d": b"=",
            rb"\u003D": b"="}  # fmt: skip
"""Characters that JSON writers escape in base64: PHP the slash, .NET the plus sign."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class LongText:
    """A long string of a body, as it lies there, with its escapes."""

    raw: memoryview

    def base64(self, most: int) -> bytes | None:
        """Its characters, if it can be base64 at all; None when they are more than ``most``."""
        if len(self.raw) > 6 * most:
            return None
        text = bytes(self.raw)
        if b"\\" in text:
            for escaped, plain in _ESCAPED.items():
                text = text.replace(escaped, plain)
        return text if len(text) <= most else None


def rows_of_body(body: bytes | bytearray, *, max_recordings: int) -> list[Mapping[str, Any]]:
    """The recordings of a body in one of MLflow's forms; long strings come as ``LongText``.

    Raises:
        RequestError: not JSON, in none of the forms, or far more JSON than so many recordings need.
    """
    if body[:2] == _GZIP:
        raise RequestError("the body is compressed by gzip, not valid JSON that can be read. Send it plain.")
    skeleton, strings = _cut_out_strings(body, _STRUCTURE_BYTES + _STRUCTURE_BYTES_PER_RECORDING * max_recordings)
    try:
        tree = _with_strings(json.loads(skeleton.decode("utf-8-sig")), strings)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON that can be read ({error}).") from error
    fields = sorted(tree) if isinstance(tree, dict) else []
    if len(fields) != 1 or fields[0] not in FORMS:
        raise RequestError(f"the body must be a JSON object with exactly one of the input fields {', '.join(FORMS)}.")
    (form,) = fields
    rows = _rows_of_form(form, tree[form])
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"recording {number}: is {_type(row)}, must be an object with its columns.")
    return rows


def _cut_out_strings(body: bytes | bytearray, most: int) -> tuple[bytes, list[memoryview]]:
    """The body with the number of each string in its place, and the strings.

    Raises:
        RequestError: more than ``most`` bytes outside the strings, or a string without an end.
    """
    view, skeleton, strings = memoryview(body), bytearray(), list[memoryview]()
    position = num_escaped = structure = 0
    while position < len(body):
        start = body.find(b'"', position)
        found = start if start >= 0 else len(body)
        structure += found - position
        if structure > most:
            raise RequestError(
                f"the body has more than {most} bytes of JSON outside its strings, which is not valid JSON that can be "
                "read as recordings. Send fewer in a request, and only their columns."
            )
        skeleton += view[position:found]
        if start < 0:
            break
        end = body.find(b'"', start + 1)
        searched = start + 1
        while end >= 0 and _is_escaped(body, searched, end):
            num_escaped += 1
            if num_escaped > _MAX_ESCAPED_QUOTES:
                raise RequestError(f"the body has more than {_MAX_ESCAPED_QUOTES} escaped quotes. Audio is base64.")
            searched, end = end + 1, body.find(b'"', end + 1)
        if end < 0:
            raise RequestError("the body is not valid JSON that can be read (it ends within a string).")
        skeleton += b'"%d"' % len(strings)
        strings.append(view[start + 1 : end])
        position = end + 1
    return bytes(skeleton), strings


def _is_escaped(body: bytes | bytearray, start: int, quote: int) -> bool:
    """True for a quote with an odd number of backslashes before it; there are none before ``start``."""
    if quote == start or body[quote - 1] != ord("\\"):
        return False
    text = body[start:quote]
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


def _with_strings(tree: Any, strings: list[memoryview]) -> Any:
    """The tree, in which each string is the number of another, with that."""
    if isinstance(tree, str):
        raw = strings[int(tree)]
        return json.loads(b'"%b"' % raw) if len(raw) <= _SHORT_BYTES else LongText(raw)
    if isinstance(tree, list):
        return [_with_strings(one, strings) for one in tree]
    if isinstance(tree, dict):
        named = [(_name(strings[int(name)]), _with_strings(value, strings)) for name, value in tree.items()]
        _refuse_doubles([name for name, _ in named])
        return dict(named)
    return tree


def _refuse_doubles(names: Sequence[str]) -> None:
    """Parsers differ in which of two values they take."""
    if len(set(names)) < len(names):
        double = next(name for at, name in enumerate(names) if name in names[:at])
        raise RequestError(f"the body has {double!r} twice in one place. Give it once.")


def _name(raw: memoryview) -> str:
    name = json.loads(b'"%b"' % raw[:_SHORT_BYTES]) if len(raw) <= _SHORT_BYTES else None
    if name is None or len(name) > _MAX_NAME_CHARACTERS:
        raise RequestError(f"the body has a name of {len(raw)} bytes; a column is 'audio' or 'path'.")
    return name


def _type(value: Any) -> str:
    return "str" if isinstance(value, LongText) else type(value).__name__


def _rows_of_form(form: str, value: Any) -> list[Any]:
    if form == "inputs" and isinstance(value, dict):
        return rows_of_columns(value)
    if form == "dataframe_split":
        columns = value.get("columns") if isinstance(value, dict) else None
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
            raise RequestError("dataframe_split must have 'columns', a list of names.")
        _refuse_doubles(columns)
        if not isinstance(data, list):
            raise RequestError("dataframe_split must have 'data' field, a list of rows.")
        if not all(isinstance(cells, list) and len(cells) == len(columns) for cells in data):
            raise RequestError("each row of dataframe_split's data must be a list with a cell for each column.")
        return [dict(zip(columns, cells, strict=True)) for cells in data]
    if not isinstance(value, list):
        raise RequestError(f"{form} must be a list of records.")
    return value


def rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``{"audio": [A, B]}``; a column's only cell needs no list.

    Raises:
        RequestError: lists of unlike length side by side.
    """
    lists = {name: cell if isinstance(cell, list) else [cell] for name, cell in columns.items()}
    counts = {name: len(cells) for name, cells in lists.items()}
    if len(set(counts.values())) > 1:
        raise RequestError(f"columns of unlike length: {counts}. Give each recording an entry in every column.")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
