"""MELD as its archive unpacks: a table and a folder of clips per split.

Layout: Poria and others (2019), https://github.com/declare-lab/MELD: ``train_sent_emo.csv``, ``dev_sent_emo.csv``,
``test_sent_emo.csv`` with Utterance, Speaker, Emotion, Sentiment, Dialogue_ID and Utterance_ID, and clips such as
``train_splits/dia0_utt3.mp4``, ``dev_splits_complete/``, ``output_repeated_splits_test/``. The clips are video: their
audio has to be extracted beside them (``README.md`` of the shards has the command).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.corpus.cells import RowError, printable, table_rows, text_fault
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, find_entry, listing
from ccts_dist.errors import CorpusError
from ccts_dist.records import Rejected, Utterance

SENTIMENTS = {"negative": 0.0, "neutral": 0.5, "positive": 1.0}
"""Label of the target ``sentiment``, whose scale is -1 to 1."""

SCALE = (-1.0, 1.0)

SPLITS = {
    "train": ("train_splits", "train"),
    "dev": ("dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test"),
}
"""Folders that may hold a split's clips; the archive of a split is named after it."""

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    name: str
    table: Path
    source: str
    clips: AudioFolder


def read_meld(root: str | Path, *, release: str = "unknown") -> Corpus:
    """Every row of MELD's tables as an ``Utterance`` or a ``Rejected``, in the corpus's own splits train, dev and test.

    Keys are ``train_dia0_utt3``: dialogues are numbered anew in each split. The splits are of dialogues; the main
    characters speak in all of them. Transcripts hold characters of Windows-1252, in some copies of the tables taken for
    control characters; they are read as what they were. Audio that no row names is listed.

    Args:
        root: folder that holds the tables and, there or in a folder per split, the clips.
        release: of the corpus, for the manifest.

    Raises:
        CorpusError: a table, or the audio of a split, is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds MELD's train_sent_emo.csv.")
    splits = [_find_split(root, name) for name in SPLITS]
    utterances = tuple(one for split in splits for one in _read_split(split))
    if not utterances:
        raise CorpusError(f"{root}: no row below the headers of the tables. Give a complete release.")
    unnamed = tuple(path for split in splits for path in split.clips.unnamed)
    return Corpus(
        name="meld", release=release, scale=SCALE, targets=("sentiment",), utterances=utterances, unnamed=unnamed
    )


def _find_split(root: Path, name: str) -> _Split:
    table = find_entry([root, root / name, root / "data" / "MELD"], [f"{name}_sent_emo.csv"])
    if table is None:
        raise CorpusError(f"{root}: looked for {name}_sent_emo.csv and found {listing(root)}.")
    folder = find_entry([root, root / name], SPLITS[name][:1]) or find_entry([root], SPLITS[name][1:])
    if folder is None:
        raise CorpusError(f"{root}: looked for the folder {SPLITS[name][0]} with the clips and found {listing(root)}.")
    clips = AudioFolder(folder)
    if not clips.stems:
        words = "holds video alone" if any(folder.glob("dia*_utt*.mp4")) else "holds no audio"
        raise CorpusError(
            f"{folder}: {words}. Extract the audio next to it: for f in *.mp4; do ffmpeg -i $f -vn -ac 1 -ar 16000 "
            "${f%.mp4}.wav; done"
        )
    return _Split(name=name, table=table, source=table.relative_to(root).as_posix(), clips=clips)


def _read_split(split: _Split) -> Iterator[Utterance | Rejected]:
    seen: dict[str, int] = {}
    for line, cells in table_rows(split.table, _COLUMNS):
        clip = f"dia{cells['Dialogue_ID'].strip()}_utt{cells['Utterance_ID'].strip()}"
        key = f"{split.name}_{clip}"
        try:
            audio = None if "/" in clip else split.clips.find_any_ending(f"{clip}.wav")
            if key in seen:
                raise RowError(f"line {line}: duplicate of line {seen[key]}, which comes first", split.source)
            seen[key] = line
            yield _utterance(split, cells, key, clip, audio, line)
        except RowError as error:
            yield Rejected(key=printable(key), reason=error.reason, source=error.source)


def _utterance(split: _Split, cells: dict[str, str], key: str, clip: str, audio: Path | None, line: int) -> Utterance:
    texts = {column: " ".join(_mended(cells[column]).split()) for column in _COLUMNS}
    for column, text in texts.items():
        fault = text_fault(text)
        if fault:
            raise RowError(f"line {line}: {column} {fault}", split.source)
    sentiment = texts["Sentiment"]
    if sentiment not in SENTIMENTS:
        names = ", ".join(SENTIMENTS)
        raise RowError(f"line {line}: Sentiment {printable(sentiment)!r} is none of {names}", split.source)
    if audio is None:
        raise RowError("missing audio", f"{split.clips.folder.name}/{clip}.wav")
    return Utterance(
        key=key,
        audio=audio,
        split=split.name,
        labels={"sentiment": SENTIMENTS[sentiment]},
        scale=SCALE,
        transcript=texts["Utterance"],
        speaker=texts["Speaker"] or None,
        category=texts["Emotion"] or None,
    )


def _mended(text: str) -> str:
    """The text with the bytes of Windows-1252 decoded that stand for themselves or as U+0092, an apostrophe."""
    return "".join(map(_mended_character, text))


def _mended_character(one: str) -> str:
    if "\x80" <= one <= "\x9f":  # the byte read as Latin-1; those of no character are dropped
        return bytes([ord(one)]).decode("cp1252", errors="ignore")
    if "\udc80" <= one <= "\udcff":  # the byte itself, which is not UTF-8
        return one.encode(errors="surrogateescape").decode("cp1252", errors="surrogateescape")
    return one
