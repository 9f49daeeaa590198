"""Corpora whose file names state everything: who speaks, which sentence, with which emotion."""

import filecmp
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccts_dist.corpus.cells import RowError, printable
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.folders import find_audio, listing
from ccts_dist.corpus.speaker_splits import split_by_speaker
from ccts_dist.errors import CorpusError
from ccts_dist.records import Rejected, Utterance


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The facts of one recording, but for its split."""

    speaker: str
    category: str | None
    transcript: str = ""
    gender: str | None = None
    group: str = ""
    """Whom ``split_by_speaker`` balances."""

    labels: Mapping[str, float] = field(default_factory=dict)
    """On 0..1."""

    label_variance: Mapping[str, float] = field(default_factory=dict)
    num_raters: int | None = None


Describe = Callable[[Path], Recording | None]
"""The facts of a file, whose path is relative to the corpus; None where its name is not of the corpus. ``RowError``
for a name of the corpus that cannot be right."""

Assign = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Group by speaker to split by speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCorpus:
    """Name and labels of a corpus of named recordings."""

    name: str
    release: str
    example: str
    """A path of the corpus, for the error of a folder that holds none."""

    scale: tuple[float, float] = (0.0, 1.0)
    targets: tuple[str, ...] = ()


def read_recordings(
    root: str | Path,
    corpus: NamedCorpus,
    describe: Describe,
    *,
    folder: Path | None = None,
    assign: Assign = split_by_speaker,
) -> Corpus:
    """Every audio file of a folder whose name is one of the corpus, as an ``Utterance`` or a ``Rejected``.

    The key is the file's name without its ending; of two files of one key the first stays. Downloads hold whole copies
    of themselves in a folder within, so a second file of the same bytes is listed as ``unnamed``, as are audio files
    with other names. Decodes no audio.

    Args:
        root: of the corpus.
        describe: names what a name means.
        folder: looked through to the fifth level; None for ``root``.
        assign: gives each speaker a split.

    Raises:
        CorpusError: no such folder, or no file of the corpus in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder. Give the folder that holds {corpus.example}.")
    found: list[tuple[Path, Recording | RowError]] = []
    unnamed: list[Path] = []
    first: dict[str, Path] = {}
    for path in find_audio(folder or root):
        try:
            recording = describe(path.relative_to(root))
        except RowError as error:
            recording = error
        if recording is None or (path.stem in first and _same_bytes(first[path.stem], path)):
            unnamed.append(path)
        else:
            first.setdefault(path.stem, path)
            found.append((path, recording))
    if not found:
        raise CorpusError(f"{root}: looked for audio such as {corpus.example} and found {listing(root)}.")
    groups = {one.speaker: one.group for _, one in found if isinstance(one, Recording)}
    return Corpus(
        name=corpus.name,
        release=corpus.release,
        scale=corpus.scale,
        targets=corpus.targets,
        utterances=tuple(_utterances(root, corpus, found, assign(groups) if groups else {})),
        unnamed=tuple(unnamed),
    )


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False  # the builder names what cannot be read


def _utterances(
    root: Path, corpus: NamedCorpus, found: Iterable[tuple[Path, Recording | RowError]], splits: Mapping[str, str]
) -> Iterable[Utterance | Rejected]:
    seen: dict[str, str] = {}
    for path, one in found:
        key, source = path.stem, path.relative_to(root).as_posix()
        reason = one.reason if isinstance(one, RowError) else ""
        if not reason and key in seen:
            reason = f"duplicate of {seen[key]}, which comes first"
        if reason or isinstance(one, RowError):
            yield Rejected(key=printable(key), reason=reason, source=source)
            continue
        seen[key] = source
        yield Utterance(
            key=key,
            audio=path,
            split=splits[one.speaker],
            labels=one.labels,
            scale=corpus.scale,
            transcript=one.transcript,
            speaker=one.speaker,
            gender=one.gender,
            category=one.category,
            label_variance=one.label_variance,
            num_raters=one.num_raters,
        )
