"""RAVDESS as Zenodo's archives unpack: ``Actor_01`` to ``Actor_24`` with names of seven numbers.

Layout: Livingstone and Russo (2018), https://doi.org/10.5281/zenodo.1188976: modality (03 is audio alone), channel (01
speech, 02 song), emotion, intensity (01 normal, 02 strong), statement, repetition, actor (odd numbers are men).
"""

import re
from functools import partial
from pathlib import Path

from ccts_dist.corpus.cells import RowError
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.open.recordings import NamedCorpus, Recording, read_recordings
from ccts_dist.corpus.speaker_splits import split_by_speaker

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""Emotions of the codes 01 to 08."""

STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")
CHANNELS = ("speech", "song")
NUM_ACTORS = 24

_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)", re.ASCII)
_AUDIO_ALONE = 3


def read_ravdess(
    root: str | Path, *, release: str = "unknown", song: bool = False, num_folds: int | None = None
) -> Corpus:
    """The audio recordings of RAVDESS; the target ``intensity`` is 1 (normal) or 2 (strong) on a scale of 1 to 2.

    Names of other modalities, and songs unless they are asked for, are listed as ``unnamed``. Splits are by actor,
    balanced by gender (``split_by_speaker``).

    Args:
        root: folder that holds ``Actor_01`` and so on, perhaps below folders of the archives' names.
        release: of the corpus, for the manifest.
        song: take the songs too.
        num_folds: of actors, in place of Train, Development and Test.

    Raises:
        CorpusError: no file of RAVDESS there.
        ConfigError: a number of folds that the actors do not give.
    """
    corpus = NamedCorpus(
        name="ravdess",
        release=release,
        example="Actor_12/03-01-06-01-02-01-12.wav",
        scale=(1.0, 2.0),
        targets=("intensity",),
    )
    return read_recordings(
        root, corpus, partial(_describe, song=song), assign=partial(split_by_speaker, num_folds=num_folds)
    )


def _describe(path: Path, *, song: bool) -> Recording | None:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    modality, channel, emotion, intensity, statement, repetition, actor = map(int, match.groups())
    if modality != _AUDIO_ALONE or (channel == CHANNELS.index("song") + 1 and not song):
        return None
    ranges = {
        "channel": (channel, len(CHANNELS)),
        "emotion": (emotion, len(EMOTIONS)),
        "intensity": (intensity, 2),
        "statement": (statement, len(STATEMENTS)),
        "repetition": (repetition, 2),
        "actor": (actor, NUM_ACTORS),
    }
    for name, (number, highest) in ranges.items():
        if not 1 <= number <= highest:
            raise RowError(f"{name} {number:02d} is not from 01 to {highest:02d}", path.as_posix())
    gender = "Male" if actor % 2 else "Female"
    return Recording(
        speaker=f"{actor:02d}",
        category=EMOTIONS[emotion - 1],
        transcript=STATEMENTS[statement - 1],
        gender=gender,
        group=gender,
        labels={"intensity": float(intensity - 1)},
    )
