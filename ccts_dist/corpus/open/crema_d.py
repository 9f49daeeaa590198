"""CREMA-D as its repository is: ``AudioWAV/1001_DFA_ANG_XX.wav`` and ``processedResults/tabulatedVotes.csv``.

Layout: https://github.com/CheyneyComputerScience/CREMA-D and Cao and others (2014): actor, sentence, acted emotion and
its level in a file's name; ``tabulatedVotes.csv`` has a row per clip and way of showing it, whose first cell is 100000
(voice), 200000 (face) or 300000 (both) plus the clip's number, with the counts of the six answers in A D F H N S.
``VideoDemographics.csv`` has the actors' sex. One name is known to lack a letter: ``1040_ITH_SAD_X``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ccts_dist.corpus.cells import RowError, parse_number, printable, table_rows
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import find_entry
from ccts_dist.corpus.open.recordings import NamedCorpus, Recording, read_recordings
from ccts_dist.corpus.speaker_splits import split_by_speaker
from ccts_dist.errors import ConfigError, CorpusError

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
"""By the code in a name; the columns of votes are their first letters."""

SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}

CATEGORIES_FROM = ("acted", "voted")

_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(?:LO|MD|HI|XX?)", re.ASCII)
_VOICE = "1"
_VOTE_COLUMNS = tuple(code[0] for code in EMOTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """The answers of those who listened to a clip without seeing it."""

    shares: Mapping[str, float]
    """Shares of all answers, by emotion."""

    num_raters: int
    fault: str = ""
    """Why they cannot be used; "" if they can."""

    @property
    def winner(self) -> str | None:
        """The emotion with the most votes; None where two have as many."""
        most = max(self.shares.values())
        winners = [emotion for emotion, share in self.shares.items() if share == most]
        return winners[0] if len(winners) == 1 else None


def read_crema_d(
    root: str | Path, *, release: str = "unknown", categories: str = "acted", num_folds: int | None = None
) -> Corpus:
    """Every recording of CREMA-D, with the share of the voice votes for each emotion as six targets on 0..1.

    Without ``tabulatedVotes.csv`` there are no targets. The variance of a target is p (1 - p) of its share p. Splits
    are by actor (``split_by_speaker``, all actors in one group).

    Args:
        root: folder that holds ``AudioWAV`` (or ``AudioMP3``, where that is absent) or is it.
        release: of the corpus, for the manifest.
        categories: "acted", or "voted": the most frequent answer, none where two are as frequent.
        num_folds: of actors, in place of Train, Development and Test.

    Raises:
        CorpusError: no file of CREMA-D there, or a table lacks its columns.
        ConfigError: "voted" without votes; a number of folds that the actors do not give.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds CREMA-D's AudioWAV.")
    path = find_entry([root / "processedResults", root], ["tabulatedVotes.csv"])
    votes = {} if path is None else _read_votes(path, root)
    if categories not in CATEGORIES_FROM:
        raise ConfigError(f"categories {categories!r}: must be one of {', '.join(CATEGORIES_FROM)}.")
    if categories == "voted" and path is None:
        raise ConfigError(f"--categories voted: {root} has no processedResults/tabulatedVotes.csv. Copy it there.")
    describe = partial(
        _describe,
        votes=votes,
        voted=categories == "voted",
        sexes=_read_sexes(root),
        source="" if path is None else path.relative_to(root).as_posix(),
    )
    corpus = NamedCorpus(
        name="crema-d",
        release=release,
        example="AudioWAV/1001_DFA_ANG_XX.wav",
        targets=tuple(EMOTIONS.values()) if votes else (),
    )
    return read_recordings(
        root,
        corpus,
        describe,
        folder=find_entry([root], ["AudioWAV", "AudioMP3"]),
        assign=partial(split_by_speaker, num_folds=num_folds),
    )


def _describe(
    path: Path, *, votes: Mapping[str, Votes], voted: bool, sexes: Mapping[str, str], source: str
) -> Recording | None:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    actor, sentence, emotion = match.groups()
    for name, code, known in (("sentence", sentence, SENTENCES), ("emotion", emotion, EMOTIONS)):
        if code not in known:
            raise RowError(f"{name} {code} is none of {', '.join(known)}", path.as_posix())
    own = votes.get(path.stem)
    if own is not None and own.fault:
        raise RowError(own.fault, source)
    shares = {} if own is None else own.shares
    winner = None if own is None else own.winner
    return Recording(
        speaker=actor,
        category=winner if voted else EMOTIONS[emotion],
        transcript=SENTENCES[sentence],
        gender=sexes.get(actor),
        labels=shares,
        label_variance={target: share * (1 - share) for target, share in shares.items()},
        num_raters=None if own is None else own.num_raters,
    )


def _read_votes(path: Path, root: Path) -> dict[str, Votes]:
    """The votes of each clip's voice, by its name; of two rows the first stays."""
    votes: dict[str, Votes] = {}
    for line, cells in table_rows(path, ("fileName", *_VOTE_COLUMNS)):
        if cells.get("", "").strip()[:1] == _VOICE and len(cells.get("", "").strip()) == 6:
            votes.setdefault(cells["fileName"].strip(), _votes([cells[column] for column in _VOTE_COLUMNS], line))
    if not votes:
        raise CorpusError(f"{path}: no row whose first cell is that of a voice, 100001 to 107442. Restore the file.")
    return votes


def _votes(cells: Sequence[str], line: int) -> Votes:
    none = dict.fromkeys(EMOTIONS.values(), 0.0)
    try:
        counts = [parse_number(cell) for cell in cells]
    except ValueError as error:
        return Votes(shares=none, num_raters=0, fault=f"line {line}: a count {error}")
    for count, cell in zip(counts, cells, strict=True):
        if not (0 <= count < 1_000_000 and count.is_integer()):
            return Votes(shares=none, num_raters=0, fault=f"line {line}: count {printable(cell)} is no whole number")
    total = sum(counts)
    if not total:
        return Votes(shares=none, num_raters=0, fault=f"line {line}: no vote")
    shares = {emotion: count / total for emotion, count in zip(EMOTIONS.values(), counts, strict=True)}
    return Votes(shares=shares, num_raters=int(total))


def _read_sexes(root: Path) -> dict[str, str]:
    """Male or Female by actor; nothing without the table."""
    path = find_entry([root], ["VideoDemographics.csv"])
    if path is None:
        return {}
    return {cells["ActorID"].strip(): cells["Sex"].strip() for _, cells in table_rows(path, ("ActorID", "Sex"))}
