"""Pass a speech recognizer over a corpus and keep what it transcribes, beside the corpus.

Which utterances share a batch is a function of the corpus alone, not of what has been transcribed before, so that a
pass that was killed and goes on ends with the very file of a pass that was not.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from ccts_dist.asr.recognizer import Recognizer
from ccts_dist.audio.convert import Decoded, decode_part, to_float32
from ccts_dist.audio.decode import stated_seconds
from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.corpus.asr_transcripts import AsrTranscript, TranscriptFile, has_transcript
from ccts_dist.errors import ConfigError
from ccts_dist.progress import log
from ccts_dist.records import SAMPLE_RATE_HZ, Rejected, Utterance

_GROUP_UTTERANCES = 128
"""Decoded together, so that batches are of like length; few enough to lose little in memory and in a kill."""

_GROUP_BYTES = 64_000_000
"""Bytes of audio files: a group of long recordings holds fewer."""

_GROUP_SECONDS = 14_400.0
"""Seconds of audio, as headers state it (0.5 GB once decoded): so does a group of small files that unfold to hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcribed:
    """Result of one pass."""

    num_transcribed: int
    num_reused: int
    """Transcribed by an earlier pass."""

    rejected: tuple[Rejected, ...]
    """Whose audio cannot be transcribed, and why."""

    def in_words(self, out: Path) -> str:
        """For people, in one line."""
        return (
            f"{out}: {self.num_transcribed} utterances transcribed, {self.num_reused} kept from before, "
            f"{len(self.rejected)} with audio that cannot be transcribed"
        )


def wanted_utterances(utterances: Sequence[Utterance | Rejected], *, everything: bool = False) -> list[Utterance]:
    """Those to be transcribed, in their order: without a transcript of the corpus's own, the first of each key.

    Args:
        everything: those with a transcript too.
    """
    wanted: dict[str, Utterance] = {}
    for one in utterances:
        if isinstance(one, Utterance) and (everything or not has_transcript(one)):
            wanted.setdefault(one.key, one)
    return list(wanted.values())


def transcripts_path(corpus: Path) -> Path:
    """Default file of a corpus's transcripts: beside its folder or manifest.

    Raises:
        ConfigError: there is no place next to it.
    """
    place = Path(os.path.abspath(corpus))
    if not place.name:
        raise ConfigError(f"{corpus}: has no place next to it for what is transcribed. Name a file with --out.")
    return place.with_name(f"{place.name if place.is_dir() else place.stem}-asr.jsonl")


def check_place(out: Path, corpus: Path, utterances: Sequence[Utterance | Rejected]) -> None:
    """Refuse to write where the corpus is.

    Args:
        corpus: its folder or manifest.
        utterances: of the corpus.

    Raises:
        ConfigError: ``out`` lies in the corpus's folder, or is its manifest or one of its audio files.
    """
    place, home = out.resolve(), corpus.resolve()
    if place.is_relative_to(home):
        what = "is the corpus" if place == home else "lies inside the corpus"
        raise ConfigError(f"{out}: {what} {corpus}, which is never written to. Name a file next to it with --out.")
    path = os.path.abspath(out)
    for one in utterances:
        if isinstance(one, Utterance) and os.path.abspath(one.audio) == path:
            raise ConfigError(f"{out}: is the audio of utterance {one.key!r}. Name another file with --out.")


