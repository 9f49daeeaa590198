"""The label files of MSP-Podcast, in both forms, as rows.

Since release 1.6 a CSV holds everything. The oldest form is three text files: ``labels.txt`` (``x.wav; N; A:2.2; V:4.0;
D:2.6;``, and perhaps a line per rater below), ``Partitions.txt`` (``Train; x.wav``) and ``Speaker_ids.txt``
(``x.wav; 12`` and ``Speaker_12; Male``). Later releases carry them too; there they fill what the CSV lacks.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.cells import csv_lines, no_record, printable, text_lines
from ccts_dist.corpus.folders import find_entry, is_audio, listing
from ccts_dist.errors import CorpusError

CONSENSUS_NAMES = ("labels_consensus.csv", "labels_concensus.csv")  # the second in releases before 1.11
TEXT_NAMES = ("labels.txt",)
DETAILED_NAMES = ("labels_detailed.csv", "labels_detailed.txt", *TEXT_NAMES)
"""Files with single ratings; the first that is there is read."""

LABEL_COLUMNS = {"activation": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}
"""Column of the CSV per target."""

LABEL_LETTERS = {"activation": "A", "valence": "V", "dominance": "D"}
"""First letters of a rating in the text form."""

_NEEDED_COLUMNS = ("FileName", *LABEL_COLUMNS.values())
_OTHER_COLUMNS = ("EmoClass", "EmoClass_Major", "SpkrID", "Gender", "Split_Set")
_WITHHELD = "test3"
_RATING = re.compile(r"([AVD])\s*:(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One row of a label file, as it is spelt there."""

    line: int
    source: str
    """The label file, relative to the corpus."""

    file_name: str
    split: str
    ratings: Mapping[str, str]
    """Cell per target; "" where there is none."""

    names: Mapping[str, str]
    """The label file's name of each target, for errors."""

    category: str = ""
    speaker: str = ""
    gender: str = ""
    fault: str = ""
    """The fault of the row as a whole; "" if there is none."""

    @property
    def key(self) -> str:
        """The file name without its ending."""
        return key_of(self.file_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """``Partitions.txt``: the split of each file."""

    source: str = ""
    """"" where there is no such file."""

    splits: Mapping[str, str] = field(default_factory=dict)
    """By key, as the rest here."""

    file_names: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    """Files that are in two splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speakers:
    """``Speaker_ids.txt``: who speaks in each file, and the gender of each."""

    by_key: Mapping[str, str] = field(default_factory=dict)
    genders: Mapping[str, str] = field(default_factory=dict)


def key_of(file_name: str) -> str:
    """The key of an utterance: its file name without the ending."""
    return os.path.splitext(file_name)[0]


def is_withheld(split: str) -> bool:
    """True if the makers keep the labels of this split to themselves: Test3, however it is spelt.

    >>> is_withheld("Test 3")
    True
    """
    return re.sub(r"[\s_-]", "", split).casefold() == _WITHHELD


def find_labels(root: Path) -> Path:
    """The label file: a consensus CSV, else the text form; in ``Labels`` or next to it.

    Raises:
        CorpusError: there is none.
    """
    folders = label_folders(root)
    found = find_entry(folders, CONSENSUS_NAMES) or find_entry(folders, TEXT_NAMES)
    if found is None:
        names = " or ".join(f"Labels/{name}" for name in (*CONSENSUS_NAMES, *TEXT_NAMES))
        raise CorpusError(f"{root}: looked for {names} and found {listing(folders[0])} in Labels.")
    return found


def label_folders(root: Path) -> list[Path]:
    """Folders in which label files may lie."""
    return [find_entry([root], ["Labels", "Label"]) or root / "Labels", root]


def read_label_rows(path: Path, root: Path) -> Iterator[LabelRow]:
    """Every row of the label file, and then the files that ``Partitions.txt`` alone names.

    Of those, a release in CSV gives only the ones whose labels are withheld: its own list is the CSV. The text form
    gives all, without ratings.

    Raises:
        CorpusError: the file lacks its header, or a column, or the text form its ``Partitions.txt``.
    """
    is_text = path.suffix.lower() == ".txt"
    partitions, speakers = _read_partitions(root), _read_speakers(root)
    if is_text and not partitions.source:
        raise CorpusError(f"{root}: looked for Partitions.txt beside {path.name} and found {listing(path.parent)}.")
    source = path.relative_to(root).as_posix()
    read = _text_rows if is_text else _csv_rows
    named: set[str] = set()
    for row in read(path, source, partitions, speakers):
        named.add(row.key)
        yield row
    for key, split in partitions.splits.items():
        if key in named or not (is_text or is_withheld(split)):
            continue
        fault = "" if is_withheld(split) else f"no label: {source} does not name it"
        yield LabelRow(
            line=partitions.lines[key],
            source=partitions.source,
            file_name=partitions.file_names[key],
            split=split,
            ratings={},
            names={},
            fault=partitions.faults.get(key, fault),
            **_speaker(key, speakers),
        )


def parse_ratings(parts: list[str]) -> dict[str, str]:
    """Cell per target of the parts of a line that are ratings, such as ``A:2.2``; the last one counts."""
    found = (_RATING.fullmatch(part.strip()) for part in parts)
    letters = {match[1]: match[2].strip() for match in found if match is not None}
    return {target: letters[letter] for target, letter in LABEL_LETTERS.items() if letter in letters}


def column_places(header: list[str]) -> dict[str, int]:
    """Index of each known column; upper and lower case, underscores and spaces do not matter."""
    plain = {re.sub(r"[^a-z0-9]", "", cell.casefold()): at for at, cell in reversed(list(enumerate(header)))}
    wanted = ((column, column.replace("_", "").casefold()) for column in (*_NEEDED_COLUMNS, *_OTHER_COLUMNS))
    return {column: plain[key] for column, key in wanted if key in plain}


def _csv_rows(path: Path, source: str, partitions: Partitions, speakers: Speakers) -> Iterator[LabelRow]:
    lines = csv_lines(path)
    number, _, header = next(lines, (0, "", []))
    if isinstance(header, csv.Error):
        raise CorpusError(f"{path}: {no_record(number, header)}. Restore the file from the release.")
    places = column_places(header)
    needed = _NEEDED_COLUMNS if partitions.source else (*_NEEDED_COLUMNS, "Split_Set")
    missing = [column for column in needed if column not in places]
    if missing:
        found = ", ".join(printable(cell.strip()) for cell in header) or "an empty file"
        raise CorpusError(f"{path}: looked for the columns {', '.join(missing)} and found {found}.")
    for line, _, cells in lines:
        if isinstance(cells, csv.Error):
            yield _no_row(line, source, no_record(line, cells))
            continue
        at = {column: cells[place].strip() if place < len(cells) else "" for column, place in places.items()}
        key, fault = key_of(at["FileName"]), ""
        if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
            fault = f"line {line}: {len(cells)} cells, and the header has {len(header)}"
        split = at.get("Split_Set")
        if split is None:
            split, absent = partitions.splits.get(key, ""), f"no split: {partitions.source} does not name it"
            fault = fault or (partitions.faults.get(key, "") if split else absent)
        known = _speaker(key, speakers)
        yield LabelRow(
            line=line,
            source=source,
            file_name=at["FileName"],
            split=split,
            ratings={target: at[column] for target, column in LABEL_COLUMNS.items()},
            names=LABEL_COLUMNS,
            category=at.get("EmoClass", ""),
            speaker=at.get("SpkrID", known["speaker"]),
            gender=at.get("Gender", known["gender"]),
            fault=fault,
        )


def _text_rows(path: Path, source: str, partitions: Partitions, speakers: Speakers) -> Iterator[LabelRow]:
    for line, text in text_lines(path):
        parts = [part.strip() for part in text.split(";")]
        if not text.strip() or is_rater_line(parts):
            continue
        if not is_audio(parts[0]) or len(parts) < 2:
            yield _no_row(line, source, f"line {line}: no label line: {printable(text[:60])!r}")
            continue
        key, ratings = key_of(parts[0]), parse_ratings(parts[1:])
        fault = partitions.faults.get(key, "")
        if key not in partitions.splits:
            fault = f"no split: {partitions.source} does not name it"
        for target, letter in LABEL_LETTERS.items():
            if target not in ratings:
                fault = fault or f"line {line}: no rating {letter}: in it"
        yield LabelRow(
            line=line,
            source=source,
            file_name=parts[0],
            split=partitions.splits.get(key, ""),
            ratings=ratings,
            names=LABEL_LETTERS,
            category="" if _RATING.fullmatch(parts[1]) else parts[1],
            fault=fault,
            **_speaker(key, speakers),
        )


def is_rater_line(parts: list[str]) -> bool:
    """True if these are the parts of a rater's line: ``WORKER1; Neutral; Neutral,Other; A:3; V:4; D:3;``."""
    if any(map(is_audio, parts)):  # of a file whose name has a semicolon, not the first part is one
        return False
    words = [part for part in parts[1:] if part and not _RATING.fullmatch(part)]
    return parts[0].casefold().startswith("worker") or (len(words) >= 2 and bool(parse_ratings(parts[1:])))


def _no_row(line: int, source: str, fault: str) -> LabelRow:
    return LabelRow(line=line, source=source, file_name="", split="", ratings={}, names={}, fault=fault)


def _pairs(root: Path, name: str) -> tuple[str, list[tuple[int, str, str]]]:
    """The file's name relative to the corpus, and number and both parts of each line of the form ``a; b``."""
    path = find_entry(label_folders(root)[::-1], [name])
    if path is None:
        return "", []
    pairs = []
    for line, text in text_lines(path):
        parts = [part.strip() for part in text.split(";")]
        if len(parts) >= 2 and parts[0] and parts[1] and not any(parts[2:]):
            pairs.append((line, parts[0], parts[1]))
    return path.relative_to(root).as_posix(), pairs


def _read_partitions(root: Path) -> Partitions:
    source, pairs = _pairs(root, "Partitions.txt")
    splits: dict[str, str] = {}
    file_names: dict[str, str] = {}
    lines: dict[str, int] = {}
    faults: dict[str, str] = {}
    for line, first, second in pairs:
        file_name, split = (first, second) if is_audio(first) else (second, first)
        if not is_audio(file_name):
            continue
        key = key_of(file_name)
        if splits.setdefault(key, split) != split:
            words = (
                f"{source} states {printable(splits[key])} in line {lines[key]} and {printable(split)} in line {line}"
            )
            faults[key] = f"two splits: {words}"
        file_names.setdefault(key, file_name)
        lines.setdefault(key, line)
    return Partitions(source=source, splits=splits, file_names=file_names, lines=lines, faults=faults)


def _read_speakers(root: Path) -> Speakers:
    _, pairs = _pairs(root, "Speaker_ids.txt")
    by_key = {key_of(first): second for _, first, second in pairs if is_audio(first)}
    genders = {first: second for _, first, second in pairs if not is_audio(first)}
    return Speakers(by_key=by_key, genders=genders)


def _speaker(key: str, speakers: Speakers) -> dict[str, str]:
    speaker = speakers.by_key.get(key, "")
    gender = speakers.genders.get(f"Speaker_{speaker}", speakers.genders.get(speaker, ""))
    return {"speaker": speaker, "gender": gender}
