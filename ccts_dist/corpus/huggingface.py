"""Any data set that Hugging Face's ``datasets`` reads: on its hub, a folder, files of Parquet, audio, WebDataset.

Rows are streamed; their audio is not decoded here but left to the builder, which holds it to its own limits. Audio that
lies within rows is written to a folder of its own first, as builders read files. No code of a data set runs.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccts_dist.corpus.cells import RowError, has_bad_bytes, parse_label, printable, text_fault
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import is_audio
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.limits import LIMITS
from ccts_dist.records import Rejected, Utterance

_MAGIC = (
    (0, b"RIFF", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (0, b"\xff\xfb", ".mp3"),
)
_REMOTE = ("hf://", "https://", "http://")
_SAVED = ("dataset_dict.json", "state.json")
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".jsonl": "json", ".json": "json"}
"""Builder names of a single file, by its ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a data set by their meaning; ``json.emotion`` is the field ``emotion`` of the column ``json``."""

    audio: str = "audio"
    key: str | None = None
    """None numbers the rows: ``train-00000012``."""

    text: str | None = None
    category: str | None = None
    speaker: str | None = None
    gender: str | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    """Column by target."""

    def named(self) -> list[str]:
        """All columns that are read."""
        optional = (self.key, self.text, self.category, self.speaker, self.gender, *self.targets.values())
        return list(dict.fromkeys([self.audio, *(column for column in optional if column)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """One split of a data set."""

    name: str
    rows: Any  # a datasets.IterableDataset or datasets.Dataset
    labels: Mapping[str, Sequence[str]]
    """Names of the classes of each ClassLabel column."""

    paths: Mapping[str, Sequence[str]]
    """The column, and the fields within it, by the name that was given."""


def read_huggingface(
    source: str,
    *,
    columns: Columns,
    audio_folder: Path,
    splits: Sequence[str] = (),
    config: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    release: str = "unknown",
    scale: tuple[float, float] = (1.0, 7.0),
) -> Corpus:
    """Every row of a data set as an ``Utterance`` or a ``Rejected``.

    Splits keep their names ("train", "validation"). Numbers of a ClassLabel become its names, -1 no
    category. A target without a number is omitted from ``labels``.

    Args:
        source: a name on the hub (``owner/name``), a folder, one that ``save_to_disk`` wrote, or a file.
        columns: what to read.
        audio_folder: where audio goes that has no file of its own; what lies there already is kept if it is the same.
        splits: to read; none for all.
        config: of the data set, where it has several.
        revision: of a data set on the hub.
        name: of the corpus; None for the source's last part.
        release: of the corpus, for the manifest.
        scale: lowest and highest rating, the same for all targets.

    Raises:
        ConfigError: ``datasets`` is not installed, or an option off its range.
        CorpusError: it cannot be read, or lacks a column or a split.
    """
    scale = (float(scale[0]), float(scale[1]))
    if not (math.isfinite(scale[0]) and math.isfinite(scale[1]) and scale[0] < scale[1]):
        raise ConfigError(f"scale {scale[0]:g} {scale[1]:g}: must be two numbers, the lower one first.")
    opened = _open(source, config=config, revision=revision, splits=splits, columns=columns)
    given: list[Utterance | Rejected] = []
    for split in opened:
        reading = _Reading(source, split, columns, scale, audio_folder)
        given += reading.utterances()
    if not given:
        raise CorpusError(f"{source}: no row. Name a data set that has some.")
    return Corpus(
        name=name or printable(Path(source).stem),
        release=release,
        scale=scale,
        targets=tuple(columns.targets),
        utterances=tuple(given),
    )


def _open(
    source: str, *, config: str | None, revision: str | None, splits: Sequence[str], columns: Columns
) -> list[_Rows]:
    """The splits of a data set, with the audio column as it is stored."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("hf: needs the package datasets, which is not there: pip install 'ccts-dist[hf]'") from error
    try:
        loaded = _load(datasets, source, config, revision)
        found = loaded if isinstance(loaded, dict) else {str(getattr(loaded, "split", None) or "train"): loaded}
        missing = [split for split in splits if split not in found]
        if missing:
            raise CorpusError(f"{source}: looked for the split {missing[0]!r} and found {', '.join(map(str, found))}.")
        return [_prepared(datasets, source, str(split), found[split], columns) for split in splits or found]
    except _unreadable(datasets) as error:
        raise CorpusError(f"{source}: cannot be read as a data set ({_in_words(error)}).") from error


