"""Settings of encoders in a folder (``config.json`` and the like), looked at before transformers reads them.

transformers builds what they state: a pipe is waited for, a size of a billion is allocated, and an attention
implementation with a slash is code that it fetches. None of that is for a configuration to decide here.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccts_dist.limits import parse_json, read_limited

SETTINGS = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json")

_LARGEST_NUMBER = 1 << 31
_MOST_LAYERS = 1_000
_MOST_LISTED = 100_000
"""Entries of a list or an object. Label tables have thousands."""


def check_settings(folder: Path) -> None:
    """Refuse settings in a folder that no encoder can have; files that are not there are nobody's fault.

    Raises:
        OSError: a file that cannot be read, is no regular file, or is too large.
        ValueError: names what is wrong.
    """
    for path in folder.iterdir():
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for; a link may lead nowhere
            raise OSError(errno.EINVAL, f"{path.name} is no regular file", str(path))
    for name in SETTINGS:
        path = folder / name
        if path.exists():
            check_tree(parse_json(read_limited(path, "config.json")), name)


def check_tree(tree: Any, name: str) -> None:
    """Refuse settings by themselves; ``name`` is their file.

    Raises:
        ValueError: names what is wrong.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{name} is no object")
    for key, value in _walk(tree):
        where = f"{key[:60]!r} in {name}"
        if isinstance(value, list | dict) and len(value) > _MOST_LISTED:
            raise ValueError(f"{where} has {len(value)} entries")
        if isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER and key not in _LARGE:
            raise ValueError(f"{where} is {value}")
        if isinstance(value, int) and key.endswith("layers") and value > _MOST_LAYERS:
            raise ValueError(f"{where} is {value}: at most {_MOST_LAYERS}")
        if key.endswith("attn_implementation") and not _is_known_attention(value):
            raise ValueError(f"{where} is {str(value)[:60]!r}: the name of code to fetch, and none is run")


_LARGE = ("model_max_length",)
"""Numbers that transformers itself writes as 10^30: "no limit"."""


def _is_known_attention(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_known_attention, value.values()))
    return value is None or (isinstance(value, str) and value.replace("_", "").isalnum())


def _walk(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    waiting = [(key, tree)]
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, dict):
            waiting += [(str(inner), one) for inner, one in value.items()]
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
