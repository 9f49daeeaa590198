"""The multipart/form-data body of a request: audio files as they are, and how to cut them into windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ccts_dist.errors import ConfigError, RequestError
from ccts_dist.inference.predictor import AUDIO, PATH
from ccts_dist.inference.windows import Windows, windows_of

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
WINDOW, HOP = "window", "hop"
"""Fields of a form: seconds of a window, and from the start of one to the start of the next."""

_NUMBERS = (WINDOW, HOP)
_MOST_NUMBER_BYTES, _MOST_PATH_BYTES = 32, 4_096
_MOST_HEADERS, _MOST_HEADER_BYTES = 8, 4_096
"""Limits of a part."""

_MOST_BOUNDARY_BYTES = 70
"""RFC 2046."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The request of a form."""

    rows: Sequence[Mapping[str, Any]]
    """Recordings: ``audio`` with the bytes of a file, or ``path``."""

    windows: Windows | None
    """How to cut them; None: as a whole."""


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type gives; None where it is no form, or has none that may be."""
    kind, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    return boundary if kind == FORM.encode() and 0 < len(boundary) <= _MOST_BOUNDARY_BYTES else None


def form_of_body(body: bytes | bytearray, boundary: bytes, *, max_recordings: int, recording_bytes: int) -> Form:
    """The recordings of a form, and the windows that it asks for.

    Args:
        max_recordings: of a request.
        recording_bytes: of one file.

    Raises:
        RequestError: malformed, too many parts, a part that is too large, an unknown field, or impossible windows.
    """
    most_parts = max_recordings + len(_NUMBERS)
    # Each delimiter and each that only begins like one costs the parser some steps in Python.
    if body.count(b"--" + boundary) > most_parts + 1:
        raise RequestError(
            f"the form has more than {most_parts} parts: at most {max_recordings} recordings in a request. Send "
            "several requests."
        )
    parts = _Parts(recording_bytes)
    parser = MultipartParser(
        boundary, parts.callbacks(), max_header_count=_MOST_HEADERS, max_header_size=_MOST_HEADER_BYTES
    )
    try:
        parser.write(body)  # type: ignore[arg-type]  # it searches and slices, which a bytearray does as well
    except FormParserError as error:
        raise RequestError(f"the body is not a form that can be read ({error}).") from error
    if not parts.is_complete:
        raise RequestError("the body is not a form that can be read (it has no closing boundary).")
    return Form(rows=parts.rows, windows=_windows(parts.numbers))


@final
@dataclass(slots=True)
class _Parts:
    """The parts of a form as the parser comes upon them."""

    recording_bytes: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    is_complete: bool = False
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _name: str = ""
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0

    def callbacks(self) -> "MultipartCallbacks":
        """The parser's callbacks."""
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._name, self._data, self._size = "", [], 0

    def _begin_header(self) -> None:
        self._header = [b"", b""]

    def _add_header(self, at: int, data: bytes | bytearray) -> None:
        self._header[at] += bytes(data)

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._name = parse_options_header(value)[1].get(b"name", b"").decode("utf-8", "replace")

    def _add(self, data: bytes | bytearray, start: int, end: int) -> None:
        limit = {AUDIO: self.recording_bytes, PATH: _MOST_PATH_BYTES}.get(self._name, _MOST_NUMBER_BYTES)
        self._size += end - start
        if self._size > limit and self._name in (AUDIO, PATH, *_NUMBERS):
            raise RequestError(f"field {self._name!r} of the form: more than {limit} bytes. Cut it, or send FLAC.")
        if self._size <= limit:
            self._data.append(bytes(data[start:end]))

    def _end(self) -> None:
        data = b"".join(self._data)
        if self._name == AUDIO:
            self.rows.append({AUDIO: data})
        elif self._name == PATH:
            self.rows.append({PATH: data.decode("utf-8", "replace")})
        elif self._name in _NUMBERS:
            if self._name in self.numbers:
                raise RequestError(f"field {self._name!r} of the form: is given twice. Give it once.")
            self.numbers[self._name] = _number(self._name, data)
        else:
            known = ", ".join((AUDIO, PATH, *_NUMBERS))
            raise RequestError(f"the form has an unknown field {self._name[:80]!r}. Known fields: {known}.")
        self._data = []

    def _complete(self) -> None:
        self.is_complete = True


def _number(name: str, data: bytes) -> float:
    try:
        return float(data)
    except ValueError as error:
        raise RequestError(
            f"field {name!r} of the form: {data!r} is no number of seconds. Send one, as 2.5."
        ) from error


def _windows(numbers: dict[str, float]) -> Windows | None:
    if WINDOW not in numbers:
        if numbers:
            raise RequestError(f"field {HOP!r} of the form stands without {WINDOW!r}. Give both, or neither.")
        return None
    try:
        return windows_of(numbers[WINDOW], numbers.get(HOP))
    except ConfigError as error:
        raise RequestError(str(error).replace("--", "")) from error
