"""Every row of a database's tables of annotations as an utterance."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.audformat.header import Column, Header
from ccts_dist.corpus.audformat.tables import Index, index_of, read_cells
from ccts_dist.corpus.cells import RowError, parse_label, printable, text_fault, variances_of
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, folder_of_row
from ccts_dist.corpus.manifest import WHOLE
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import Rejected, Utterance

OTHER = "other"
"""Split of what is in no table of a split, where others are; audformat's name for it."""

_MISSING = ("nan", "nat", "<na>")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationColumns:
    """Which columns of a database hold what, each as ``TABLE.COLUMN``; see ``Header.find``."""

    targets: Mapping[str, str] = field(default_factory=dict)
    """Columns by target. Several are raters: the label is their mean."""

    category: str | None = None
    """Several are raters: the category is the most frequent one, and none where two are."""

    text: str | None = None
    speaker: str | None = None
    gender: str | None = None


def read_audformat(
    root: str | Path,
    *,
    columns: AnnotationColumns,
    scale: tuple[float, float] | None = None,
    release: str = "unknown",
) -> Corpus:
    """Every row of the tables with targets and category as an ``Utterance`` or a ``Rejected``.

    The key is the file, for a segment with ``#t=START,END`` in seconds. Without targets and category, the rows are
    those of the transcripts, else of speaker and gender. Other tables are joined by segment, else by file. Splits are
    the ``split_id`` of any table that has the row; "all" where no table has one. Opens no audio.

    Args:
        root: folder with ``db.yaml``.
        scale: lowest and highest rating; None for the ``minimum`` and ``maximum`` of each target's scheme. Where these
            differ, the corpus's scale is 0 to 1.
        release: of the corpus, for the manifest.

    Raises:
        ConfigError: no column is named, a target has no scale, or the scale is not two numbers in rising order.
        CorpusError: the header or a table cannot be read, or lacks a column.
    """
    if scale is not None and not (math.isfinite(scale[0]) and math.isfinite(scale[1]) and scale[0] < scale[1]):
        raise ConfigError(f"scale {scale[0]:g} {scale[1]:g}: must be two numbers, the lower one first.")
    root = Path(root)
    header = Header(root)
    names = {"category": columns.category, "text": columns.text, "speaker": columns.speaker, "gender": columns.gender}
    facts = {fact: header.find(name) for fact, name in names.items() if name is not None}
    targets = {target: header.find(name) for target, name in columns.targets.items()}
    scales = {target: scale or _scale(target, found) for target, found in targets.items()}
    common = set(scales.values())
    reader = _Reader(header, targets, facts, scales, common.pop() if len(common) == 1 else (0.0, 1.0))
    utterances = tuple(reader.utterances())
    if not utterances:
        raise CorpusError(f"{root}: no row in the tables of these columns. Name others.")
    return Corpus(name=header.name, release=release, scale=reader.scale, targets=tuple(targets), utterances=utterances)


def _scale(target: str, columns: Sequence[Column]) -> tuple[float, float]:
    """Lowest and highest rating, as the scheme of all of the columns has them."""
    found = {(one.scheme.get("minimum"), one.scheme.get("maximum")) for one in columns}
    low, high = (value if isinstance(value, int | float) else math.nan for value in found.pop())
    if found or not -math.inf < low < high < math.inf:
        raise ConfigError(f"--target {target}: its scheme states no minimum and maximum. Give --scale LOW HIGH.")
    return float(low), float(high)


