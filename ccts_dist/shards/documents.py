"""JSON documents as frozen dataclasses: written one way only, read strictly."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ccts_dist.errors import CctsError

Record = TypeVar("Record")


def document_bytes(record: Any) -> bytes:
    """The JSON document of a dataclass: sorted keys, UTF-8, one line break at the end; what is None is absent.

    Equal records give equal bytes.

    Raises:
        ValueError: a number in it is not finite.
    """
    text = json.dumps(_plain(record), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return (text + "\n").encode()


def parse_document(cls: type[Record], data: bytes, *, where: str, error: type[CctsError]) -> Record:
    """The record in a JSON document; ``where`` names the document in errors.

    Raises:
        CctsError: of type ``error``, when it is no JSON, or a key is unknown, missing or of another type.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: not a JSON document ({fault}). Make it again, or bring it back from a copy.") from fault
    try:
        return _build(cls, tree, "")
    except _MisfitError as fault:
        raise error(f"{where}: {fault}. It was damaged, or written by another version: make it again.") from None


class _MisfitError(Exception):
    """A document that is not of its dataclass's form."""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(inner) for name, inner in pairs if inner is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _build(cls: type[Record], tree: Any, path: str) -> Record:
    if not isinstance(tree, dict):
        raise _MisfitError(f"{path or 'the document'} must be an object")
    hints = typing.get_type_hints(cls)
    declared = dataclasses.fields(typing.cast(Any, cls))
    unknown = sorted(set(tree) - {f.name for f in declared})
    if unknown:
        raise _MisfitError(f"unknown key {path + unknown[0]!r}")
    values = {}
    for f in declared:
        if f.name in tree:
            values[f.name] = _convert(tree[f.name], hints[f.name], path + f.name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _MisfitError(f"key {path + f.name!r} is missing")
    return cls(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = (arg for arg in args if arg is not type(None))
        return _convert(value, hint, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path + ".")
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise _MisfitError(f"{path} must be a list")
        return tuple(_convert(inner, args[0], f"{path}[{i}]") for i, inner in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _MisfitError(f"{path} must be an object")
        return {key: _convert(inner, args[1], f"{path}.{key}") for key, inner in value.items()}
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise _MisfitError(f"{path} must be {hint.__name__}, not {str(value)[:40]!r}")
    return hint(value)
