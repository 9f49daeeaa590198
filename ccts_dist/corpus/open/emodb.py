"""EmoDB, the Berlin database of emotional speech, as its archive unpacks: ``wav/03a01Fa.wav``.

Layout: Burkhardt and others (2005), http://emodb.bilderbar.info/docu/: two digits for the speaker, three characters for
the sentence, a letter for the emotion (its German name's), and a letter for the version where there are several.
"""

import re
from functools import partial
from pathlib import Path

from ccts_dist.corpus.cells import RowError
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.open.recordings import NamedCorpus, Recording, read_recordings
from ccts_dist.corpus.speaker_splits import split_by_speaker

EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
"""By the letter: Wut (or Ärger), Langeweile, Ekel, Angst, Freude, Trauer, neutral."""

GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "Male"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "Female"),
}

SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}

_NAME = re.compile(r"(\d\d)([a-z]\d\d)([A-Z])[a-z]?", re.ASCII)


def read_emodb(root: str | Path, *, release: str = "unknown", num_folds: int | None = None) -> Corpus:
    """Every recording of EmoDB. Splits are by speaker, balanced by gender (``split_by_speaker``).

    Args:
        root: folder that holds ``wav``, or the wave files.
        release: of the corpus, for the manifest.
        num_folds: of speakers, in place of Train, Development and Test.

    Raises:
        CorpusError: no file of EmoDB there.
        ConfigError: a number of folds that the speakers do not give.
    """
    corpus = NamedCorpus(name="emodb", release=release, example="wav/03a01Fa.wav")
    return read_recordings(root, corpus, _describe, assign=partial(split_by_speaker, num_folds=num_folds))


def _describe(path: Path) -> Recording | None:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    speaker, sentence, emotion = match.groups()
    for name, code, known in (
        ("speaker", speaker, GENDERS),
        ("sentence", sentence, SENTENCES),
        ("emotion", emotion, EMOTIONS),
    ):
        if code not in known:
            raise RowError(f"{name} {code} is none of {', '.join(known)}", path.as_posix())
    return Recording(
        speaker=speaker,
        category=EMOTIONS[emotion],
        transcript=SENTENCES[sentence],
        gender=GENDERS[speaker],
        group=GENDERS[speaker],
    )
