"""TESS, the Toronto emotional speech set: a folder per speaker and emotion, ``OAF_angry/OAF_back_angry.wav``.

Layout: Pichora-Fuller and Dupuis (2020), https://doi.org/10.5683/SP2/E8H2MF: an older (OAF) and a younger (YAF) actress
say "Say the word ..." with 200 words and seven emotions. One name is known to lack a letter: ``OA_bite_neutral.wav``.
"""

import re
from pathlib import Path

from ccts_dist.corpus.cells import RowError
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.open.recordings import NamedCorpus, Recording, read_recordings

EMOTIONS = {
    "angry": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "pleasant surprise",
    "sad": "sad",
}
"""By what a name ends in."""

_NAME = re.compile(r"(OAF?|YAF)_([A-Za-z]+)_([A-Za-z]+)")


def read_tess(root: str | Path, *, release: str = "unknown") -> Corpus:
    """Every recording of TESS. A split per actress, OAF and YAF: two speakers do not give three disjoint splits.

    Args:
        root: folder that holds the folders of speakers and emotions, or the wave files.
        release: of the corpus, for the manifest.

    Raises:
        CorpusError: no file of TESS there.
    """
    corpus = NamedCorpus(name="tess", release=release, example="OAF_angry/OAF_back_angry.wav")
    return read_recordings(root, corpus, _describe, assign=lambda groups: {speaker: speaker for speaker in groups})


def _describe(path: Path) -> Recording | None:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    speaker, word, emotion = match.groups()
    if emotion.lower() not in EMOTIONS:
        raise RowError(f"emotion {emotion} is none of {', '.join(EMOTIONS)}", path.as_posix())
    return Recording(
        speaker="YAF" if speaker == "YAF" else "OAF",
        category=EMOTIONS[emotion.lower()],
        transcript=f"Say the word {word.lower()}",
        gender="Female",
    )
