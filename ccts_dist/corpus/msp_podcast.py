"""MSP-Podcast as it lies on disk: ``Audios/*.wav``, ``Transcripts/*.txt``, ``Labels/labels_consensus.csv``.

``Labels/labels_detailed.csv`` adds the single ratings, for their variance and number. Transcripts are absent in
release 1.6; without that folder every transcript is empty.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.corpus import Corpus
from ccts_dist.errors import CorpusError
from ccts_dist.records import DIMENSIONS, Rejected, Utterance

SCALE = (1.0, 7.0)
"""Raters of MSP-Podcast choose a whole number from 1 to 7."""

LABEL_COLUMNS = {"activation": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}
"""Column of ``labels_consensus.csv`` per target."""

WITHHELD_SPLITS = frozenset({"Test3"})
"""Splits whose labels the makers keep to themselves; their utterances are read without labels."""

_CONSENSUS_NAMES = ("labels_consensus.csv", "labels_concensus.csv")  # the second in releases before 1.11
_NEEDED_COLUMNS = ("FileName", *LABEL_COLUMNS.values(), "Split_Set")
_RATING = re.compile(r"([AVD]):(.*)")
_RATING_TARGET = {"A": "activation", "V": "valence", "D": "dominance"}
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")  # it becomes the beginning of a shard's file name


@dataclass(slots=True)
class _Raters:
    """The single ratings of one utterance."""

    num_raters: int = 0
    ratings: dict[str, list[float]] = field(default_factory=lambda: {target: [] for target in DIMENSIONS})
    """Per target, on 0..1."""

    fault: str = ""
    """Why these ratings cannot be used; "" if they can."""


class _RowError(Exception):
    """Why one row is left out, and the file that was at fault."""

    def __init__(self, reason: str, source: str) -> None:
        super().__init__(reason)
        self.reason, self.source = reason, source


def read_msp_podcast(root: str | Path, *, name: str = "msp-podcast", release: str = "unknown") -> Corpus:
    """Every row of the corpus's label file as an ``Utterance``, or as a ``Rejected`` that says why not.

    Opens no audio: a wave file that cannot be decoded is found when shards are built. Splits and categories stay as
    the corpus spells them. A rating cell that is empty leaves that target out of ``labels``; a row with no rating
    at all is rejected, except in the splits whose labels are withheld.

    Args:
        root: folder that holds ``Audios``, ``Labels`` and, if there are any, ``Transcripts``.
        name: of the corpus, for the manifest.
        release: of the corpus, for the manifest; nothing on disk tells it.

    Raises:
        CorpusError: the folder lacks what the layout needs.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds MSP-Podcast's Audios and Labels.")
    audios = root / "Audios"
    if not audios.is_dir():
        raise CorpusError(f"{root}: looked for the folder Audios with the wave files and found {_listing(root)}.")
    consensus = _consensus_file(root)
    waves = frozenset(entry.name for entry in os.scandir(audios) if entry.is_file())
    raters = _read_raters(consensus.with_name("labels_detailed.csv"))
    source = consensus.relative_to(root).as_posix()
    seen: dict[str, int] = {}
    utterances: list[Utterance | Rejected] = []
    for line, row in _rows(consensus):
        if isinstance(row, csv.Error):
            utterances.append(Rejected(key=f"line {line}", reason=_no_record(line, row), source=source))
            continue
        file_name = (row["FileName"] or "").strip()
        key = os.path.splitext(file_name)[0]
        try:
            _check_key(key, file_name, seen, source)
            seen[key] = line
            utterances.append(_utterance(root, row, key, file_name, waves, raters.get(file_name), source))
        except _RowError as error:
            reason = f"line {line}: {error.reason}" if error.source == source else error.reason
            utterances.append(Rejected(key=_printable(key) or f"line {line}", reason=reason, source=error.source))
    if not utterances:
        raise CorpusError(f"{consensus}: no row below the header. Give a folder with a complete label file.")
    return Corpus(name=name, release=release, scale=SCALE, targets=DIMENSIONS, utterances=tuple(utterances))


def to_label(rating: float) -> float:
    """A rating on MSP-Podcast's scale, on 0..1."""
    low, high = SCALE
    return (rating - low) / (high - low)


def _consensus_file(root: Path) -> Path:
    for name in _CONSENSUS_NAMES:
        path = root / "Labels" / name
        if path.is_file():
            return path
    looked_for = " or ".join(f"Labels/{name}" for name in _CONSENSUS_NAMES)
    raise CorpusError(f"{root}: looked for {looked_for} and found {_listing(root / 'Labels')} in Labels.")


def _listing(folder: Path) -> str:
    """The first few names in a folder, for an error message."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _lines(path: Path) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
    """Number, text and cells of each line that is not blank; in place of the cells what keeps them from being read.

    A record is one line in these files. Parsed as a whole, one stray quote would swallow the rows up to the next.
    Bytes that are not UTF-8 come through as lone surrogates.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        record = line.rstrip("\r\n")
        try:
            cells = _cells(record)
        except csv.Error as error:
            yield number, record, error
        else:
            if any(cell.strip() for cell in cells):
                yield number, record, cells


def _cells(record: str) -> list[str]:
    if record.count('"') % 2:
        raise csv.Error("a quote is not closed")
    return next(csv.reader([record], strict=True), [])


