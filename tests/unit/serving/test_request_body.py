"""A request's JSON body: what is read of it, and that nothing in it grows."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import RequestError
from ccts_dist.serving.request_body import LongText, rows_of_body
from tests.tiers import examples

MIB = 1 << 20

OUTSIDE = "the body has more than 12288 bytes of JSON outside its strings"

GROWING: dict[str, tuple[bytes, bytes, str]] = {
    "empty objects": (b'{"inputs":[', b"{},", OUTSIDE),
    "empty lists": (b'{"inputs":[', b"[],", OUTSIDE),
    "empty strings": (b'{"inputs":[', b'"",', OUTSIDE),
    "numbers": (b'{"inputs":[', b"1,", OUTSIDE),
    "names": (b'{"inputs":[{', b'"a":1,', OUTSIDE),
    "nesting": (b"", b"[", OUTSIDE),
    "a number of many digits": (b'{"inputs":', b"7", OUTSIDE),
    "white space": (b'{"inputs":', b" ", OUTSIDE),
    "nothing but zeros": (b"", b"\0", OUTSIDE),
    "gzip": (b"\x1f\x8b", b"\0", "the body is compressed by gzip"),
    "escaped quotes": (b'{"inputs":"', b'\\"', "more than 1000 escaped quotes"),
    "a string without an end": (b'{"inputs":"', b"A", "ends within a string"),
    "backslashes": (b'{"inputs":"', b"\\\\", "ends within a string"),
}
"""How a body of 16 MiB begins, what it repeats, and why it is refused."""


@pytest.mark.parametrize("kind", GROWING)
def test_body_that_would_grow_when_parsed_is_refused_before_it_is_parsed(kind: str) -> None:
    """``{},`` took 34 times its size."""
    begin, unit, reason = GROWING[kind]
    body = begin + unit * (16 * MIB // len(unit))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=reason):
            rows_of_body(body, max_recordings=32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"audio":"AAAA","\\u0061udio":"BBBB"}]}',
        b'{"inputs":[],"inputs":[{"audio":"AAAA"}]}',
        b'{"dataframe_split":{"columns":["audio","audio"],"data":[["AAAA","BBBB"]]}}',
    ],
)
def test_name_that_comes_twice_is_refused_since_parsers_differ_in_which_they_take(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"the body has '(audio|inputs)' twice in one place"):
        rows_of_body(body, max_recordings=4)


def test_name_too_long_is_refused_and_not_sent_back() -> None:
    with pytest.raises(RequestError, match="has a name of 1000000 bytes") as error:
        rows_of_body(b'{"' + b"A" * 1_000_000 + b'":1}', max_recordings=1)
    assert len(str(error.value)) < 200


def test_long_strings_are_not_copied_until_they_are_asked_for() -> None:
    body = b'{"inputs":[{"audio":"' + b"A" * (16 * MIB) + b'"}]}'
    tracemalloc.start()
    try:
        ((_, audio),) = rows_of_body(body, max_recordings=32)[0].items()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB
    assert isinstance(audio, LongText)
    assert audio.base64(16 * MIB - 1) is None
    assert audio.base64(16 * MIB) == b"A" * (16 * MIB)


@pytest.mark.parametrize("escape", [("/", "\\/"), ("+", "\\u002b"), ("+", "\\u002B"), ("=", "\\u003d")])
def test_base64_as_other_programs_escape_it_is_read(escape: tuple[str, str]) -> None:
    """PHP escapes the slash, .NET the plus sign."""
    plain = "ab+/" * 10_000 + "ab=="
    body = f'{{"inputs":[{{"audio":"{plain.replace(*escape)}"}}]}}'.encode()
    audio = rows_of_body(body, max_recordings=1)[0]["audio"]
    assert isinstance(audio, LongText)
    assert audio.base64(len(plain)) == plain.encode()


TEXT = st.text('a"\\/\u2028\n0\0ü', max_size=6) | st.sampled_from(["7", "A" * 30_000])
CELLS = (
    st.none()
    | st.integers(-9, 9)
    | TEXT
    | st.lists(TEXT, max_size=3)
    | st.dictionaries(st.sampled_from(["a", '"', "\\", "ü"]), TEXT, max_size=2)
)


def _plain(tree: Any) -> Any:
    if isinstance(tree, LongText):
        return bytes(tree.raw).decode()
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return [_plain(one) for one in tree] if isinstance(tree, list) else tree


@examples(60)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["audio", "path", "x"]), CELLS, max_size=3), max_size=3))
def test_strings_cut_out_come_back_as_a_json_parser_reads_them(rows: list[dict[str, Any]]) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"inputs": rows}, ensure_ascii=ascii_only, indent=1).encode()
        assert _plain(rows_of_body(body, max_recordings=32)) == rows


@examples(200)
@given(body=st.binary(max_size=60) | st.text('[]{}":,\\0 einputs', max_size=60).map(str.encode))
def test_whatever_is_no_request_is_refused_and_nothing_else_is_raised(body: bytes) -> None:
    try:
        rows_of_body(body, max_recordings=2)
    except RequestError:
        return
    assert isinstance(json.loads(body), dict)
