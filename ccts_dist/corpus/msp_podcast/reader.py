"""MSP-Podcast as it lies on disk: ``Audios/*.wav``, ``Transcripts/*.txt``, and label files in ``Labels`` or next to it.

Reads every release: a consensus CSV, or the oldest text form (``labels.py``); single ratings where there are any
(``raters.py``). Transcripts are absent in release 1.6; without that folder every transcript is empty.
"""

import re
from pathlib import Path

from ccts_dist.corpus.cells import RowError, has_bad_bytes, parse_label, printable, text_fault, variances_of
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, find_entry, listing
from ccts_dist.corpus.msp_podcast.labels import DETAILED_NAMES, LabelRow, find_labels, is_withheld, read_label_rows
from ccts_dist.corpus.msp_podcast.raters import VOTES, read_raters
from ccts_dist.errors import CorpusError
from ccts_dist.limits import read_limited
from ccts_dist.records import DIMENSIONS, SHARE, Rejected, Utterance

SCALE = (1.0, 7.0)
"""Raters of MSP-Podcast choose a whole number from 1 to 7."""

_SPLIT_NAME = re.compile(r"\w[\w .-]*")


SHARES = (
    *(f"{letter}{SHARE}" for letter in VOTES.values()),
    *(f"{target}.{grade}{SHARE}" for target in DIMENSIONS for grade in range(int(SCALE[0]), int(SCALE[1]) + 1)),
)
"""Labels that single ratings give: shares of the votes for each category, and of each grade of each dimension."""


