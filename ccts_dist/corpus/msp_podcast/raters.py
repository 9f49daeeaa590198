"""The single ratings of MSP-Podcast, for their variance and number.

Three forms: ``labels_detailed.csv`` with a column per rating (as in 1.6 and 2.0), the same with all of it in one cell
(``WORKER1; Neutral; Neutral,Other; A:3; V:4; D:3;``), and the text form, where raters' lines follow their file's.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.cells import csv_lines, no_record, parse_label, text_lines
from ccts_dist.corpus.folders import find_entry, is_audio
from ccts_dist.corpus.msp_podcast.labels import (
    DETAILED_NAMES,
    LABEL_COLUMNS,
    LABEL_LETTERS,
    column_places,
    is_rater_line,
    key_of,
    label_folders,
    parse_ratings,
)
from ccts_dist.records import DIMENSIONS, SHARE

VOTES = {
    "angry": "A",
    "sad": "S",
    "happy": "H",
    "surprise": "U",
    "fear": "F",
    "disgust": "D",
    "contempt": "C",
    "neutral": "N",
    "other": "O",
}
"""First word of a rater's category, and the letter that the consensus has for it."""


@dataclass(slots=True)
class Raters:
    """The single ratings of one utterance."""

    scale: tuple[float, float]
    num_raters: int = 0
    ratings: dict[str, list[float]] = field(default_factory=lambda: {target: [] for target in DIMENSIONS})
    """Per target, on 0..1."""

    votes: list[str] = field(default_factory=list)
    """The category that each rater chose, by its letter; of those who chose one of ``VOTES``."""

    fault: str = ""
    """Why these ratings cannot be used; "" if they can."""

    def shares(self) -> dict[str, float]:
        """Share of the raters who gave each answer, of the categories and of each target that anybody rated."""
        shares = {f"{one}{SHARE}": self.votes.count(one) / len(self.votes) for one in VOTES.values() if self.votes}
        low, high = self.scale
        for target, ratings in self.ratings.items():
            grades = [low + (high - low) * rating for rating in ratings]
            for grade in range(round(low), round(high) + 1) if grades else ():
                count = sum(abs(one - grade) < 1e-6 for one in grades)
                shares[f"{target}.{grade}{SHARE}"] = count / len(grades)
        return shares

    def add(self, cells: Mapping[str, str], names: Mapping[str, str], line: int, vote: str) -> None:
        """Count one rater, if there is a rating; one that is empty or NaN was not given.

        Args:
            vote: the category that this rater chose first, in the corpus's words; "" if that is not known.
            names: what the file calls each target, for errors.
        """
        given = {target: cell for target, cell in cells.items() if cell.strip().lower() not in ("", "nan")}
        self.num_raters += bool(given)
        letter = VOTES.get(re.split(r"[\W_]", vote.strip().casefold())[0])
        self.votes += [] if letter is None else [letter]
        for target, cell in given.items():
            try:
                self.ratings[target].append(parse_label(cell, self.scale))
            except ValueError as error:
                self.fault = self.fault or f"line {line}: {names[target]}: {error}"


def read_raters(root: Path, scale: tuple[float, float]) -> tuple[str, dict[str, Raters]]:
    """The file with single ratings, relative to the corpus, and the ratings by key; nothing without such a file."""
    path = find_entry(label_folders(root), DETAILED_NAMES)
    if path is None:
        return "", {}
    read = _from_text if path.suffix.lower() == ".txt" else _from_csv
    return path.relative_to(root).as_posix(), read(path, scale)


def _from_csv(path: Path, scale: tuple[float, float]) -> dict[str, Raters]:
    raters: dict[str, Raters] = {}
    places: dict[str, int] = {}
    num_columns = 0
    for line, text, cells in csv_lines(path):
        if not places and not isinstance(cells, csv.Error):
            places = column_places(cells)
            if "FileName" in places:
                num_columns = len(cells)
                continue
            places = {"FileName": 0}
        fault = no_record(line, cells) if isinstance(cells, csv.Error) else ""
        if set(LABEL_COLUMNS.values()) <= set(places) and not isinstance(cells, csv.Error):
            if len(cells) < num_columns:
                fault = f"line {line}: {len(cells)} cells, and the header has {num_columns}"
            at = {column: cells[place] if place < len(cells) else "" for column, place in places.items()}
            file_name = at["FileName"]
            ratings, names = {target: at[column] for target, column in LABEL_COLUMNS.items()}, LABEL_COLUMNS
            vote = at.get("EmoClass_Major", "")
        else:
            # The commas of the second emotion may have split the one cell into several.
            row = text.replace('"', "") if isinstance(cells, csv.Error) else ",".join(cells)
            file_name, *parts = re.split(r"[,;]", row)
            ratings, names, vote = parse_ratings(parts), LABEL_LETTERS, _vote(parts)
        one = raters.setdefault(key_of(file_name.strip()), Raters(scale))
        one.fault = one.fault or fault
        one.add(ratings, names, line, vote)
    return _with_any(raters)


def _from_text(path: Path, scale: tuple[float, float]) -> dict[str, Raters]:
    raters: dict[str, Raters] = {}
    one: Raters | None = None
    for line, text in text_lines(path):
        parts = [part.strip() for part in text.split(";")]
        if is_audio(parts[0]):
            one = raters.setdefault(key_of(parts[0]), Raters(scale))
        elif text.strip() and not is_rater_line(parts):
            one = None  # whose raters follow is not known
        elif text.strip() and one is not None:
            one.add(parse_ratings(parts[1:]), LABEL_LETTERS, line, _vote(parts))
    return _with_any(raters)


def _vote(parts: Sequence[str]) -> str:
    """The category of the parts of a rater's line, which come after the rater; "" where a rating does."""
    return parts[1] if len(parts) > 1 and not parse_ratings([parts[1]]) else ""


def _with_any(raters: Mapping[str, Raters]) -> dict[str, Raters]:
    return {key: one for key, one in raters.items() if one.num_raters or one.fault}
