"""The file of what a speech recognizer transcribed: one JSON line per utterance, beside the corpus and never part of
it.

It grows line by line and is synced to disk each time, so that a recognizer that was killed goes on after its last whole
line. All of a file was transcribed by one model, asked for one language.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import Any, BinaryIO

from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.files.locking import lock
from ccts_dist.limits import LIMITS, open_regular
from ccts_dist.records import Rejected, Utterance

_FIRST_BYTES = b'{"confidence": '  # of every line: its keys are sorted
_FILE, _LINE = "file of transcripts", "line of a label table"  # keys of LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrTranscript:
    """A recognizer's transcript of one utterance."""

    key: str
    transcript: str
    """Empty when it transcribed no word."""

    confidence: float
    """0..1, as the model's family measures it (asr/models.py); 0 when it transcribed no word."""

    model: str
    """Name of the model, for people."""

    digest: str
    """Digest of the model's weights; two models of one digest are the same."""

    language: str | None
    """Language that the model was asked for; None for its own way of finding out."""

    duration_s: float


def read_transcripts(path: str | Path) -> Mapping[str, AsrTranscript]:
    """Transcripts by key, in the file's order. A last line that a kill has cut short is omitted.

    Raises:
        CorpusError: no such file, or it is no file of what a recognizer transcribed.
    """
    path = Path(path)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            transcripts, _ = _parse(file, path)
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be read ({error.strerror}). Name a file that shards/transcribe.py wrote."
        ) from error
    return transcripts


def apply_transcripts(
    utterances: Iterable[Utterance | Rejected], transcripts: Mapping[str, AsrTranscript], *, min_confidence: float
) -> tuple[Utterance | Rejected, ...]:
    """The same utterances in the same order, with the transcribed words where the corpus has none.

    A transcript of the corpus's own stays as it is, whatever was transcribed. Rejected rows pass through.

    Args:
        transcripts: by key, as ``read_transcripts`` gives it.
        min_confidence: 0..1; words transcribed with less are not used.

    Raises:
        ConfigError: ``min_confidence`` is not within 0..1.
        CorpusError: not one of the keys is the corpus's, so the words belong to another corpus.
    """
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"min_confidence={min_confidence}: must be between 0 and 1. Change --min-confidence.")
    given = tuple(utterances)
    if transcripts and given and not any(one.key in transcripts for one in given):
        raise CorpusError(
            f"None of the {len(transcripts)} keys that were transcribed is one of this corpus's {len(given)} "
            f"(transcribed: {next(iter(transcripts))!r}, the corpus's: {given[0].key!r}). Name the file made from this "
            "corpus."
        )
    return tuple(_with_words(one, transcripts, min_confidence) for one in given)


def _with_words(
    one: Utterance | Rejected, transcripts: Mapping[str, AsrTranscript], min_confidence: float
) -> Utterance | Rejected:
    if isinstance(one, Rejected) or has_transcript(one):
        return one
    words = transcripts.get(one.key)
    if words is None or words.confidence < min_confidence:
        return one
    return replace(one, transcript=words.transcript, transcript_confidence=words.confidence)


def has_transcript(utterance: Utterance) -> bool:
    """True if the corpus itself names what was spoken; white space states nothing."""
    return bool(utterance.transcript.strip())


