"""Planning a build: which utterances form which shard, from their records and the sizes of their files alone.

No audio is opened, so every process and every part of a job array comes to the same plan by itself, and the shards can
be made in any order, anywhere, and be the same bytes.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.records import SAMPLE_RATE_HZ, Utterance
from ccts_dist.shards.build.validate_input import source_of
from ccts_dist.shards.format.schema import AUDIO_MEMBER, escape_key, shard_name, utterance_to_json

GROWTH = {".flac": 1.1, ".mp3": 5.0, ".ogg": 6.0, ".oga": 6.0, ".opus": 10.0}
"""Size of a compressed file as FLAC (16 kHz, mono, 16 bit), over its own size; any other file counts as it is.

At libsndfile's own quality speech grows 2.5 times from MP3, 2.9 from Vorbis, 4.7 from Opus; files as people publish
them carry half the bits. FLAC of another encoder may be a little smaller than ours. Speech in a wave file becomes half.
"""

_BLOCK = 512
_LONGEST_NAME = 100
"""Bytes of a member name that fit its tar header; a longer one gets a header of its own before it."""

_PAX_WORDS = 16
"""Words around a name in that header."""

_AUDIO_OVERHEAD = 512
"""FLAC's own headers: those of the file, and of its frames where nothing can be compressed."""

_WAVE_BYTES_PER_S = 2 * SAMPLE_RATE_HZ
"""Bytes per second of 16 bit, which FLAC does not exceed but for its headers: the estimate of a part of a file."""

_JSON_DIGITS = 32
"""The record is measured with a length of 0: room for the digits of the true one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """The file system's record of an audio file."""

    size_bytes: int
    changed_ns: int
    """Time of its last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """The utterances that will form one shard."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]
    estimated_bytes: int
    content_digest: str
    """Digest of records, settings and sizes of the audio files: equal for copies of a corpus."""

    source_digest: str
    """Digest of the same and the times of the files' last change: notices audio replaced by other audio of one size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One share of a build, as each job of an array takes one."""

    number: int
    """From 1 to ``of``."""

    of: int

    def own(self, shards: Sequence[PlannedShard]) -> tuple[PlannedShard, ...]:
        """Every ``of``-th shard: shards are much of a size, but for the last of each split."""
        return tuple(shards[self.number - 1 :: self.of])

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """The part that "3/8" names.

    Raises:
        ConfigError: not two whole numbers I/N with I from 1 to N.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part = Part(number=int(match[1]), of=int(match[2])) if match else None
    if part is None or not 1 <= part.number <= part.of:
        raise ConfigError(f"--part {text}: must be I/N with I from 1 to N, as in 1/8 to 8/8. Number the jobs from 1.")
    return part


def look_at(path: Path) -> SourceFile | None:
    """Size and time of a file; None when it cannot be found."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return SourceFile(size_bytes=status.st_size, changed_ns=status.st_mtime_ns)


def plan_shards(
    splits: Mapping[str, Sequence[Utterance]],
    *,
    targets: Sequence[str],
    root: Path | None,
    shard_bytes: int,
    settings: str,
    look: Callable[[Path], SourceFile | None] = look_at,
) -> tuple[PlannedShard, ...]:
    """The shards of a corpus, in the order of splits and utterances; a pure function of these and of the files' sizes.

    A shard is closed before the utterance that would bring its estimate above ``shard_bytes``. The estimate is what the
    members take if audio in wave files cannot be compressed at all; 16 kHz wave and FLAC files never come out above it.

    Args:
        root: folder of the corpus, absolute; sources are named relative to it.
        settings: in words, all else that decides the bytes of a shard; enters the digests.
    """
    planned: list[PlannedShard] = []
    for split, utterances in splits.items():
        drafts = _drafts(utterances, targets=targets, root=root, shard_bytes=shard_bytes, settings=settings, look=look)
        planned += [
            PlannedShard(
                name=shard_name(split, number),
                split=split,
                utterances=tuple(draft.utterances),
                estimated_bytes=draft.estimated_bytes,
                content_digest=draft.content.hexdigest(),
                source_digest=draft.sources.hexdigest(),
            )
            for number, draft in enumerate(drafts)
        ]
    return tuple(planned)


def estimate_bytes(utterance: Utterance, record: bytes, file: SourceFile | None) -> int:
    """Size of an utterance in a tar, headers and all, decided by the size of its file; 0 if that is missing.

    Args:
        record: its JSON member, but for the length of the audio.
    """
    if file is None:
        return 0
    growth = GROWTH.get(utterance.audio.suffix.lower(), 1.0)
    name_bytes = len(escape_key(utterance.key)) + 1 + len(AUDIO_MEMBER)
    headers = 2 * _BLOCK
    if name_bytes > _LONGEST_NAME:
        headers += 2 * (_BLOCK + _blocks(name_bytes + _PAX_WORDS))
    size = file.size_bytes
    if utterance.segment_s is not None:
        size = min(size, int(_WAVE_BYTES_PER_S * (utterance.segment_s[1] - utterance.segment_s[0])))
        growth = 1.0
    audio = int(size * growth) + size // 256 + _AUDIO_OVERHEAD
    return headers + _blocks(audio) + _blocks(len(record) + _JSON_DIGITS)


class _Draft:
    """A shard that is being filled."""

    def __init__(self, settings: str) -> None:
        self.utterances: list[Utterance] = []
        self.estimated_bytes = 0
        self.content, self.sources = hashlib.sha256(settings.encode()), hashlib.sha256(settings.encode())

    def add(self, utterance: Utterance, record: bytes, file: SourceFile | None, estimate: int) -> None:
        """Take one utterance more."""
        self.utterances.append(utterance)
        self.estimated_bytes += estimate
        size, changed = (file.size_bytes, file.changed_ns) if file else ("missing", "")
        self.content.update(record + f"|{size}\n".encode())
        self.sources.update(record + f"|{size}|{changed}\n".encode())


def _drafts(
    utterances: Sequence[Utterance],
    *,
    targets: Sequence[str],
    root: Path | None,
    shard_bytes: int,
    settings: str,
    look: Callable[[Path], SourceFile | None],
) -> Iterator[_Draft]:
    draft = _Draft(settings)
    for utterance in utterances:
        record = utterance_to_json(utterance, targets=targets, num_samples=0, source=source_of(utterance, root))
        file = look(utterance.audio)
        estimate = estimate_bytes(utterance, record, file)
        if draft.utterances and draft.estimated_bytes + estimate > shard_bytes:
            yield draft
            draft = _Draft(settings)
        draft.add(utterance, record, file, estimate)
    if draft.utterances:
        yield draft


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