class _Reader:
    def __init__(
        self,
        header: Header,
        targets: Mapping[str, Sequence[Column]],
        facts: Mapping[str, Sequence[Column]],
        scales: Mapping[str, tuple[float, float]],
        scale: tuple[float, float],
    ) -> None:
        self._header, self._targets, self._scales, self.scale = header, targets, scales, scale
        self._rated = {  # columns of several tables are of several splits
            target for target, found in targets.items() if max(Counter(one.table for one in found).values()) > 1
        }
        wanted: dict[str, Sequence[Column]] = {f"target {target}": found for target, found in targets.items()}
        wanted.update(facts)
        labels = [name for name in wanted if name.startswith("target ") or name == "category"]
        rows_of = labels or [name for name in wanted if name == "text"] or list(wanted)
        if not rows_of:
            raise ConfigError("audformat: no column is named. Give --target NAME=TABLE.COLUMN, or --category.")
        self._main = {one.table for name in rows_of for one in wanted[name]}
        self._wanted: dict[str, list[tuple[str, Column]]] = {
            table: [] for table in header.tables if header.split_of(table) is not None
        }
        for name, found in wanted.items():
            for one in found:
                self._wanted.setdefault(one.table, []).append((name, one))
        self._cells: dict[str, dict[Index, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._splits: dict[Index, set[str]] = defaultdict(set)
        self._rows: dict[Index, str] = {}
        self._faults: dict[Index, str] = {}
        self._folders: dict[Path, AudioFolder] = {}

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Every row, in the order of the tables."""
        for table, wanted in self._wanted.items():
            yield from self._read(table, wanted)
        for index, where in self._rows.items():
            key = _key(index)
            try:
                if index in self._faults:
                    raise RowError(self._faults[index], where)
                yield self._utterance(key, index, where)
            except RowError as error:
                yield Rejected(key=key, reason=error.reason, source=error.source)

    def _read(self, table: str, wanted: Sequence[tuple[str, Column]]) -> Iterator[Rejected]:
        """Take in the cells of a table; what has no index is rejected."""
        split, seen = self._header.split_of(table), set()
        times = ["start", "end"] if self._header.is_segmented(table) else []
        given = ["file", *times, *(one.name for _, one in wanted)]
        texts = [self._header.texts(one) if name == "text" or one.field else {} for name, one in wanted]
        for where, cells in read_cells(self._header.root, table, given):
            try:
                index = index_of(*cells[: 1 + len(times)])
            except ValueError as error:
                yield Rejected(key=where, reason=f"{where}: {error}", source=where.split()[0])
                continue
            if index in seen:
                self._faults[index] = f"{where}: {_key(index)} comes twice"
            seen.add(index)
            if table in self._main:
                self._rows.setdefault(index, where)
            if split is not None:
                self._splits[index].add(split)
            for (name, one), mapped, cell in zip(wanted, texts, cells[1 + len(times) :], strict=True):
                text = "" if cell is None else mapped.get(str(cell), "" if one.field else str(cell))
                if text and not (name.startswith("target ") and text.casefold() in _MISSING):
                    self._cells[name][index].append(text)

    def _utterance(self, key: str, index: Index, where: str) -> Utterance:
        file, start, end = index
        ratings = {target: self._ratings(target, index, where) for target in self._targets}
        labels = {target: math.fsum(values) / len(values) for target, values in ratings.items() if values}
        raters = {target: ratings[target] for target in self._rated}
        path = self._header.root / file
        folder = folder_of_row(self._folders, path.parent, where, where.split()[0])
        audio = folder.find_any_ending(path.name)
        if audio is None:
            raise RowError("missing audio", file)
        votes = Counter(self._of("category", index, where)).most_common(2)
        category = votes[0][0] if votes and (len(votes) == 1 or votes[0][1] > votes[1][1]) else None
        return Utterance(
            key=key,
            audio=audio,
            segment_s=None if end is None else (start / 1e9, end / 1e9),
            split=self._split(index, where),
            labels=labels,
            scale=self.scale,
            transcript=" ".join(self._only("text", index, where).split()),
            speaker=self._only("speaker", index, where) or None,
            gender=self._only("gender", index, where) or None,
            category=category,
            label_variance=variances_of(raters, labels),
            num_raters=max(map(len, raters.values())) if raters else None,
        )

    def _ratings(self, target: str, index: Index, where: str) -> list[float]:
        try:
            return [parse_label(cell, self._scales[target]) for cell in self._of(f"target {target}", index, where)]
        except ValueError as error:
            raise RowError(f"{where}: {target} {error}", where.split()[0]) from error

    def _only(self, name: str, index: Index, where: str) -> str:
        """The one value of a fact; "" where there is none."""
        values = sorted(set(self._of(name, index, where)))
        if len(values) > 1:
            raise RowError(f"{where}: {name} is {' and '.join(map(printable, values[:3]))}", where.split()[0])
        return values[0] if values else ""

    def _of(self, name: str, index: Index, where: str) -> list[str]:
        """Cells of a segment; failing that, of its file."""
        cells = self._cells[name].get(index) or self._cells[name].get((index[0], 0, None), [])
        for cell in cells:
            fault = text_fault(" ".join(cell.split()) if name == "text" else cell)
            if fault:
                raise RowError(f"{where}: {name} {fault}", where.split()[0])
        return cells

    def _split(self, index: Index, where: str) -> str:
        splits = sorted(self._splits.get(index) or self._splits.get((index[0], 0, None), ()))
        if len(splits) > 1:
            raise RowError(f"{where}: in the splits {' and '.join(splits)}", where.split()[0])
        return splits[0] if splits else OTHER if self._splits else WHOLE


def _key(index: Index) -> str:
    file, start, end = index
    return file if end is None else f"{file}#t={start / 1e9!r},{end / 1e9!r}"
