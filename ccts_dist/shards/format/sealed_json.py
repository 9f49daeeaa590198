"""JSON documents as frozen dataclasses: written one way only, read strictly, sealed where nothing else has a digest."""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ccts_dist.config.renamed import stored_name
from ccts_dist.errors import CctsError
from ccts_dist.limits import parse_json
from ccts_dist.shards.format.record_table import table_of

Record = TypeVar("Record")

_NO_SEAL = "0" * 64
_SEAL = re.compile(rb'\n "seal": "([0-9a-f]{64})"')
"""At the margin of a document as it is written here; deeper keys stand further in, and strings have no line breaks."""


def document_bytes(record: Any) -> bytes:
    """The JSON document of a dataclass: sorted keys, UTF-8, one line break at the end; what is None is absent.

    Equal records give equal bytes.

    Raises:
        ValueError: a number in it is not finite.
    """
    return _tree_bytes(_plain(record))


def sealed_bytes(record: Any) -> bytes:
    """``document_bytes`` with a key ``seal`` more: SHA-256 of these very bytes with 64 zeros for the seal.

    For documents that name others by digest and whose own digest nobody keeps.

    Args:
        record: a dataclass, or its document as a dict; a seal in it is made anew.
    """
    unsealed = _tree_bytes(_plain(record) | {"seal": _NO_SEAL})
    return _SEAL.sub(b'\n "seal": "' + _digest(unsealed) + b'"', unsealed, count=1)


def check_seal(data: bytes, *, where: str, error: type[CctsError]) -> None:
    """Refuse a sealed document of which any byte has changed since it was written.

    Raises:
        CctsError: of type ``error``.
    """
    if not is_sealed(data):
        found = _SEAL.search(data)
        words = "was changed after it was written (its seal is not that of its bytes)" if found else "has no seal"
        raise error(f"{where}: {words}. Bring it back from a copy, or make it again.")


def is_sealed(data: bytes) -> bool:
    """True if a document has the seal of its bytes."""
    found = _SEAL.search(data)
    return found is not None and found[1] == _digest(data[: found.start(1)] + _NO_SEAL.encode() + data[found.end(1) :])


def parse_document(
    cls: type[Record],
    data: bytes,
    *,
    where: str,
    error: type[CctsError],
    sealed: bool = False,
    version: int | None = None,
) -> Record:
    """The record in a JSON document; ``where`` names the document in errors.

    Args:
        sealed: the document has a seal, which is ``check_seal``'s to look at.
        version: what its ``format_version`` must be; another one is refused before anything else is looked at.

    Raises:
        CctsError: of type ``error``, when it is no JSON, or a key is unknown, missing or of another type.
    """
    try:
        tree = parse_json(data)
    except ValueError as fault:
        raise error(f"{where}: not a JSON document ({fault}). Make it again, or bring it back from a copy.") from fault
    found = tree.get("format_version") if isinstance(tree, dict) else None
    if version is not None and found != version:
        raise error(
            f"{where}: format version {found!r}, and this installation reads {version}. "
            "Install the version that wrote it, or make it again."
        )
    if sealed and isinstance(tree, dict):
        tree.pop("seal", None)
    try:
        return _build(cls, tree, "")
    except _MisfitError as fault:
        raise error(f"{where}: {fault}. It was damaged, or written by another version: make it again.") from None


class _MisfitError(Exception):
    """A document that is not of its dataclass's form."""


def _tree_bytes(tree: Any) -> bytes:
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return (text + "\n").encode()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {stored_name(name): _plain(inner) for name, inner in pairs if inner is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _build(cls: type[Record], tree: Any, path: str) -> Record:
    if not isinstance(tree, dict):
        raise _MisfitError(f"{path or 'the document'} must be an object")
    hints = typing.get_type_hints(cls, include_extras=True)
    declared = dataclasses.fields(typing.cast(Any, cls))
    unknown = sorted(set(tree) - {stored_name(f.name) for f in declared})
    if unknown:
        raise _MisfitError(f"unknown key {(path + unknown[0])[:80]!r}")
    values = {}
    for f in declared:
        name = stored_name(f.name)
        if name in tree:
            values[f.name] = _convert(tree[name], hints[f.name], path + name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _MisfitError(f"key {path + name!r} is missing")
    return cls(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    pattern: re.Pattern[str] | None = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, pattern = typing.get_args(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = (arg for arg in args if arg is not type(None))
        return _convert(value, hint, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path + ".")
    if origin is Sequence:
        if not isinstance(value, list):
            raise _MisfitError(f"{path} must be a list")
        table = table_of(args[0], value)
        # Not of the form: made one by one, which names what is wrong.
        return (
            tuple(_build(args[0], inner, f"{path}[{i}].") for i, inner in enumerate(value)) if table is None else table
        )
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise _MisfitError(f"{path} must be a list")
        return tuple(_convert(inner, args[0], f"{path}[{i}]") for i, inner in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _MisfitError(f"{path} must be an object")
        for key in value:
            _check_text(key, None, path)
        return {key: _convert(inner, args[1], f"{path}.{key}") for key, inner in value.items()}
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise _MisfitError(f"{path} must be {hint.__name__}, not {str(value)[:40]!r}")
    if isinstance(value, str):
        _check_text(value, pattern, path)
    return hint(value)


def _check_text(text: str, pattern: re.Pattern[str] | None, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and nothing can write
        raise _MisfitError(f"{path} is no Unicode text: {text[:40]!a}") from None
    if pattern is not None and pattern.fullmatch(text) is None:
        raise _MisfitError(f"{path} must be a SHA-256 in hexadecimal digits, not {text[:40]!r}")