def transcribe(
    wanted: Sequence[Utterance],
    recognizer: Recognizer,
    out: Path,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Transcribed:
    """Transcribe utterances and append what was transcribed to a file, batch by batch; what it holds already is not
    transcribed again.

    Audio is transcribed as shards carry it: 16 kHz, mono, 16 bit. What cannot be decoded or is too short is named on
    stderr and omitted.

    Args:
        wanted: as ``wanted_utterances`` gives them.
        out: beside the corpus; made, or gone on with.
        num_threads: that decode; None for as many as this process may use cores.
        progress: called with the number of utterances dealt with since the last call.

    Raises:
        ConfigError: the file is another model's, or cannot be written, or a batch does not fit the device.
        CorpusError: the file is not one of what a recognizer transcribed.
    """
    rejected: list[Rejected] = []
    num_transcribed = 0
    with TranscriptFile(out, digest=recognizer.digest, language=recognizer.language) as file:
        num_reused = sum(one.key in file.transcripts for one in wanted)
        groups = _open_groups(wanted, file, progress)
        for group in _decoded_ahead(groups, num_threads or len(os.sched_getaffinity(0))):
            sound = []
            for utterance, decoded in group:
                if isinstance(decoded, str):
                    _reject(utterance, decoded, rejected)
                    progress(1)
                else:
                    sound.append((utterance, decoded))
            for batch in _batches(sound, recognizer.batch_seconds):
                num_transcribed += _transcribe(batch, recognizer, file, rejected)
                progress(len(batch))
    return Transcribed(num_transcribed=num_transcribed, num_reused=num_reused, rejected=tuple(rejected))


def _transcribe(
    batch: Sequence[tuple[Utterance, Decoded]], recognizer: Recognizer, file: TranscriptFile, rejected: list[Rejected]
) -> int:
    """Transcribe a whole batch if any of it is missing in the file, and add what is missing; how many those were."""
    if all(utterance.key in file.transcripts for utterance, _ in batch):
        return 0
    new = []
    words_of_all = recognizer.transcribe([to_float32(decoded.pcm16) for _, decoded in batch])
    for (utterance, decoded), words in zip(batch, words_of_all, strict=True):
        if isinstance(words, str):
            _reject(utterance, words, rejected)
        elif utterance.key not in file.transcripts:
            new.append(
                AsrTranscript(
                    key=utterance.key,
                    transcript=words.transcript,
                    confidence=round(words.confidence, 6),
                    model=recognizer.name,
                    digest=recognizer.digest,
                    language=recognizer.language,
                    duration_s=round(len(decoded.pcm16) / SAMPLE_RATE_HZ, 6),
                )
            )
    file.add(new)
    return len(new)


def _reject(utterance: Utterance, reason: str, rejected: list[Rejected]) -> None:
    rejected.append(Rejected(key=utterance.key, reason=reason, source=str(utterance.audio)))
    log(f"{utterance.key}: not transcribed: {reason} ({utterance.audio})")


def _open_groups(
    wanted: Sequence[Utterance], file: TranscriptFile, progress: Callable[[int], object]
) -> Iterator[list[Utterance]]:
    """The groups of which something is still to be transcribed."""
    for group in _groups(wanted):
        if all(one.key in file.transcripts for one in group):
            progress(len(group))
        else:
            yield group


def _groups(wanted: Sequence[Utterance]) -> Iterator[list[Utterance]]:
    """Stretches that are decoded together."""
    group: list[Utterance] = []
    size, seconds = 0, 0.0
    for utterance in wanted:
        bytes_more, seconds_more = _size(utterance)
        full = len(group) >= _GROUP_UTTERANCES or size + bytes_more > _GROUP_BYTES
        if group and (full or seconds + seconds_more > _GROUP_SECONDS):
            yield group
            group, size, seconds = [], 0, 0.0
        group.append(utterance)
        size, seconds = size + bytes_more, seconds + seconds_more
    if group:
        yield group


def _size(utterance: Utterance) -> tuple[int, float]:
    """Bytes and seconds of its audio; of a part of a recording the seconds alone."""
    if utterance.segment_s is not None:
        return 0, utterance.segment_s[1] - utterance.segment_s[0]
    try:
        size = os.stat(utterance.audio).st_size
    except OSError:
        size = 0  # decoding will give the reason
    return size, stated_seconds(utterance.audio)


def _decoded_ahead(
    groups: Iterable[Sequence[Utterance]], num_threads: int
) -> Iterator[list[tuple[Utterance, Decoded | str]]]:
    """Each group with its audio; the next one is decoded while this one is transcribed."""
    decode = partial(decode_part, max_duration_s=MAX_DURATION_S)
    waiting: deque[tuple[Sequence[Utterance], list[Future[Decoded | str]]]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for group in chain(groups, [()]):
                waiting.append((group, [threads.submit(decode, one.audio, one.segment_s) for one in group]))
                if len(waiting) > 1:
                    ready, futures = waiting.popleft()
                    yield [(one, future.result()) for one, future in zip(ready, futures, strict=True)]
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()


def _batches(
    sound: Sequence[tuple[Utterance, Decoded]], batch_seconds: int | float
) -> Iterator[list[tuple[Utterance, Decoded]]]:
    """The utterances of a group, shortest first, as many together as the limit allows."""
    batch: list[tuple[Utterance, Decoded]] = []
    for one in sorted(sound, key=lambda pair: len(pair[1].pcm16)):
        if batch and (len(batch) + 1) * len(one[1].pcm16) > batch_seconds * SAMPLE_RATE_HZ:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