def _no_record(line: int, error: csv.Error) -> str:
    return f"line {line}: not a CSV record: {error}"


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str] | csv.Error]]:
    lines = _lines(path)
    number, _, header = next(lines, (0, "", []))
    if isinstance(header, csv.Error):
        raise CorpusError(f"{path}: {_no_record(number, header)}. Restore the file from the release.")
    header = [cell.strip() for cell in header]
    missing = [column for column in _NEEDED_COLUMNS if column not in header]
    if missing:
        raise CorpusError(
            f"{path}: looked for the columns {', '.join(missing)} and found {', '.join(header) or 'an empty file'}."
        )
    for line, _, cells in lines:
        if isinstance(cells, csv.Error):
            yield line, cells
        else:
            padded = cells + [""] * (len(header) - len(cells))
            yield line, dict(zip(header, padded, strict=False))


def _check_key(key: str, file_name: str, seen: Mapping[str, int], source: str) -> None:
    if not key:
        raise _RowError("FileName is empty", source)
    if _has_bad_bytes(file_name):
        raise _RowError("FileName is not UTF-8", source)
    if any(ord(character) < 32 or ord(character) == 127 for character in file_name):
        raise _RowError("FileName holds a control character", source)
    if "/" in file_name or "\\" in file_name or key in (".", ".."):
        raise _RowError(f"FileName {file_name!r} is no plain file name; Audios has no sub-folders", source)
    if key in seen:
        raise _RowError(f"duplicate of line {seen[key]}, which is kept", source)


def _utterance(
    root: Path,
    row: Mapping[str, str],
    key: str,
    file_name: str,
    waves: frozenset[str],
    raters: _Raters | None,
    source: str,
) -> Utterance:
    split = row["Split_Set"].strip()
    if not _SPLIT_NAME.fullmatch(split):
        raise _RowError(f"Split_Set {_printable(split)!r} is not a split's name", source)
    if file_name not in waves:
        raise _RowError("missing audio", f"Audios/{file_name}")
    labels = _labels(row, split, source)
    if raters is not None and raters.fault:
        raise _RowError(raters.fault, "Labels/labels_detailed.csv")
    described = {column: _described(row, column, source) for column in ("EmoClass", "SpkrID", "Gender")}
    return Utterance(
        key=key,
        audio=root / "Audios" / file_name,
        split=split,
        labels=labels,
        scale=SCALE,
        transcript=_transcript(root, key),
        speaker=described["SpkrID"],
        gender=described["Gender"],
        category=described["EmoClass"],
        label_variance={} if raters is None else _variances(raters, labels),
        num_raters=None if raters is None else raters.num_raters,
    )


def _labels(row: Mapping[str, str], split: str, source: str) -> dict[str, float]:
    labels = {}
    for target, column in LABEL_COLUMNS.items():
        cell = row[column].strip()
        if cell:
            try:
                labels[target] = _label(cell)
            except ValueError as error:
                raise _RowError(f"{column} {error}", source) from error
    if not labels and split not in WITHHELD_SPLITS:
        raise _RowError(f"no label: {', '.join(LABEL_COLUMNS.values())} are empty", source)
    return labels


def _label(cell: str) -> float:
    """The label that a rating in text stands for; ValueError says what is wrong with it."""
    try:
        rating = float(cell)
    except ValueError:
        raise ValueError(f"{_printable(cell)!r} is not a number") from None
    if math.isnan(rating):
        raise ValueError("is NaN")
    low, high = SCALE
    if not low <= rating <= high:
        raise ValueError(f"{cell} is off the scale {low:g}..{high:g}")
    return to_label(rating)


def _described(row: Mapping[str, str], column: str, source: str) -> str | None:
    """A cell that describes the utterance; None where the corpus does not know."""
    cell = row.get(column, "").strip()
    if _has_bad_bytes(cell):
        raise _RowError(f"{column} is not UTF-8", source)
    return None if cell in ("", "Unknown") else cell


def _transcript(root: Path, key: str) -> str:
    """The transcript on one line; empty where there is no file."""
    path = root / "Transcripts" / f"{key}.txt"
    try:
        return " ".join(path.read_bytes().decode("utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise _RowError(f"transcript is not UTF-8 (byte {error.start})", f"Transcripts/{key}.txt") from error


def _read_raters(path: Path) -> dict[str, _Raters]:
    """The ratings of ``labels_detailed.csv`` per file name; nothing without that file.

    A row is ``x.wav`` and then ``WORKER1; Neutral; Neutral,Other; A:3; V:4; D:3;`` in one quoted cell or, because of
    the commas of the second emotion, in several.
    """
    if not path.is_file():
        return {}
    raters: dict[str, _Raters] = {}
    for line, text, cells in _lines(path):
        row = text.replace('"', "") if isinstance(cells, csv.Error) else ",".join(cells)
        file_name, *parts = re.split(r"[,;]", row)
        one = raters.setdefault(file_name.strip(), _Raters())
        if isinstance(cells, csv.Error):
            one.fault = one.fault or _no_record(line, cells)
        one.num_raters += 1
        for part in parts:
            rating = _RATING.fullmatch(part.strip())
            if rating is None or rating[2].strip().lower() in ("", "nan"):
                continue  # the emotions, the worker, or a rating that this worker did not give
            try:
                one.ratings[_RATING_TARGET[rating[1]]].append(_label(rating[2].strip()))
            except ValueError as error:
                one.fault = one.fault or f"line {line}: {rating[1]}: {error}"
    return raters


def _variances(raters: _Raters, labels: Mapping[str, float]) -> dict[str, float]:
    return {target: _variance(values) for target, values in raters.ratings.items() if values and target in labels}


def _variance(values: Sequence[float]) -> float:
    """Population variance."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def _has_bad_bytes(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    """The text with bad bytes and control characters written out, so that it can be printed and stored."""
    shown = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
