"""The page of every key that a run file can hold, out of the dataclasses themselves.

python -m ccts_dist.config.reference > launch/runs/README.md
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from ccts_dist.config.schema import Between, RunConfig

_HEAD = """# Run files

One TOML file is one run. This page is written by `python -m ccts_dist.config.reference` out of the dataclasses in
[`ccts_dist/config`](../../ccts_dist/config).
Every key can also be given as `--set table.key=VALUE`.

[`schema.json`](schema.json) is the JSON schema, written by `ccts schema > launch/runs/schema.json`. With
`#:schema PATH/TO/schema.json` as the first line of a run file, taplo and the editors that use it (VS Code with Even
Better TOML) complete keys and mark mistakes.

`demo/` is what `make demo` runs, `paper/` the rows of the paper's tables, `full/` full HuBERT-large
students, `open/` a baseline per open corpus (for MELD and CMU-MOSEI a teacher and its student too), `related/` systems
after related papers, and `challenge/` the baseline of Odyssey 2024.
"""


def page() -> str:
    """The page, in Markdown."""
    lines = [_HEAD]
    for heading, cls in _tables(RunConfig, "", "At the top"):
        lines += [f"## {heading}", "", " ".join((cls.__doc__ or "").split()), ""]
        lines += ["| key | value | default | meaning |", "|:--|:--|:--|:--|"]
        hints = typing.get_type_hints(cls, include_extras=True)
        meanings = field_docs(cls)
        for field in dataclasses.fields(cls):
            if _inner_table(hints[field.name]) is None:
                cells = (f"`{field.name}`", _words(hints[field.name]), _default(field), meanings.get(field.name, ""))
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _tables(cls: type, table: str, heading: str) -> Iterator[tuple[str, type]]:
    """Every table by how a run file opens it, outer ones first."""
    yield heading, cls
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        inner = _inner_table(hints[field.name])
        if inner is not None:
            name = f"{table}.{field.name}".lstrip(".")
            comes_often = typing.get_origin(hints[field.name]) is tuple
            yield from _tables(inner, name, f"`[[{name}]]`" if comes_often else f"`[{name}]`")


def _inner_table(hint: Any) -> type | None:
    """The dataclass that a field holds: itself, or None, or a list of it."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for found in map(_inner_table, typing.get_args(hint)) if found is not None), None)


def field_docs(cls: type) -> dict[str, str]:
    """The string below each field."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        (bounds,) = (extra for extra in args[1:] if isinstance(extra, Between))
        return f"{_words(args[0])}, {bounds.words()}"
    if origin is Literal:
        return ", ".join(f'`"{arg}"`' for arg in args)
    if origin is tuple:
        return f"list: {_words(args[0])}"
    if origin is Mapping:
        return "table" if args[1] is Any else f"table: {_words(args[1])}"
    if type(None) in args:
        return " or absent: ".join(_words(arg) for arg in args if arg is not type(None)) + " or absent"
    return {bool: "true or false", str: "text", int: "whole number", float: "number"}[hint]


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "**needed**"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{chr(34)}{one}{chr(34)}' if isinstance(one, str) else str(one) for one in value)}]`"
    return "`{}`" if value == {} else "absent" if value is None else f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
