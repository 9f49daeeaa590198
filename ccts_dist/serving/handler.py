"""A served model's requests, refusals and answers.

Everything that comes in is foreign: it is measured before it is decoded, and decoded before the model sees it. MLflow's
server calls ``Served.predict`` through the few lines that are stored with a version.
"""

import binascii
import io
import math
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Int16

from ccts_dist.audio.convert import decode_audio
from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.errors import ConfigError, RequestError
from ccts_dist.inference.predictor import AUDIO, PATH, Predictor, load_student
from ccts_dist.inference.windows import Windows, cut_windows, mean_answer
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.registry.package import check_package
from ccts_dist.registry.pull import check_registered
from ccts_dist.serving.request_body import LongText, rows_of_columns

if TYPE_CHECKING:
    import pandas as pd

_BATCH_SECONDS = 60.0
"""Padded seconds of one forward pass. Sixteen times as much is in memory as float32; see
``inference.predictor.stretches``."""

_MOST_WINDOWS = 1_000
"""Most windows of a request."""

_META_FILE = "registered_model_meta"
"""MLflow writes name and version there when it fetches a registered model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of requests. MLflow's server takes no options of ours, so they come from the environment."""

    recordings: int = 32
    """Most recordings of one request."""

    recording_bytes: int = 16 << 20
    """Most bytes of one audio file, before base64."""

    seconds: float = 120.0
    """Most seconds of one recording; at most 600."""

    audio_root: Path | None = None
    """Folder below which files may be asked for by path; None: no paths."""

    request_bytes: int = 128 << 20
    """Most bytes of the body of one request. Only ``serving.server`` can hold to this and the following; MLflow's
    server does not ask."""

    waiting_bytes: int = 256 << 20
    """Most bytes of all bodies in memory together; never fewer than ``request_bytes``."""

    requests: int = 32
    """That wait for the model or are answered, at a time. Those whose body has not come yet do not count."""

    connections: int = 512
    """Open at a time. For one more, that which has been silent longest is closed."""

    head_seconds: float = 10.0
    """In which a request's head must come, from the connection's beginning or the answer before."""

    body_seconds: float = 20.0
    """In which a body must come; each 16 KiB that have come give a second more."""


def read_limits(environment: Mapping[str, str]) -> Limits:
    """``CCTS_AUDIO_ROOT``, and ``CCTS_MAX_`` with the name of a limit, such as ``CCTS_MAX_RECORDINGS``.

    Raises:
        ConfigError: not a number, out of range, or a root that is no folder.
    """
    usual = Limits()
    root = environment.get("CCTS_AUDIO_ROOT", "")
    if root and not Path(root).is_dir():
        raise ConfigError(f"CCTS_AUDIO_ROOT={root!r}: no such folder. Name one, or leave it out to serve no paths.")
    request_bytes = int(_number(environment, "CCTS_MAX_REQUEST_BYTES", usual.request_bytes))
    return Limits(
        recordings=int(_number(environment, "CCTS_MAX_RECORDINGS", usual.recordings)),
        recording_bytes=int(_number(environment, "CCTS_MAX_RECORDING_BYTES", usual.recording_bytes)),
        seconds=_number(environment, "CCTS_MAX_SECONDS", usual.seconds, highest=MAX_DURATION_S),
        audio_root=Path(root).resolve() if root else None,
        request_bytes=request_bytes,
        waiting_bytes=max(request_bytes, int(_number(environment, "CCTS_MAX_WAITING_BYTES", usual.waiting_bytes))),
        requests=int(_number(environment, "CCTS_MAX_REQUESTS", usual.requests)),
        connections=int(_number(environment, "CCTS_MAX_CONNECTIONS", usual.connections)),
        head_seconds=_number(environment, "CCTS_MAX_HEAD_SECONDS", usual.head_seconds, highest=3_600.0),
        body_seconds=_number(environment, "CCTS_MAX_BODY_SECONDS", usual.body_seconds, highest=3_600.0),
    )


def _number(environment: Mapping[str, str], name: str, usual: int | float, highest: float = 1e12) -> float:
    text = environment.get(name, "") or str(usual)
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: must be a number. Change it, or leave it out for {usual:g}.") from error
    if not 1 <= value <= highest:
        raise ConfigError(f"{name}={text}: must be 1 to {highest:g}. Change it, or leave it out for {usual:g}.")
    return value