def read_msp_podcast(
    root: str | Path, *, name: str = "msp-podcast", release: str = "unknown", shares: bool = False
) -> Corpus:
    """Every row of the corpus's label file as an ``Utterance``, or as a ``Rejected`` with the reason.

    Opens no audio: a file that cannot be decoded is found when shards are built. Splits, speakers and categories stay
    as the corpus spells them; an unknown speaker is None. A rating cell that is empty leaves that target out of
    ``labels``; a row with no rating at all is rejected. In the split whose labels are withheld, Test3, whatever stands
    there instead of a rating is taken for none. Audio that no row names is no utterance; it is listed.

    Args:
        root: folder that holds ``Audios`` (or ``Audio``), ``Labels`` and, if there are any, ``Transcripts``.
        name: of the corpus, for the manifest.
        release: of the corpus, for the manifest; nothing on disk names it.
        shares: add ``SHARES`` to the labels; they need the file of single ratings.

    Raises:
        CorpusError: the folder lacks what the layout needs.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds MSP-Podcast's Audios and Labels.")
    audios = find_entry([root], ["Audios", "Audio"])
    if audios is None or not audios.is_dir():
        raise CorpusError(f"{root}: looked for the folder Audios with the wave files and found {listing(root)}.")
    labels = find_labels(root)
    folder = AudioFolder(audios)
    reader = _Reader(root, folder, shares=shares)
    utterances = tuple(reader.read(row) for row in read_label_rows(labels, root))
    if not utterances:
        raise CorpusError(f"{labels}: no row below the header. Give a folder with a complete label file.")
    return Corpus(
        name=name,
        release=release,
        scale=SCALE,
        targets=(*DIMENSIONS, *SHARES) if shares else DIMENSIONS,
        utterances=utterances,
        unnamed=tuple(folder.unnamed),
    )


class _Reader:
    """Rows to utterances: what a row needs to be accepted."""

    def __init__(self, root: Path, audio: AudioFolder, *, shares: bool) -> None:
        self._audio = audio
        self._root = root
        self._transcripts = find_entry([root], ["Transcripts", "Transcript"]) or root / "Transcripts"
        self._raters_source, self._raters = read_raters(root, SCALE)
        self._has_shares = shares
        if shares and not self._raters:
            raise CorpusError(
                f"{root}: --shares needs single ratings, and there are none in {' or '.join(DETAILED_NAMES)}. Copy the "
                "file there, or leave the option out."
            )
        self._seen: dict[str, LabelRow] = {}

    def read(self, row: LabelRow) -> Utterance | Rejected:
        key = row.key
        self._audio.find_any_ending(row.file_name)  # named, whatever is wrong with its row
        try:
            self._check(row)
            self._seen[key] = row
            return self._utterance(row)
        except RowError as error:
            at = f"line {row.line}: "
            in_row = error.source == row.source and not error.reason.startswith(at)
            reason = at + error.reason if in_row else error.reason
            return Rejected(key=printable(key) or f"line {row.line}", reason=reason, source=error.source)

    def _check(self, row: LabelRow) -> None:
        """Refuse a row that states of no file what it is, or of one that came before."""
        if row.fault and not row.file_name:
            raise RowError(row.fault, row.source)
        if not row.key:
            raise RowError("FileName is empty", row.source)
        fault = text_fault(row.file_name)
        if fault:
            raise RowError(f"FileName {fault}", row.source)
        if "/" in row.file_name or "\\" in row.file_name or row.key in (".", ".."):
            raise RowError(f"FileName {row.file_name!r} is no plain file name; Audios has no sub-folders", row.source)
        first = self._seen.get(row.key)
        if first is not None:
            raise RowError(f"duplicate of line {first.line}, which comes first", row.source)
        if row.fault:
            raise RowError(row.fault, row.source)

    def _utterance(self, row: LabelRow) -> Utterance:
        if not _SPLIT_NAME.fullmatch(row.split):
            raise RowError(f"Split_Set {printable(row.split)!r} is not a split's name", row.source)
        audio = self._audio.find_any_ending(row.file_name)
        if audio is None:
            raise RowError("missing audio", f"{self._audio.folder.name}/{row.file_name}")
        labels = _labels(row)
        raters = self._raters.get(row.key) if labels else None
        if raters is not None and raters.fault:
            raise RowError(raters.fault, self._raters_source)
        described = {"EmoClass": row.category, "SpkrID": row.speaker, "Gender": row.gender}
        for column, cell in described.items():
            if has_bad_bytes(cell):
                raise RowError(f"{column} is not UTF-8", row.source)
        return Utterance(
            key=row.key,
            audio=audio,
            split=row.split,
            labels=labels | (raters.shares() if raters is not None and self._has_shares else {}),
            scale=SCALE,
            transcript=self._transcript(row.key),
            speaker=_known(row.speaker),
            gender=_known(row.gender),
            category=_known(row.category),
            label_variance={} if raters is None else variances_of(raters.ratings, labels),
            num_raters=None if raters is None else raters.num_raters,
        )

    def _transcript(self, key: str) -> str:
        """The transcript on one line; empty where there is no file."""
        path = self._transcripts / f"{key}.txt"
        source = path.relative_to(self._root).as_posix()
        try:
            text = read_limited(path, "label file").decode("utf-8-sig")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError as error:
            raise RowError(f"transcript is not UTF-8 (byte {error.start})", source) from error
        except OSError as error:
            raise RowError(f"transcript cannot be read ({error.strerror})", source) from error
        if "\0" in text:
            raise RowError("transcript holds NUL, as UTF-16 does", source)
        return " ".join(text.split())


def _labels(row: LabelRow) -> dict[str, float]:
    labels, withheld = {}, is_withheld(row.split)
    for target, cell in row.ratings.items():
        if cell:
            try:
                labels[target] = parse_label(cell, SCALE)
            except ValueError as error:
                if not withheld:
                    raise RowError(f"{row.names[target]} {error}", row.source) from error
    if not labels and not withheld:
        raise RowError(f"no label: {', '.join(row.names.values())} are empty", row.source)
    return labels


def _known(cell: str) -> str | None:
    """A cell that describes the utterance; None where the corpus does not know."""
    return None if cell.casefold() in ("", "unknown") else cell