def _load(datasets: Any, source: str, config: str | None, revision: str | None) -> Any:
    path = Path(source)
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(source)
    if path.is_file():
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise CorpusError(f"{source}: ends in none of {', '.join(_FORMATS)}. Give a folder, or such a file.")
        return datasets.load_dataset(kind, data_files={"train": source}, streaming=True)
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise CorpusError(f"{source}: no such folder or file, and no name on the hub. Give one of them.")
    return datasets.load_dataset(source, config, revision=None if path.is_dir() else revision, streaming=True)


def _prepared(datasets: Any, source: str, split: str, rows: Any, columns: Columns) -> _Rows:
    if rows.features is None:  # a stream without a schema
        rows = rows._resolve_features()
    paths = {name: (name,) if name in rows.features else tuple(name.split(".")) for name in columns.named()}
    kinds = {name: _kind(source, rows.features, name, path) for name, path in paths.items()}
    for name, kind in kinds.items():
        if name != columns.audio and isinstance(kind, Mapping | datasets.List | datasets.LargeList):
            raise CorpusError(f"{source}: the column {name!r} holds {_held(name, kind)}. Name one of text or numbers.")
    rows = rows.select_columns(list(dict.fromkeys(path[0] for path in paths.values())))
    if isinstance(kinds[columns.audio], datasets.Audio) and len(paths[columns.audio]) == 1:
        rows = rows.cast_column(columns.audio, datasets.Audio(decode=False))
    labels = {name: kind.names for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    return _Rows(name=split, rows=rows, labels=labels, paths=paths)


def _kind(source: str, features: Mapping[str, Any], name: str, path: Sequence[str]) -> Any:
    """The type of a column, or of a field within one."""
    kind: Any = features
    for part in path:
        if not isinstance(kind, Mapping) or part not in kind:
            there = [one for column, held in features.items() for one in _names(column, held)]
            raise CorpusError(f"{source}: looked for the column {name!r} and found {', '.join(map(printable, there))}.")
        kind = kind[part]
    return kind


def _names(column: str, kind: Any) -> list[str]:
    """A column's name, or those of its fields."""
    return [f"{column}.{field}" for field in kind] if isinstance(kind, Mapping) else [column]


def _held(column: str, kind: Any) -> str:
    return f"fields ({printable(', '.join(_names(column, kind)))})" if isinstance(kind, Mapping) else "lists"


def _unreadable(datasets: Any) -> tuple[type[Exception], ...]:
    """Errors that ``datasets`` raises for what it cannot read or fetch."""
    return (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
        NotImplementedError,
        datasets.exceptions.DatasetsError,
    )


def _in_words(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))[:300] or type(error).__name__


