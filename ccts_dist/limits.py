"""Limits of what is read from files that somebody else may have made. ``SECURITY.md`` has this table.

A file's digest proves who wrote it, not that it is harmless: a sealed document of five megabytes may ask for nine
gigabytes. So every file that is read as a whole has a size that it cannot exceed, every compressed part one that it
cannot unfold to, and JSON a number of values and digits.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MIB = 1 << 20

LIMITS: Mapping[str, int] = {
    "manifest.json": 64 * _MIB,
    "condition.json": _MIB,
    "rejected.jsonl": 512 * _MIB,
    "index.arrow, columns": _MIB,
    "index.arrow, a shard's rows": 128 * _MIB,
    "a shard's extended headers": _MIB,
    "json member": 16 * _MIB,
    "flac member": 256 * _MIB,
    "teacher.npy member": 4 * _MIB,
    "model.json": 16 * _MIB,
    "config.json": 4 * _MIB,
    "tokenizer file": 256 * _MIB,
    "run file": 4 * _MIB,
    "checkpoint manifest.json": 64 * _MIB,
    "checkpoint state.json": 256 * _MIB,
    "digests.json": 4 * _MIB,
    "figures of a run": 64 * _MIB,
    "label file": 256 * _MIB,
    "header of a database": 16 * _MIB,
    "file of keys": 256 * _MIB,
    "line of a label table": _MIB,
    "file of transcripts": 512 * _MIB,
    "record of a build": 64 * _MIB,
}
"""Bytes at most, by what is read. Rows of an index count as they are once unfolded."""

MOST_JSON_VALUES = 4_000_000
"""Values and braces of a JSON document: 64 MiB of ``{},`` would take 2 GB as Python objects."""

MOST_JSON_DIGITS = 40
"""Most digits of a whole number in JSON: more than 64 bits hold, so that what a larger number stands for can be
named."""

MOST_TEXT_BYTES = 255
"""Most bytes of a text in a manifest's list of shards, such as a file's name. All of a column take the room of the
longest."""

MOST_MEMBER_SAMPLES = 3_600 * 16_000
"""Most samples of an utterance in an index: an hour; builders take ten minutes. FLAC states up to 2^36, and
decoders make room."""


def read_limited(path: Path, what: str) -> bytes:
    """The bytes of a regular file that has no more of them than ``LIMITS`` allows.

    Args:
        what: is read, a key of ``LIMITS``.

    Raises:
        OSError: it cannot be read, is a pipe, a device or a folder, or is larger.
    """
    limit = LIMITS[what]
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise too_large(what, str(path))
    return data


def open_regular(path: str | Path, flags: int = 0) -> int:
    """A descriptor to read a regular file. A pipe is not waited for, and a device is not read.

    Args:
        flags: further ones, such as ``os.O_NOFOLLOW``.

    Raises:
        OSError: it cannot be opened, is no regular file, or its name has NUL in it or half a surrogate pair.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no name that a file can have") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return descriptor


def too_large(what: str, name: str) -> OSError:
    """The error of a file that exceeds its limit."""
    return OSError(errno.EFBIG, f"more than {LIMITS[what]:,} bytes, the most of a {what}", name)


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document, within limits of memory; finite numbers of at most 64 bits.

    Raises:
        ValueError: no JSON, NaN or Infinity, a number that is too long or too large, nested too deeply, or more values
            than ``MOST_JSON_VALUES``.
    """
    marks = (b",", b"[", b"{") if isinstance(data, bytes) else (",", "[", "{")
    if sum(data.count(mark) for mark in marks) > MOST_JSON_VALUES:  # type: ignore[arg-type]
        raise ValueError(f"more than {MOST_JSON_VALUES:,} values")
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def finite_number(value: object) -> float | None:
    """The number that JSON or YAML gave, if it is a finite one of at most 64 bits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > MOST_JSON_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"a number beyond 64 bits: {text[:40]}")
    return value
