"""The shard format in data: names, the manifest, keys in member names, and the JSON member of an utterance.

``shards/FORMAT.md`` is the normative text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.files.digests import Digest, OptionalDigest
from ccts_dist.limits import finite_number
from ccts_dist.records import SAMPLE_RATE_HZ, Utterance
from ccts_dist.shards.format.index import IndexPlace
from ccts_dist.shards.format.record_table import RecordTable, numbers_of, texts_of
from ccts_dist.shards.format.sealed_json import check_seal, parse_document, sealed_bytes

FORMAT_VERSION = 2
"""Format version of shard sets and teacher caches. Raised when a reader of the old version would misread the new."""

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.arrow"
REJECTED_NAME = "rejected.jsonl"
CONDITION_NAME = "condition.json"
AUDIO_MEMBER = "flac"
JSON_MEMBER = "json"
TEACHER_MEMBER = "teacher.npy"

_MOST_COUNTED = 1 << 48
"""Bytes or samples of a shard; so many shards have sums below 2^63."""

NO_TABLE = "lists a shard with a number beyond 64 bits, or NUL in a text, or one that is too long"
"""Placeholder of a manifest that could be parsed, and whose shards are no ``RecordTable``."""

_NOT_TO_USE = "Run shards/check.py, and build the shard set again."

_SHARD_NAME = re.compile(r"[A-Za-z0-9_%-]+-[0-9]{6,18}\.tar")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One tar of a shard set, as its manifest lists it."""

    name: str
    """File name, ``<escaped split>-<six digits>.tar``."""

    split: str
    num_utterances: int
    num_samples: int
    """Samples of audio, over all its utterances."""

    size_bytes: int
    sha256: Digest
    index: IndexPlace
    """Place of its rows in the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTotals:
    """Totals of a split."""

    num_utterances: int
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """Which teacher spoke, and what its outputs look like."""

    name: str
    """Folder or registry address, for people."""

    registry_version: str = ""
    """Version in the model registry; empty for a teacher that was never registered."""

    weight_digest: Digest
    """SHA-256 of the teacher's weights; of several teachers, that of their digests, sorted and one a line."""

    targets: tuple[str, ...]
    """Targets that it predicts, in this order."""

    embedding_size: int
    embedding_mean: tuple[float, ...]
    """Per feature, over the training splits (those of the condition)."""

    embedding_std: tuple[float, ...]
    condition_sha256: OptionalDigest
    """SHA-256 of the ``condition.json`` that lies beside the manifest."""

    cache_digest: OptionalDigest = ""
    """In merged shard sets: SHA-256 of the manifest of the teacher cache that was merged in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a shard set: the document that is written last and names everything else by digest."""

    format_version: int = FORMAT_VERSION
    corpus: str
    release: str
    sample_rate_hz: int = SAMPLE_RATE_HZ
    scale: tuple[float, ...]
    """The corpus's own rating scale (lowest, highest)."""

    targets: tuple[str, ...]
    """Names of the labels."""

    members: tuple[str, ...] = (AUDIO_MEMBER, JSON_MEMBER)
    """Extensions that every utterance has, in their order in the tar."""

    categories: tuple[str, ...] = ()
    """Categorical emotions that occur, sorted, as the corpus spells them."""

    splits: Mapping[str, SplitTotals]
    shards: Sequence[ShardEntry]
    """In the order of the index's batches."""

    index_size_bytes: int
    index_sha256: Digest
    counts: Mapping[str, int] = field(default_factory=dict)
    """Utterances that were rejected, resampled, mixed down."""

    rejected_sha256: OptionalDigest = ""
    """SHA-256 of ``rejected.jsonl``, which in merged sets stays with the source."""

    input_digest: OptionalDigest = ""
    """Digest of what the builder was given: utterances, sizes of their files, settings."""

    source_digest: OptionalDigest = ""
    """In merged shard sets: the digest of the plain set they were made of."""

    teacher: TeacherFacts | None = None
    """In merged shard sets: whose outputs the shards carry."""

    @property
    def title(self) -> str:
        """The corpus, and its release where the builder was given one."""
        return self.corpus if self.release in ("", "unknown") else f"{self.corpus} {self.release}"

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits in the order of their shards, which is the corpus's."""
        return tuple(dict.fromkeys(texts_of(self.shards, "split")))

    def shards_of(self, split: str) -> Sequence[ShardEntry]:
        """The shards of one split, in the manifest's order."""
        if isinstance(self.shards, RecordTable):
            return self.shards.take(self.shards.rows_where("split", split))
        return [shard for shard in self.shards if shard.split == split]

    def to_bytes(self) -> bytes:
        """The manifest file, sealed: a reader notices when any byte of it has changed."""
        return sealed_bytes(self)


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in a file's bytes.

    Raises:
        ShardError: another format version, no JSON, not of the manifest's form, or changed since it was written;
            ``where`` names the file.
    """
    manifest = parse_document(Manifest, data, where=where, error=ShardError, sealed=True, version=FORMAT_VERSION)
    names = texts_of(manifest.shards, "name")
    if (name := foreign_name(names)) is not None:
        raise ShardError(
            f"{where}: shard name {name!r} is not a plain file name as shards have. Do not use this shard set."
        )
    if len(set(names)) != len(names):
        raise ShardError(f"{where}: a shard is listed twice. Build the shard set again.")
    check_seal(data, where=where, error=ShardError)
    return manifest


def foreign_name(names: Sequence[str]) -> str | None:
    """The first of some file names that ``shard_name`` never gives; None if there is none."""
    return next((name for name in names if not _SHARD_NAME.fullmatch(name)), None)


def check_totals(manifest: Manifest, *, where: str) -> None:
    """Refuse a manifest whose shards are not those that its splits count: a faulty tool has sealed it.

    Raises:
        ShardError: ``where`` names the file.
    """
    shards = manifest.shards
    if not isinstance(shards, RecordTable):
        raise ShardError(f"{where}: {NO_TABLE}. {_NOT_TO_USE}")
    for name in ("num_utterances", "num_samples", "size_bytes"):
        numbers = shards.numbers(name)
        wrong = np.flatnonzero(~((numbers > 0) & (numbers < _MOST_COUNTED)))
        if len(wrong):
            shard = shards[int(wrong[0])]
            raise ShardError(f"{where}: has {getattr(shard, name)} for {name} of {shard.name}. {_NOT_TO_USE}")
    num_counted = 0
    for split, totals in manifest.splits.items():
        own = manifest.shards_of(split)
        num_counted += len(own)
        if (counted := int(numbers_of(own, "num_utterances").sum())) != totals.num_utterances:
            raise ShardError(
                f"{where}: states that split {split!r} has {totals.num_utterances} utterances, and its shards have "
                f"{counted}. {_NOT_TO_USE}"
            )
    if num_counted != len(shards):
        raise ShardError(f"{where}: lists shards of splits that it does not name. {_NOT_TO_USE}")


def escape_key(key: str) -> str:
    """A key as tar member names and shard names carry it: every byte but ``[A-Za-z0-9_-]`` as ``%XX``.

    A dot would end the key for every WebDataset reader, a slash would make a folder.

    >>> escape_key("MSP/ä.5 b")
    'MSP%2F%C3%A4%2E5%20b'
    """
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in key.encode())


def unescape_key(escaped: str) -> str:
    """The key that ``escape_key`` was given.

    Raises:
        ShardError: no key escapes to this.
    """
    try:
        key = unquote_to_bytes(escaped).decode()
    except UnicodeError:
        key = None
    if key is None or escape_key(key) != escaped:
        raise ShardError(f"{escaped!r} is no escaped key: it must be [A-Za-z0-9_-] and %XX. Do not use this shard.")
    return key


def shard_name(split: str, number: int) -> str:
    """File name of a split's shard.

    >>> shard_name("Train", 7)
    'Train-000007.tar'
    """
    return f"{escape_key(split)}-{number:06d}.tar"


def utterance_to_json(utterance: Utterance, *, targets: Sequence[str], num_samples: int, source: str) -> bytes:
    """The ``json`` member: sorted keys, UTF-8, the same keys for every utterance.

    Each target is there, null where nobody rated: readers that infer one schema for a set (``datasets``) need that.

    Args:
        targets: names of the labels, the shard set's.
        num_samples: length of the audio in the ``flac`` member.
        source: the audio file it came from, relative to the corpus.

    Raises:
        ValueError: a label is not finite, or a text is not valid Unicode (UnicodeEncodeError).
    """
    record = {
        "key": utterance.key,
        "split": utterance.split,
        "transcript": utterance.transcript,
        "transcript_confidence": _number(utterance.transcript_confidence),
        "labels": {target: _number(utterance.labels.get(target)) for target in targets},
        "label_variance": {target: _number(utterance.label_variance.get(target)) for target in targets},
        "num_raters": utterance.num_raters,
        "scale": [float(end) for end in utterance.scale],
        "speaker": utterance.speaker,
        "gender": utterance.gender,
        "category": utterance.category,
        "duration_s": num_samples / SAMPLE_RATE_HZ,
        "num_samples": num_samples,
        "source": source,
    }
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def transcript_of(data: bytes) -> str:
    """The words in a ``json`` member.

    Raises:
        ValueError: it is no utterance's, or has words that are no Unicode text.
    """
    try:
        words = json.loads(data)["transcript"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("no transcript in it") from error
    if not isinstance(words, str):
        raise ValueError(f"its transcript is {str(words)[:40]!r}")
    words.encode()  # refuses half a surrogate pair, which JSON can spell and no tokenizer can read
    return words


def transcript_confidence_of(data: bytes) -> float | None:
    """The recognizer's confidence in a ``json`` member, 0..1; None where no recognizer made the transcript.

    Raises:
        ValueError: it is no utterance's, or has another confidence.
    """
    try:
        confidence = json.loads(data)["transcript_confidence"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("no transcript_confidence in it") from error
    if confidence is None:
        return None
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        raise ValueError(f"its transcript_confidence is {str(confidence)[:40]}")
    return float(confidence)


def label_variance_of(data: bytes) -> dict[str, float]:
    """The raters' variances in a ``json`` member, by target, where they are known.

    Raises:
        ValueError: it is no utterance's.
    """
    try:
        found = _known({target: _number(value) for target, value in json.loads(data)["label_variance"].items()})
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no label_variance in it") from error
    if any(variance < 0 for variance in found.values()):
        raise ValueError("its label_variance has a number below 0")
    return found


def num_raters_of(data: bytes) -> int:
    """How many raters a ``json`` member counts; 0 where it is not known.

    Raises:
        ValueError: it is no utterance's, or the number is none.
    """
    try:
        number = json.loads(data)["num_raters"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("no num_raters in it") from error
    if number is None:
        return 0
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
        raise ValueError(f"its num_raters is {str(number)[:40]}")
    return number


def utterance_from_json(data: bytes) -> Utterance:
    """The utterance in a ``json`` member; its ``audio`` is the source relative to the corpus."""
    record = json.loads(data)
    return Utterance(
        key=record["key"],
        audio=Path(record["source"]),
        split=record["split"],
        labels=_known(record["labels"]),
        scale=(record["scale"][0], record["scale"][1]),
        transcript=record["transcript"],
        transcript_confidence=record["transcript_confidence"],
        speaker=record["speaker"],
        gender=record["gender"],
        category=record["category"],
        label_variance=_known(record["label_variance"]),
        num_raters=record["num_raters"],
    )


def local_folder(root: str | Path, *, what: str) -> Path:
    """The folder that a user named; refuses what WebDataset would take for a command or an address.

    Raises:
        ConfigError: a ``pipe:`` URL, which would run a shell, or an address of another kind.
    """
    text = str(root)
    if text.startswith("pipe:"):
        raise ConfigError(f"{what} {text!r}: pipe: URLs run a shell and are refused. Name a folder.")
    if "://" in text:
        raise ConfigError(f"{what} {text!r}: only folders are read. Copy it to a folder first.")
    return Path(root)


def _number(value: float | None) -> float | None:
    if value is None:
        return None
    number = finite_number(value)
    if number is None:
        raise ValueError(f"{str(value)[:40]} is not finite")
    return number  # 0 and 0.5 must have one type for readers that infer a schema


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    return {target: value for target, value in values.items() if value is not None}
