"""JSON text of figures: a number that is not finite becomes null, since JSON has no NaN."""

import json
from collections.abc import Mapping
from math import isfinite, nan
from typing import Any


def json_text(tree: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Plain values as JSON that every parser reads, with null in place of NaN and infinities."""
    return json.dumps(nulled(tree), indent=indent, sort_keys=sort_keys, allow_nan=False)


def nulled(tree: Any) -> Any:
    """The same tree with None in place of every number that is not finite, at any depth."""
    if isinstance(tree, float):
        return tree if isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: nulled(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [nulled(value) for value in tree]
    return tree


def as_number(value: float | None, *, unknown: float = nan) -> float:
    """A figure as it was before ``json_text``: ``unknown`` where it reads null."""
    return unknown if value is None else value
