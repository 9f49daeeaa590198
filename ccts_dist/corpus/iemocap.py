"""IEMOCAP as it lies on disk: ``Session1`` to ``Session5``, each with ``dialog`` and ``sentences/wav``.

``dialog/EmoEvaluation/*.txt`` holds a block per utterance: a header line with the mean ratings in the order valence,
activation, dominance, and below it a line per rater. Its sub-folders hold single raters' files and are not read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.cells import RowError, parse_label, printable, variances_of
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, find_entry, listing, natural_order
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited
from ccts_dist.records import DIMENSIONS, Rejected, Utterance

SCALE = (1.0, 5.0)
"""Raters of IEMOCAP choose from 1 to 5."""

HEADER_ORDER = ("valence", "activation", "dominance")
"""Order of the mean ratings in a header line; not the order of ``DIMENSIONS``."""

GENDERS = {"F": "Female", "M": "Male"}
"""By the letter of the speaker; spelt as in MSP-Podcast."""

_SESSION = re.compile(r"Session\d+")
_HEADER = re.compile(r"\[[^\]]*\]\s*(\S+)\s+(\S+)\s+\[([^\]]*)\]")
_KEY = re.compile(r"(Ses\d+)[FM]_\w*_([FM])\w*", re.ASCII)
_RATER = re.compile(r"([CA])-([EFM])\w*:(.*)")
_RATING = re.compile(r"(val|act|dom)\w*\b([^;]*)")
_RATING_TARGET = {"val": "valence", "act": "activation", "dom": "dominance"}
_TURN = re.compile(r"(\S+)\s*\[[^\]]*\]\s*:(.*)")


@dataclass(slots=True)
class _Block:
    """A header line and the ratings below it."""

    key: str
    line: int
    category: str = ""
    means: str = ""
    """The text between the brackets: three ratings."""

    ratings: dict[str, list[float]] = field(default_factory=lambda: {target: [] for target in DIMENSIONS})
    num_raters: int = 0
    fault: str = ""
    """Why the utterance is omitted; "" so far."""


def read_iemocap(root: str | Path, *, name: str = "iemocap", release: str = "unknown") -> Corpus:
    """Every utterance of the evaluation files as an ``Utterance``, or as a ``Rejected`` with the reason.

    A split is a session, so that folds are chosen in the run file. The speaker is the session and the letter of the
    utterance's last field ("Ses01F"): the letter in front names who wore the markers. Variance and number of raters are
    over the evaluators (``A-E1``), whose mean the label is; the actors' ratings of themselves (``A-F1``) are not in it.
    Bytes that are not UTF-8 are read as Windows-1252. Audio that no evaluation file names is rejected too. Opens no
    audio: what cannot be decoded is found when shards are built.

    Args:
        root: folder that holds ``Session1`` and so on.
        name: of the corpus, for the manifest.
        release: of the corpus, for the manifest; nothing on disk names it.

    Raises:
        CorpusError: the folder lacks what the layout needs.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds IEMOCAP's Session1 to Session5.")
    names = (entry.name for entry in root.iterdir() if entry.is_dir() and _SESSION.fullmatch(entry.name))
    sessions = [root / one for one in sorted(names, key=natural_order)]
    if not sessions:
        raise CorpusError(f"{root}: looked for the folders Session1 to Session5 and found {listing(root)}.")
    utterances: list[Utterance | Rejected] = []
    seen: dict[str, str] = {}
    for session in sessions:
        utterances += _read_session(root, session, seen)
    if not utterances:
        raise CorpusError(f"{root}: no utterance in Session*/dialog/EmoEvaluation/*.txt. Give a complete release.")
    return Corpus(name=name, release=release, scale=SCALE, targets=DIMENSIONS, utterances=tuple(utterances))


def _read_session(root: Path, session: Path, seen: dict[str, str]) -> Iterator[Utterance | Rejected]:
    """The utterances of a session; ``seen`` states for each key where it stood first."""
    evaluations, waves = session / "dialog" / "EmoEvaluation", session / "sentences" / "wav"
    for folder in (evaluations, waves):
        if not folder.is_dir():
            found = listing(folder.parent)
            raise CorpusError(f"{session}: looked for {folder.relative_to(session)} and found {found} next to it.")
    transcripts = _read_transcripts(session / "dialog")
    folders = {entry.name: AudioFolder(entry) for entry in sorted(waves.iterdir()) if entry.is_dir()}
    named: set[str] = set()
    for path in sorted(evaluations.glob("*.txt")):
        if path.name.startswith(".") or not path.is_file():
            continue
        source = path.relative_to(root).as_posix()
        for block in _blocks(path):
            named.add(block.key)
            try:
                yield _utterance(session, block, folders, transcripts, seen, source)
            except RowError as error:
                yield Rejected(key=printable(block.key), reason=error.reason, source=error.source)
    for dialog, folder in folders.items():
        for stem in folder.stems:
            if stem not in named:
                audio = (waves / dialog / stem).relative_to(root).as_posix()
                yield Rejected(key=printable(stem), reason="no label: no evaluation file names it", source=audio)