def open_served(package: Path, environment: Mapping[str, str] | None = None) -> "Served":
    """The model of a package that MLflow has fetched, its digests compared first: with the package's own list, and
    with the registry's tags if it came from a registry.

    Args:
        package: folder within MLflow's model.
        environment: holds the limits; None for this process's.

    Raises:
        ConfigError: a limit that cannot be, or a model that reads transcripts.
        RegistryError: a file was altered, or the registry cannot be asked.
    """
    limits = read_limits(os.environ if environment is None else environment)
    check_package(package)
    meta = package.parents[1] / _META_FILE
    if meta.is_file():
        import mlflow
        import yaml

        fetched = yaml.safe_load(meta.read_text(encoding="utf-8"))
        name, version = str(fetched["model_name"]), str(fetched["model_version"])
        check_registered(package, name, version, tracking_uri=mlflow.get_registry_uri())
    return Served(load_student(package), limits)


@final
class Served:
    """A student that answers strangers. Any number of threads may ask at once."""

    def __init__(self, student: Predictor, limits: Limits) -> None:
        self.student = student
        """The model."""

        self.limits = limits
        """Limits of requests."""
        # Some encoders note in a forward pass which frames are real; two passes at once would mix that up.
        self._one_at_a_time = threading.Lock()

    def answer(
        self, rows: Sequence[Mapping[str, Any]], *, on_audio: Callable[[int], None] = lambda num_samples: None
    ) -> list[dict[str, Any]]:
        """One answer per recording, in order; the same whatever else is being asked.

        Args:
            rows: each has either ``audio``, the base64 (or the bytes) of an audio file, or ``path``.
            on_audio: is called with the number of samples at 16 kHz when all are decoded.

        Raises:
            RequestError: names which recording, counted from 0, breaks which rule. Nothing is answered then.
        """
        wholes = self._decoded(rows, on_audio)
        with self._one_at_a_time:
            return self.student.predict(wholes, batch_seconds=_BATCH_SECONDS)

    def answer_windows(
        self,
        rows: Sequence[Mapping[str, Any]],
        windows: Windows,
        *,
        on_audio: Callable[[int], None] = lambda num_samples: None,
    ) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """The mean over the windows of each recording, and the answer of each window with ``start_s`` and ``end_s``.

        Args:
            rows: as ``answer``.
            windows: how recordings are cut.
            on_audio: as ``answer``.

        Raises:
            RequestError: as ``answer``; or the windows are more, or last together longer, than a request may.
        """
        wholes = self._decoded(rows, on_audio)
        count = sum(max(0, -(-(len(whole) - windows.length) // windows.hop)) + 1 for whole in wholes)
        seconds, most = count * windows.length / SAMPLE_RATE_HZ, self.limits.recordings * self.limits.seconds
        if count > _MOST_WINDOWS or (count > len(wholes) and seconds > most):
            raise RequestError(
                f"{count} windows of together {seconds:.0f} s, more than {_MOST_WINDOWS} or {most:.0f} s. Raise the "
                "hop, or send less."
            )
        cut = [[one for one in cut_windows(iter([whole]), windows) if not isinstance(one, str)] for whole in wholes]
        with self._one_at_a_time:
            answers = self.student.predict([sound for one in cut for _, sound in one], batch_seconds=_BATCH_SECONDS)
        means, curves, rest = [], [], iter(answers)
        for one in cut:
            spans = [(start / SAMPLE_RATE_HZ, (start + len(sound)) / SAMPLE_RATE_HZ) for start, sound in one]
            curves.append([{"start_s": start, "end_s": end, **next(rest)} for start, end in spans])
            means.append(mean_answer(curves[-1], self.student.columns, self.student.categories))
        return means, curves

    def _decoded(
        self, rows: Sequence[Mapping[str, Any]], on_audio: Callable[[int], None]
    ) -> list[Int16[np.ndarray, " samples"]]:
        """The samples of each recording, once all have been looked at."""
        if not rows:
            raise RequestError(f"no recording: send rows with a column {AUDIO!r} or {PATH!r}.")
        if len(rows) > self.limits.recordings:
            raise RequestError(
                f"{len(rows)} recordings in one request, more than {self.limits.recordings}. Send several requests."
            )
        cells = [self._checked(row, number) for number, row in enumerate(rows)]
        # One file at a time, and as 16 bit: together they may last an hour.
        wholes = [self._decode(cell, number) for number, cell in enumerate(cells)]
        on_audio(sum(map(len, wholes)))
        return wholes

    def check(self) -> None:
        """Answer a second of faint noise, which every model can; raises what the model raises."""
        noise = np.random.default_rng(0).integers(-30, 30, SAMPLE_RATE_HZ, dtype=np.int16)
        with self._one_at_a_time:
            self.student.predict([noise])

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The same, for MLflow, whose server makes a 400 of what this raises.

        Raises:
            MlflowException: as ``RequestError`` above.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import BAD_REQUEST

        try:
            return pd.DataFrame(self.answer(rows_of(frame)), columns=list(self.student.columns))
        except RequestError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from error

    def _checked(self, row: Mapping[str, Any], number: int) -> bytes | str | LongText | Path:
        """A recording as it is given, its form and size looked at and nothing of it decoded."""
        given = {name: cell for name, cell in row.items() if not _is_missing(cell)}
        unknown = sorted(set(given) - {AUDIO, PATH})
        if unknown:
            raise RequestError(f"recording {number}: unknown column {unknown[0]!r}. Give {AUDIO!r} or {PATH!r}.")
        if len(given) != 1:
            both = "both" if given else "neither"
            raise RequestError(f"recording {number}: has {both} {AUDIO!r} and {PATH!r}. Give one of them.")
        ((name, cell),) = given.items()
        if name == PATH:
            return self._file_below_root(cell, number)
        if isinstance(cell, bytes | bytearray):
            return self._sized(bytes(cell), number)
        if isinstance(cell, str) and len(cell) > self._most_characters:
            raise self._too_large(number, f"{len(cell)} characters of base64")
        if not isinstance(cell, str | LongText):
            raise RequestError(
                f"recording {number}: {AUDIO!r} is {type(cell).__name__}, must be a string. "
                "Give the base64 of an audio file."
            )
        return cell

    @property
    def _most_characters(self) -> int:
        """Most characters of base64, four of which carry three bytes."""
        return 4 * -(-self.limits.recording_bytes // 3)

    def _from_base64(self, cell: str | LongText, number: int) -> bytes:
        if isinstance(cell, str):
            text = cell
        elif (text := cell.base64(self._most_characters)) is None:
            raise self._too_large(number, f"{len(cell.raw)} characters of base64")
        try:
            return self._sized(binascii.a2b_base64(text, strict_mode=True), number)
        except ValueError as error:
            raise RequestError(
                f"recording {number}: {AUDIO!r} is not base64 ({error}). Encode the whole file, without line breaks."
            ) from error

    def _sized(self, data: bytes, number: int) -> bytes:
        if len(data) > self.limits.recording_bytes:
            raise self._too_large(number, f"{len(data)} bytes")
        return data

    def _too_large(self, number: int, size: str) -> RequestError:
        return RequestError(
            f"recording {number}: {size}, more than {self.limits.recording_bytes} bytes. Cut it, or send it as FLAC."
        )

    def _file_below_root(self, path: Any, number: int) -> Path:
        """The file, links followed. Whether there is anything outside the root is not reported."""
        root = self.limits.audio_root
        if root is None:
            raise RequestError(
                f"recording {number}: this server reads no paths. Send {AUDIO!r}, or start it with CCTS_AUDIO_ROOT."
            )
        if isinstance(path, LongText):
            raise RequestError(f"recording {number}: a path of {len(path.raw)} bytes is no file below the audio root.")
        if not isinstance(path, str):
            raise RequestError(f"recording {number}: {PATH!r} is {type(path).__name__}, must be a string.")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or not path.isprintable():
            raise RequestError(
                f"recording {number}: path {path!r} must be relative, without '..' and control characters. "
                "Name a file below the audio root."
            )
        try:
            found = root.joinpath(*parts).resolve(strict=True)
            is_file = stat.S_ISREG(found.stat().st_mode)
        except (OSError, RuntimeError):  # absent, too long a name, a circle of links
            found, is_file = root, False
        if not found.is_relative_to(root) or not is_file:
            raise RequestError(f"recording {number}: path {path!r} is no file below the audio root. Name another.")
        return found

    def _decode(self, cell: bytes | str | LongText | Path, number: int) -> Int16[np.ndarray, " samples"]:
        if isinstance(cell, Path):
            data = self._read(cell, number)
        else:
            data = cell if isinstance(cell, bytes) else self._from_base64(cell, number)
        decoded = decode_audio(io.BytesIO(data), max_duration_s=self.limits.seconds)
        if isinstance(decoded, str):
            raise RequestError(f"recording {number}: {decoded}. Leave it out, or send another.")
        return decoded.pcm16

    def _read(self, path: Path, number: int) -> bytes:
        """A file's bytes; of a link or a pipe that took its place since it was looked at, none."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                return self._sized(file.read(self.limits.recording_bytes + 1), number)
        except OSError as error:
            raise RequestError(f"recording {number}: the file cannot be read ({error.strerror}). Send it.") from error


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """A frame's rows as MLflow's server hands them over; columns that it does not know it has taken out.

    Of ``{"inputs": {"audio": [A, B]}}`` MLflow makes one row with a list in its cell.

    Raises:
        RequestError: lists of unlike length side by side.
    """
    rows: list[dict[str, Any]] = [
        {str(column): cell for column, cell in row.items()} for row in frame.to_dict(orient="records")
    ]
    if len(rows) != 1 or not any(isinstance(cell, list) for cell in rows[0].values()):
        return rows
    return rows_of_columns(rows[0])


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
