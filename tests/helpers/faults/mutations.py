"""Changes to sound files that reach deep into their readers: bytes, fields of headers, and values of documents."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

HUGE = 10**5_000
SPECIAL: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, -0.0, 1e308, "", " ", "a",
    "0" * 64, "f" * 64, "../../../tmp/x", "/etc/hostname", "..", "a/b", "a\0b", "\ud800", "\u2028", "\x1b[31m", "%00",
    "%2F", "x" * 300, "x" * 70_000, "NaN", "1e400", [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a", "a"],
    [0.5] * 1_000,
)  # fmt: skip
"""Values in the place of others. JSON spells all of them."""

TOKENS: tuple[bytes, ...] = (
    b"NaN", b"Infinity", b"-", b"1e400", b"9" * 5_000, b"0x7fffffff", b"[" * 5_000, b"{" * 300, b'{"a":' * 2_000, b"]",
    b'"', b"\\ud800", b"\\u0000", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x1b[2J", b"\n", b"\r", b"\t",
    b";", b",", b"'", b'"""', b"=", b"[[a]]\n", b"a.b.c = 1\n", b"\xff" * 8, b"\x80" + b"\0" * 7, b"\0" * 600,
    b"../" * 40, b"%n%s", b"x" * 70_000, b"7777777777777\0",
)  # fmt: skip
"""Bytes that mean something to some reader."""


def mutate_bytes(draw: random.Random, data: bytes, most: int = 4) -> bytes:
    """A few changes: a flipped bit, a cut, bytes that are doubled, moved or taken out, tokens and numbers put in."""
    for _ in range(draw.randint(1, most)):
        at = draw.randint(0, len(data))
        end = min(len(data), at + draw.choice((1, 2, 4, 8, 16, 100, 512, 5_000)))
        kind = draw.randint(0, 8)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randint(0, 7)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:end] + data[at:]
        elif kind == 3:
            data = data[:at] + data[end:]
        elif kind == 4:
            other = draw.randint(0, len(data))
            data = data[:other] + data[at:end] + data[other:]
        elif kind == 5:
            data = data[:at] + draw.choice(TOKENS) + data[at:]
        elif kind == 6:
            token = draw.choice(TOKENS)
            data = data[:at] + token + data[at + len(token) :]
        elif kind == 7:
            at -= at % 4
            width = draw.choice((2, 4, 8))
            number = draw.choice((0, 1, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1))
            packed = (number % 256**width).to_bytes(width, draw.choice(("little", "big")))
            data = data[:at] + packed + data[at + width :]
        else:
            data = data[:at] + bytes(end - at) + data[end:]
    return data


def mutate_tree(draw: random.Random, tree: Any, most: int = 3) -> Any:
    """A few changes to the values of a document: another value, another type, a key gone, one more, one renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, most)):
        places = list(_places(tree))
        if not places:
            return draw.choice(SPECIAL)
        holder, key = draw.choice(places)
        kind = draw.randint(0, 6)
        if kind <= 2:
            holder[key] = copy.deepcopy(draw.choice(SPECIAL))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other, its = draw.choice(places)
            if _is_there(other, its):
                holder[key] = copy.deepcopy(other[its])
        elif isinstance(holder, dict):
            name = draw.choice(("", "a.b", "x" * 300, "../x", "a\0", "\ud800", "seal", str(key).upper()))
            holder[name] = holder.pop(key) if kind == 5 else copy.deepcopy(holder[key])
        else:
            holder[:] = holder * draw.choice((0, 2, 100)) if len(holder) < 100 else holder[:1]
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def _is_there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def mutate_json(draw: random.Random, data: bytes) -> bytes:
    """A document with other values, or other bytes, or both."""
    kind = draw.randint(0, 3)
    if kind:
        tree = mutate_tree(draw, json.loads(data))
        data = json.dumps(tree, indent=1, sort_keys=draw.random() < 0.5, ensure_ascii=True).encode()
    return mutate_bytes(draw, data) if kind in (0, 3) else data


def mutate_tar(draw: random.Random, data: bytes) -> bytes:
    """A tar with other header fields whose checksums agree, or other bytes, or both."""
    kind = draw.randint(0, 3)
    for _ in range(draw.randint(1, 3) if kind else 0):
        headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
        if not headers:
            break
        at = draw.choice(headers)
        block = bytearray(data[at : at + 512])
        start, end = draw.choice(((0, 100), (100, 108), (124, 136), (136, 148), (156, 157), (157, 257), (345, 500)))
        if draw.random() < 0.5 and end - start == 1:
            block[start:end] = draw.choice((b"0", b"\0", b"1", b"2", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"?"))
        else:
            field = mutate_bytes(draw, bytes(block[start:end]), 1)[: end - start]
            block[start:end] = field.ljust(end - start, b"\0")
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
        data = data[:at] + bytes(block) + data[at + 512 :]
        if draw.random() < 0.3:
            data = data[:at] + bytes(block) * draw.choice((1, 50)) + data[at:]
    return mutate_bytes(draw, data) if kind in (0, 3) else data


def mutate_lines(draw: random.Random, data: bytes) -> bytes:
    """A table with other cells, with lines gone, doubled or in another order, or other bytes."""
    lines = data.split(b"\n")
    for _ in range(draw.randint(0, 3)):
        at = draw.randrange(len(lines))
        kind = draw.randint(0, 3)
        if kind == 0:
            lines.insert(at, draw.choice(lines))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        else:
            separator = draw.choice((b",", b";", b"\t", b" ", b":"))
            cells = lines[at].split(separator)
            special = json.dumps(draw.choice(SPECIAL)).encode() if kind == 2 else draw.choice(TOKENS)
            cells[draw.randrange(len(cells))] = special
            lines[at] = separator.join(cells)
    data = b"\n".join(lines)
    return mutate_bytes(draw, data) if draw.random() < 0.5 else data
