"""EmoBox's published partitions of many corpora: JSON lines per fold, which name audio that lies elsewhere.

Layout: Ma and others (2024), https://github.com/emo-box/EmoBox: ``data/NAME/fold_1/NAME_train_fold_1.jsonl``, the same
with ``test`` and perhaps ``valid``; a line has ``key``, ``dataset``, ``wav`` (``downloads/emodb/wav/03a01Fa.wav``),
``emo`` and, where an utterance is a part of its file, ``start_time`` and ``end_time`` in seconds. The map
``data/NAME/label_map.json`` gives each ``emo`` its name.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ccts_dist.corpus.cells import RowError, json_row, printable, text_fault, text_lines
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import AudioFolder, folder_of_row, listing
from ccts_dist.errors import CorpusError
from ccts_dist.limits import finite_number, read_limited
from ccts_dist.records import Rejected, Utterance

SPLITS = ("train", "valid", "test")
LABELS = "label_map.json"

_SCALE = (0.0, 1.0)
"""There are no ratings."""


def read_emobox(fold: str | Path, *, audio: str | Path, release: str = "unknown") -> Corpus:
    """Every line of a fold as an ``Utterance`` or a ``Rejected``; splits are train, test and, if there is one, valid.

    Categories are named by the label map; without one they stay as the lines spell them. There are no speakers and no
    transcripts. Opens no audio.

    Args:
        fold: such as ``data/emodb/fold_1``.
        audio: folder that ``wav`` is relative to: the one that holds ``downloads``.
        release: of the corpus, for the manifest.

    Raises:
        CorpusError: the fold lacks its files, or the label map is none.
    """
    fold, audio = Path(fold), Path(audio)
    for folder in (fold, audio):
        if not folder.is_dir():
            raise CorpusError(f"{folder}: no such folder. Give a fold such as data/emodb/fold_1, and --audio.")
    files = {split: sorted(fold.glob(f"*_{split}_fold*.jsonl")) for split in SPLITS}
    for split in ("train", "test"):
        if len(files[split]) != 1:
            raise CorpusError(f"{fold}: looked for one *_{split}_fold*.jsonl and found {listing(fold)}.")
    reader = _Reader(audio, _read_names(fold))
    utterances = tuple(one for split in SPLITS for path in files[split] for one in reader.read(path, split))
    if not utterances:
        raise CorpusError(f"{fold}: no line in its files. Restore them from EmoBox's repository.")
    name = files["train"][0].name.partition("_train_fold")[0]
    return Corpus(name=printable(name), release=release, scale=_SCALE, targets=(), utterances=utterances)


def _read_names(fold: Path) -> dict[str, str]:
    """Name of each category; empty without a label map."""
    path = next((folder / LABELS for folder in (fold, fold.absolute().parent) if (folder / LABELS).is_file()), None)
    if path is None:
        return {}
    try:
        names = json.loads(read_limited(path, "config.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read ({printable(str(error))[:200]}). Restore it.") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CorpusError(f"{path}: is no map from labels to names. Restore it from EmoBox's repository.")
    return names


class _Reader:
    def __init__(self, audio: Path, names: Mapping[str, str]) -> None:
        self._audio, self._names = audio, names
        self._folders: dict[Path, AudioFolder] = {}
        self._seen: dict[str, str] = {}

    def read(self, path: Path, split: str) -> Iterator[Utterance | Rejected]:
        """Every line of a file."""
        for line, text in text_lines(path):
            if not text.strip():
                continue
            where, key = f"{path.name} line {line}", ""
            try:
                row = _row(text, where, path.name)
                key = _text(row, "key", where, path.name)
                if key in self._seen:
                    raise RowError(f"{where}: duplicate of {self._seen[key]}, which comes first", path.name)
                self._seen[key] = where
                yield self._utterance(row, key, split, where, path.name)
            except RowError as error:
                yield Rejected(key=printable(key) or where, reason=error.reason, source=error.source)

    def _utterance(self, row: Mapping[str, Any], key: str, split: str, where: str, source: str) -> Utterance:
        label, wav = _text(row, "emo", where, source), _text(row, "wav", where, source)
        if self._names and label not in self._names:
            raise RowError(f"{where}: emo {label!r} is none of {', '.join(map(printable, self._names))}", source)
        audio = self._audio / wav
        if ".." in Path(wav).parts or Path(wav).is_absolute():
            raise RowError(f"{where}: wav {wav!r} leaves the folder of the audio", source)
        found = folder_of_row(self._folders, audio.parent, where, source).find_any_ending(audio.name)
        if found is None:
            raise RowError("missing audio", wav)
        return Utterance(
            key=key,
            audio=found,
            segment_s=_segment(row, where, source),
            split=split,
            labels={},
            scale=_SCALE,
            category=self._names.get(label, label),
        )


def _row(text: str, where: str, source: str) -> Mapping[str, Any]:
    try:
        return json_row(text)
    except ValueError as error:
        raise RowError(f"{where}: {error}", source) from error


def _text(row: Mapping[str, Any], name: str, where: str, source: str) -> str:
    cell = row.get(name)
    if not isinstance(cell, str) or not cell.strip():
        raise RowError(f"{where}: {name} is no text", source)
    fault = text_fault(cell)
    if fault:
        raise RowError(f"{where}: {name} {fault}", source)
    return cell


def _segment(row: Mapping[str, Any], where: str, source: str) -> tuple[float, float] | None:
    start, end = row.get("start_time"), row.get("end_time")
    if start is None and end is None:
        return None
    start_s, end_s = finite_number(start), finite_number(end)
    if start_s is None or end_s is None:
        raise RowError(f"{where}: start_time and end_time are no numbers of seconds", source)
    if not 0 <= start_s < end_s:
        raise RowError(f"{where}: start_time {start_s:g} and end_time {end_s:g} span nothing", source)
    return start_s, end_s