class TranscriptFile:
    """The file while a recognizer adds to it. Use as a context manager; one process at a time.

    Args:
        path: made when it is not there; what is there must have been transcribed by the same model in the same
            language.
        digest: of the model that is about to transcribe.
        language: that it was asked for.

    Raises:
        ConfigError: another model's or language's file, another process at work in it, or a place that cannot be
            written.
        CorpusError: it is no file of what a recognizer transcribed.
    """

    def __init__(self, path: str | Path, *, digest: str, language: str | None) -> None:
        self.path = Path(path)
        self._file = _open_alone(self.path)
        try:
            self.transcripts, sound_bytes = _parse(self._file, self.path)
            self._check_model(digest, language)
            self._file.truncate(sound_bytes)
            self._file.seek(sound_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TranscriptFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, batch: Sequence[AsrTranscript]) -> None:
        """Append what was transcribed of one batch, and see it on the disk.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self._file.write(b"".join(_line(one) for one in batch))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.transcripts.update((one.key, one) for one in batch)

    def _check_model(self, digest: str, language: str | None) -> None:
        for one in self.transcripts.values():
            if one.digest != digest:
                raise ConfigError(
                    f"{self.path}: was transcribed by model {one.model} with weights {one.digest[:12]}, this one has "
                    f"{digest[:12]}. Use that model again, or name another file with --out."
                )
            if one.language != language:
                raise ConfigError(
                    f"{self.path}: was transcribed with language {one.language!r}, now it is {language!r}. Give the "
                    "same --language, or name another file with --out."
                )


def _open_alone(path: Path) -> Any:
    """The file, opened to read and write without losing what is in it, and locked against a second process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except OSError as error:
        raise _unwritable(path, error) from error
    if not lock(file):
        file.close()
        raise ConfigError(f"{path}: another process is adding to it. Wait for it, or name another file with --out.")
    return file


def _parse(file: BinaryIO, path: Path) -> tuple[dict[str, AsrTranscript], int]:
    """Transcripts of the whole lines, by key, and how many bytes they take; a last line without its end is omitted."""
    transcripts: dict[str, AsrTranscript] = {}
    num_bytes, number = 0, 1
    while (line := file.readline(LIMITS[_LINE] + 1)).endswith(b"\n") and len(line) <= LIMITS[_LINE]:
        one = _read_line(line[:-1], f"{path}: line {number}")
        if one.key in transcripts:
            raise CorpusError(f"{path}: line {number}: key {one.key!r} comes twice. Delete one of the two lines.")
        transcripts[one.key] = one
        num_bytes, number = num_bytes + len(line), number + 1
        if num_bytes > LIMITS[_FILE]:
            raise _foreign(str(path), f"it takes more than {LIMITS[_FILE]:,} bytes")
    if len(line) > LIMITS[_LINE]:
        raise _foreign(f"{path}: line {number}", f"it takes more than {LIMITS[_LINE]:,} bytes")
    # A kill leaves the beginning of a line; a power cut zeros. Anything else was written by someone else.
    if not (line.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(line) or not line.strip(b"\0")):
        raise _foreign(f"{path}: line {number}", "it is not the beginning of one")
    return transcripts, num_bytes


def _line(one: AsrTranscript) -> bytes:
    return (json.dumps(asdict(one), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read_line(line: bytes, where: str) -> AsrTranscript:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _foreign(where, f"it is no JSON ({error})") from error
    names = {f.name for f in fields(AsrTranscript)}
    if not isinstance(tree, dict) or set(tree) != names:
        raise _foreign(where, f"its keys must be {', '.join(sorted(names))}")
    texts = [tree[name] for name in ("key", "transcript", "model", "digest")]
    numbers = [tree[name] for name in ("confidence", "duration_s")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(tree["language"], str | None):
        raise _foreign(where, "a text is something else")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise _foreign(where, "a number is something else")
    if not 0 <= tree["confidence"] <= 1 or not 0 <= tree["duration_s"] <= sys.float_info.max:
        raise _foreign(where, f"confidence {tree['confidence']} or duration {tree['duration_s']} is off its range")
    for name in ("confidence", "duration_s"):
        tree[name] = float(tree[name])
    for name in ("model", "digest", "language"):  # the same on every line: held once
        tree[name] = tree[name] and intern(tree[name])
    return AsrTranscript(**tree)


def _foreign(where: str, what: str) -> CorpusError:
    return CorpusError(
        f"{where} is not one that shards/transcribe.py wrote: {what}. Name another file, or delete that line."
    )


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}). Name another place with --out.")