class _Reading:
    """Rows of one split to utterances."""

    def __init__(
        self, source: str, split: _Rows, columns: Columns, scale: tuple[float, float], audio_folder: Path
    ) -> None:
        self._source, self._split, self._columns, self._scale = source, split, columns, scale
        self._local = Path(source).resolve() if Path(source).exists() else None
        self._folder = audio_folder / "".join(c if c.isalnum() or c in "-_" else "%" for c in split.name)

    def utterances(self) -> Iterator[Utterance | Rejected]:
        """Every row, in its order."""
        import datasets

        seen: dict[str, int] = {}
        rows = enumerate(self._split.rows)
        while True:
            try:
                number, row = next(rows)
            except StopIteration:
                return
            except _unreadable(datasets) as error:
                where = f"{self._source}: split {self._split.name} cannot be read to its end"
                raise CorpusError(f"{where} ({_in_words(error)}). Fetch it again.") from error
            source = f"{self._split.name} row {number}"
            key = f"{self._split.name}-{number:08d}"
            try:
                if self._columns.key is not None:
                    key = self._text(row, self._columns.key, source)
                if not key:
                    raise RowError(f"{self._columns.key} is empty", source)
                if key in seen:
                    raise RowError(f"duplicate of row {seen[key]}, which comes first", source)
                seen[key] = number
                yield self._utterance(row, key, number, source)
            except RowError as error:
                yield Rejected(key=printable(key) or source, reason=error.reason, source=error.source)

    def _utterance(self, row: Mapping[str, Any], key: str, number: int, source: str) -> Utterance:
        columns = self._columns
        labels = {}
        for target, column in columns.targets.items():
            label = self._label(self._cell(row, column), column, source)
            if label is not None:
                labels[target] = label
        texts = {
            name: self._text(row, column, source)
            for name, column in (
                ("category", columns.category),
                ("speaker", columns.speaker),
                ("gender", columns.gender),
            )
        }
        transcript = "" if columns.text is None else self._text(row, columns.text, source, any_character=True)
        return Utterance(
            key=key,
            audio=self._audio(self._cell(row, columns.audio), number, source),
            split=self._split.name,
            labels=labels,
            scale=self._scale,
            transcript=" ".join(transcript.split()),
            speaker=texts["speaker"].strip() or None,
            gender=texts["gender"].strip() or None,
            category=texts["category"].strip() or None,
        )

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        """The value of a column or of a field in one; None for a field of nothing."""
        cell: Any = row
        for part in self._split.paths[column]:
            cell = None if cell is None else cell.get(part)
        return cell

    def _label(self, cell: object, column: str, source: str) -> float | None:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell == "":
            return None
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            raise RowError(f"{column} is no number but {printable(str(cell))[:60]}", source)
        try:
            return parse_label(str(cell), self._scale)
        except ValueError as error:
            raise RowError(f"{column} {error}", source) from error

    def _text(self, row: Mapping[str, Any], column: str | None, source: str, *, any_character: bool = False) -> str:
        """A text cell, or the name of a class; "" where there is none."""
        cell = None if column is None else self._cell(row, column)
        if cell is None or column is None:
            return ""
        names = self._split.labels.get(column)
        if names is not None:
            if not (isinstance(cell, int) and -1 <= cell < len(names)):
                raise RowError(f"{column} {cell} is the number of no class", source)
            cell = "" if cell < 0 else names[cell]
        if isinstance(cell, bool) or not isinstance(cell, str | int):
            raise RowError(f"{column} is no text but {printable(json.dumps(cell, default=str)[:60])}", source)
        text = str(cell)
        fault = text_fault(text)
        if any_character:
            fault = "is not valid Unicode" if has_bad_bytes(text) else "holds NUL" if "\0" in text else ""
        if fault:
            raise RowError(f"{column} {fault}", source)
        return text

    def _audio(self, cell: object, number: int, source: str) -> Path:
        """The file of a row's audio; written if the row holds its bytes."""
        data, path = cell, None
        if isinstance(cell, Mapping):
            data, path = cell.get("bytes"), cell.get("path")
        elif isinstance(cell, str):
            data, path = None, cell
        if data is None and path:
            local = self._own_file(str(path))
            if local is not None:
                return local
            data = self._fetched(str(path), source)
        if not isinstance(data, bytes) or not data:
            raise RowError(f"{self._columns.audio} holds no audio", source)
        if len(data) > LIMITS["flac member"]:
            raise RowError(
                f"{self._columns.audio} has {len(data):,} bytes, more than {LIMITS['flac member']:,}", source
            )
        return self._written(data, str(path or ""), number)

    def _own_file(self, path: str) -> Path | None:
        """A file of the data set's own folder; None for others, which a row has no business to name."""
        if self._local is None or "\0" in path:
            return None
        folder = self._local if self._local.is_dir() else self._local.parent
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder) and file.is_file() else None

    def _fetched(self, path: str, source: str) -> bytes:
        """The bytes of audio that a data set on the hub keeps in files beside its rows."""
        if self._local is not None or not path.startswith(_REMOTE):
            raise RowError("missing audio: no file of the data set", source)
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                return file.read(LIMITS["flac member"] + 1)  # pyright: ignore[reportAttributeAccessIssue]
        except (OSError, ValueError) as error:
            raise RowError(f"missing audio: {_in_words(error)}", source) from error

    def _written(self, data: bytes, path: str, number: int) -> Path:
        named = os.path.splitext(path)[1].lower()
        guessed = next((suffix for at, magic, suffix in _MAGIC if data[at : at + len(magic)] == magic), ".audio")
        file = self._folder / f"{number:08d}{named if is_audio(path) else guessed}"
        if not (file.is_file() and file.stat().st_size == len(data) and file.read_bytes() == data):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
            partial.write_bytes(data)
            os.replace(partial, file)
        return file
