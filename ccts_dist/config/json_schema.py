"""JSON schema of run files, out of the dataclasses themselves: editors complete keys and check values by it.

ccts schema > launch/runs/schema.json

It has keys, types, ranges, choices and defaults. Rules between several keys are the reader's alone.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ccts_dist.config.ranges import Between
from ccts_dist.config.reference import field_docs
from ccts_dist.config.schema import RunConfig

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: Mapping[Any, str] = {bool: "boolean", str: "string", int: "integer", float: "number"}


def run_schema() -> dict[str, Any]:
    """The schema of a run file as a tree of plain values, each table under ``$defs`` by the name of its dataclass."""
    tables: dict[str, Any] = {}
    _add_table(RunConfig, tables)
    return {"$schema": DRAFT, "title": "Run file of ccts-dist", **tables.pop(RunConfig.__name__), "$defs": tables}


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(run_schema(), indent=1, ensure_ascii=False) + "\n"


def _add_table(cls: type, tables: dict[str, Any]) -> None:
    if cls.__name__ in tables:
        return
    tables[cls.__name__] = table = {"type": "object", "description": " ".join((cls.__doc__ or "").split())}
    hints, docs = typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        key = _value(hints[field.name], tables)
        if field.name in docs:
            key["description"] = docs[field.name]
        if field.default is not dataclasses.MISSING:
            if field.default is not None:
                key["default"] = field.default
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = key
    table |= {"additionalProperties": False, "required": required, "properties": properties}


def _value(hint: Any, tables: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        (bounds,) = (extra for extra in args[1:] if isinstance(extra, Between))
        ends = {"minimum": bounds.low, "maximum": bounds.high}
        return _value(args[0], tables) | {end: number for end, number in ends.items() if number is not None}
    if origin in (types.UnionType, typing.Union):  # TOML has no null: an absent key is None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _value(inner, tables)
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _value(args[0], tables)}
    if origin is Mapping:
        return {"type": "object"} | ({} if args[1] is Any else {"additionalProperties": _value(args[1], tables)})
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        _add_table(hint, tables)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": _PLAIN[hint]}
