"""ESD, the emotional speech dataset, as its archive unpacks: ``0011/Angry/0011_000351.wav`` and ``0011/0011.txt``.

Layout: Zhou and others (2022), https://github.com/HLTSingapore/Emotional-Speech-Data: a folder per speaker and emotion,
in some releases with ``train``, ``evaluation`` and ``test`` below; a text file per speaker with a line per recording:
key, sentence, emotion, separated by tabs. Its ReadMe gives language and gender of the speakers 0001 to 0020.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ccts_dist.corpus.cells import RowError
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.open.recordings import NamedCorpus, Recording, read_recordings
from ccts_dist.corpus.speaker_splits import split_by_speaker
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited

EMOTIONS = ("Angry", "Happy", "Neutral", "Sad", "Surprise")
LANGUAGES = ("en", "zh")
WOMEN = frozenset({1, 2, 3, 7, 9, 15, 16, 17, 18, 19})
NUM_SPEAKERS, NUM_CHINESE = 20, 10

_KEY = re.compile(r"(\d{4})_\d{6}", re.ASCII)
_ENCODINGS = ("utf-8-sig", "gb18030")


def read_esd(
    root: str | Path,
    *,
    release: str = "unknown",
    languages: tuple[str, ...] = LANGUAGES,
    num_folds: int | None = None,
) -> Corpus:
    """Every recording of ESD. Splits are by speaker, balanced by language and gender (``split_by_speaker``).

    Sentences are parallel: every speaker states the same 350 of a language with each emotion. The release's own train,
    evaluation and test share their speakers, and are not used.

    Args:
        root: folder that holds ``0001`` to ``0020``, perhaps below one of the archive's name.
        release: of the corpus, for the manifest.
        languages: recordings of others are listed as ``unnamed``.
        num_folds: of speakers, in place of Train, Development and Test.

    Raises:
        CorpusError: no file of ESD there, or a text file that cannot be read.
        ConfigError: a number of folds that the speakers do not give.
    """
    root = Path(root)
    corpus = NamedCorpus(name="esd", release=release, example="0011/Angry/0011_000351.wav")
    return read_recordings(
        root,
        corpus,
        partial(_describe, root=root, languages=languages, sentences={}),
        assign=partial(split_by_speaker, num_folds=num_folds),
    )


def _describe(
    path: Path, *, root: Path, languages: tuple[str, ...], sentences: dict[Path, Mapping[str, str]]
) -> Recording | None:
    match = _KEY.fullmatch(path.stem)
    if match is None:
        return None
    speaker, number = match[1], int(match[1])
    if not 1 <= number <= NUM_SPEAKERS:
        raise RowError(f"speaker {speaker} is not from 0001 to {NUM_SPEAKERS:04d}", path.as_posix())
    language = "zh" if number <= NUM_CHINESE else "en"
    if language not in languages:
        return None
    folders = [parent for parent in path.parents if parent.name in EMOTIONS]
    if not folders:
        raise RowError(f"lies in no folder named {', '.join(EMOTIONS)}", path.as_posix())
    text = root / folders[0].parent / f"{speaker}.txt"
    if text not in sentences:
        sentences[text] = _read_sentences(text)
    gender = "Female" if number in WOMEN else "Male"
    return Recording(
        speaker=speaker,
        category=folders[0].name,
        transcript=sentences[text].get(path.stem, ""),
        gender=gender,
        group=f"{language} {gender}",
    )


def _read_sentences(path: Path) -> dict[str, str]:
    """Sentence by key; nothing without the file. Some files are UTF-8, others GB 18030 or UTF-16."""
    try:
        data = read_limited(path, "label file")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}). Mend its rights or its disk.") from error
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else _ENCODINGS
    for encoding in encodings:
        try:
            lines = data.decode(encoding).splitlines()
        except UnicodeDecodeError:
            continue
        cells = (line.split("\t") for line in lines)
        return {row[0].strip(): " ".join(row[1].split()) for row in cells if len(row) > 1}
    raise CorpusError(f"{path}: is not UTF-8, GB 18030 or UTF-16. Restore the file from the release.")