def _blocks(path: Path) -> Iterator[_Block]:
    """The blocks of an evaluation file; a line that is neither header nor rating becomes a block with a fault."""
    block: _Block | None = None
    for number, line in _lines(path):
        if not line or line.startswith("%"):  # the first line names the columns
            continue
        header, rater = _HEADER.fullmatch(line), _RATER.fullmatch(line)
        if rater is not None:
            if block is not None and rater[1] == "A" and rater[2] == "E":
                _add_ratings(block, rater[3], number)
            continue
        if block is not None:
            yield block
            block = None
        if header is not None:
            block = _Block(key=header[1], line=number, category=header[2], means=header[3])
        else:
            named = _KEY.search(line)
            yield _Block(
                key=named[0] if named else f"{path.name} line {number}",
                line=number,
                fault=f"line {number}: neither an utterance nor a rating: {printable(line[:80])!r}",
            )
    if block is not None:
        yield block


def _add_ratings(block: _Block, text: str, line: int) -> None:
    """Count one evaluator's ratings: ``val 2; act 3; dom  2;`` and perhaps a comment."""
    rated = False
    for match in _RATING.finditer(text.partition("(")[0]):
        cell = match[2].strip()
        if not cell:
            continue  # this evaluator left it out
        try:
            block.ratings[_RATING_TARGET[match[1]]].append(parse_label(cell, SCALE))
            rated = True
        except ValueError as error:
            block.fault = block.fault or f"line {line}: an evaluator's {match[1]} {error}"
    block.num_raters += rated


def _utterance(
    session: Path,
    block: _Block,
    folders: Mapping[str, AudioFolder],
    transcripts: Mapping[str, str],
    seen: dict[str, str],
    source: str,
) -> Utterance:
    if block.fault and not block.means:
        raise RowError(block.fault, source)
    at = f"line {block.line}: "
    key = _KEY.fullmatch(block.key)
    if key is None:
        raise RowError(f"{at}{printable(block.key)!r} is not a turn's name, such as Ses01F_impro01_F000", source)
    if block.key in seen:
        raise RowError(f"{at}duplicate of {seen[block.key]}, which comes first", source)
    seen[block.key] = f"{source} line {block.line}"
    dialog = block.key.rpartition("_")[0]
    audio = folders[dialog].find_any_ending(f"{block.key}.wav") if dialog in folders else None
    if audio is None:
        raise RowError("missing audio", f"{session.name}/sentences/wav/{dialog}/{block.key}.wav")
    labels = _labels(block, source)
    if block.fault:
        raise RowError(block.fault, source)
    return Utterance(
        key=block.key,
        audio=audio,
        split=session.name,
        labels=labels,
        scale=SCALE,
        transcript=transcripts.get(block.key, ""),
        speaker=key[1] + key[2],
        gender=GENDERS[key[2]],
        category=block.category,
        label_variance=variances_of(block.ratings, labels),
        num_raters=block.num_raters or None,
    )


def _labels(block: _Block, source: str) -> dict[str, float]:
    cells = [cell.strip() for cell in block.means.split(",")]
    if len(cells) != len(HEADER_ORDER):
        raise RowError(f"line {block.line}: [{printable(block.means)}] is not three ratings", source)
    labels = {}
    for target, cell in zip(HEADER_ORDER, cells, strict=True):
        if cell:
            try:
                labels[target] = parse_label(cell, SCALE)
            except ValueError as error:
                raise RowError(f"line {block.line}: {target} {error}", source) from error
    if not labels:
        raise RowError(f"line {block.line}: no label: the ratings are empty", source)
    return {target: labels[target] for target in DIMENSIONS if target in labels}


def _read_transcripts(dialog: Path) -> dict[str, str]:
    """Transcripts by utterance; none without the folder. Of an utterance that comes twice the first stays."""
    folder = find_entry([dialog], ["transcriptions", "transcription"])
    words: dict[str, str] = {}
    for path in sorted(folder.glob("*.txt")) if folder is not None else []:
        if path.name.startswith(".") or not path.is_file():
            continue
        for _, line in _lines(path):
            turn = _TURN.fullmatch(line)
            if turn is not None:
                words.setdefault(turn[1], " ".join(turn[2].split()))
    return words


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line. The release was written over years, by people with different systems."""
    try:
        data = read_limited(path, "label file").removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}). Mend its rights or its disk.") from error
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            try:
                text = line.decode("cp1252")
            except UnicodeDecodeError:
                text = line.decode("latin-1")
        yield number, text.strip()
