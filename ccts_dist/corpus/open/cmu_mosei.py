"""CMU-MOSEI's segments: a published table of intervals, and the full recordings that they lie in.

Layout: the raw release (http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/) holds ``Audio/Full/WAV_16000/ID.wav``
and ``Transcript/Segmented/Combined/ID.txt`` with lines ``ID___clip___start___end___sentence``. Its labels are an HDF5
file (``CMU_MOSEI_Labels.csd``); S3PRL publishes them as ``CMU_MOSEI_Labels.csv`` with file, index, start and end in
seconds, label6 (strongest of happy, sad, anger, surprise, disgust, fear: 0 to 5), label7 (sentiment -3 to 3) and split
(0 train, 1 valid, 2 test of the SDK's folds, 3 neither). A column ``sentiment`` with the raters' mean is taken before
label7.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.cells import RowError, parse_label, parse_number, printable, table_rows, text_fault
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, find_entry, listing
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited
from ccts_dist.records import Rejected, Utterance

SCALE = (-3.0, 3.0)
"""Scale of the target ``sentiment``."""

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
SPLITS = ("train", "valid", "test")
TABLE = "CMU_MOSEI_Labels.csv"

_COLUMNS = ("file", "index", "start", "end", "label6", "label7", "split")
_SEPARATOR = "___"


@dataclass(slots=True)
class _Reader:
    root: Path
    table: Path
    audio: AudioFolder
    transcripts: Path | None
    sentences: dict[str, Mapping[tuple[str, str], str]] = field(default_factory=dict)
    """Sentences of the recordings that were asked for, by start and end to a hundredth of a second."""


def read_cmu_mosei(root: str | Path, *, release: str = "unknown") -> Corpus:
    """Every row of the table as an ``Utterance`` that is a part of a recording, or as a ``Rejected``.

    Keys are ``ID_index``. Splits are the SDK's folds, which share no recording; rows of no fold are rejected. The
    speaker is the recording: the release names none. A start below 0 is taken for 0.

    Args:
        root: folder that holds ``CMU_MOSEI_Labels.csv``, ``Audio`` and, if there are any, ``Transcript``, perhaps the
            latter two in ``Raw``.
        release: of the corpus, for the manifest.

    Raises:
        CorpusError: the table or the recordings are not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds {TABLE} and Audio.")
    tops = [root, root / "Raw"]
    table = find_entry([root, root / "Labels", root / "Raw"], [TABLE])
    if table is None:
        raise CorpusError(f"{root}: looked for {TABLE} and found {listing(root)}. S3PRL publishes it.")
    audio = find_entry([top / "Audio" / "Full" for top in tops], ["WAV_16000"])
    if audio is None:
        raise CorpusError(f"{root}: looked for the folder Audio/Full/WAV_16000 and found {listing(root)}.")
    transcripts = find_entry([top / "Transcript" / "Segmented" for top in tops], ["Combined"])
    reader = _Reader(root=root, table=table, audio=AudioFolder(audio), transcripts=transcripts)
    utterances = tuple(_read(reader))
    if not utterances:
        raise CorpusError(f"{table}: no row below the header. Restore the file.")
    return Corpus(
        name="cmu-mosei",
        release=release,
        scale=SCALE,
        targets=("sentiment",),
        utterances=utterances,
        unnamed=tuple(reader.audio.unnamed),
    )


def _read(reader: _Reader) -> Iterator[Utterance | Rejected]:
    source, seen = reader.table.relative_to(reader.root).as_posix(), set[str]()
    for line, cells in table_rows(reader.table, _COLUMNS):
        name = cells["file"].strip()
        key = f"{name}_{cells['index'].strip()}"
        try:
            audio = None if "/" in name else reader.audio.find_any_ending(f"{name}.wav")
            if key in seen:
                raise RowError(f"line {line}: duplicate of {printable(key)}, which comes first", source)
            seen.add(key)
            yield _utterance(reader, cells, key, audio, line, source)
        except RowError as error:
            yield Rejected(key=printable(key), reason=error.reason, source=error.source)


def _utterance(
    reader: _Reader, cells: Mapping[str, str], key: str, audio: Path | None, line: int, source: str
) -> Utterance:
    numbers = {}
    for column in ("start", "end", "label6", "split"):
        try:
            numbers[column] = parse_number(cells[column])
        except ValueError as error:
            raise RowError(f"line {line}: {column} {error}", source) from error
    column = "sentiment" if "sentiment" in cells else "label7"
    try:
        sentiment = parse_label(cells[column], SCALE)
    except ValueError as error:
        raise RowError(f"line {line}: {column} {error}", source) from error
    if numbers["split"] not in range(len(SPLITS)):
        raise RowError(f"line {line}: split {cells['split'].strip()} is of no fold", source)
    if numbers["label6"] not in range(len(EMOTIONS)):
        raise RowError(f"line {line}: label6 {cells['label6'].strip()} is not from 0 to {len(EMOTIONS) - 1}", source)
    start, end = max(0.0, numbers["start"]), numbers["end"]
    if not start < end < float("inf"):
        raise RowError(f"line {line}: start {start:g} and end {end:g} span nothing", source)
    fault = text_fault(key)
    if fault:
        raise RowError(f"line {line}: file {fault}", source)
    name = cells["file"].strip()
    if audio is None:
        raise RowError("missing audio", f"Audio/Full/WAV_16000/{name}.wav")
    return Utterance(
        key=key,
        audio=audio,
        segment_s=(start, end),
        split=SPLITS[int(numbers["split"])],
        labels={"sentiment": sentiment},
        scale=SCALE,
        transcript=_sentence(reader, name, numbers["start"], end),
        speaker=name,
        category=EMOTIONS[int(numbers["label6"])],
    )


def _sentence(reader: _Reader, name: str, start: float, end: float) -> str:
    """The sentence of an interval; "" where the transcript has none of its beginning and end."""
    if reader.transcripts is None:
        return ""
    if name not in reader.sentences:
        reader.sentences[name] = dict(_sentences(reader.transcripts / f"{name}.txt"))
    return reader.sentences[name].get(_place(start, end), "")


def _sentences(path: Path) -> Iterator[tuple[tuple[str, str], str]]:
    try:
        lines = read_limited(path, "label file").decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}). Mend its rights or its disk.") from error
    for line in lines:
        cells = line.split(_SEPARATOR, 4)
        if len(cells) == 5:
            try:
                place = _place(parse_number(cells[2]), parse_number(cells[3]))
            except ValueError:
                continue  # no interval, so no segment's
            yield place, " ".join(cells[4].split())


def _place(start: float, end: float) -> tuple[str, str]:
    return f"{start:.2f}", f"{end:.2f}"
