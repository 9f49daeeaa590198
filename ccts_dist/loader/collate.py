"""Make one padded ``Batch`` of the utterances of a part."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from ccts_dist.batches import Batch, FrameBatch, TeacherBatch
from ccts_dist.errors import FetchError, ShardError, TeacherError
from ccts_dist.loader.decode import read_audio, read_label_variance, read_transcript
from ccts_dist.loader.micro_batches import MicroBatch
from ccts_dist.loader.row_gate import RowGate
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.loader.waveform_reader import Crop, WaveformReader
from ccts_dist.records import SHARE, TeacherOutput, mapped_category, varied_target
from ccts_dist.shards.shard_set import ShardSet

EncodeText = Callable[[str], Sequence[int]]
"""A transcript to token numbers."""


@runtime_checkable
class TeacherSource(Protocol):
    """Source of cached teacher outputs."""

    @property
    def embedding_size(self) -> int:
        """Features of an embedding."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that it predicts."""
        ...

    def read(self, shard: str, row: int, key: str, /) -> TeacherOutput:
        """The teacher's output for one utterance, which is row ``row`` of its shard."""
        ...

    def prefetch(self, shards: Sequence[str], /) -> None:
        """Fetch what it has for these shards ahead of need; nothing to do where it is here."""
        ...

    def bytes_to_fetch(self, shards: Sequence[str], /) -> int:
        """Size of these shards' files, in bytes; 0 where they are here."""
        ...


@runtime_checkable
class FrameSource(Protocol):
    """Source of a frozen encoder's frames."""

    @property
    def features(self) -> int:
        """Number of features of a frame."""
        ...

    def read(self, shard: str, row: int, key: str, /) -> Float32[np.ndarray, "frames features"]:
        """Those of one utterance, which is row ``row`` of its shard."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpec:
    """The specification of what is read of an utterance, and from where."""

    shards: ShardSet
    targets: tuple[str, ...] = ()
    """Names of the labels, in the order of a batch's columns; some may be variances of raters."""

    categories: tuple[str, ...] = ()
    """Names of the categories, in the order of their numbers; without them none are read."""

    has_votes: bool = False
    """True if the labels named as the categories are read as the shares of votes for them."""

    category_map: Mapping[str, str] = field(default_factory=dict)
    """See ``ModelConfig.category_map``."""

    encode_text: EncodeText | None = None
    """For models with a text branch; without it no transcript is read."""

    teacher: TeacherSource | None = None
    """For students; without it a batch has no teacher outputs."""

    gate: RowGate | None = None
    """Beside a teacher: decides by key or transcript who is distilled; without it residuals do, in the loss."""

    frames: Mapping[str, FrameSource] = field(default_factory=dict)
    """By branch of the model, for those whose encoder was run before."""

    has_audio: bool = True
    """True if audio is decoded; without, a batch has one sample of silence in its place."""

    waveform_reader: WaveformReader | None = None
    """Reader of crops of the audio; without it all of the audio is read, as it is."""

    pad_multiple: int = 1
    """Samples of which the padded length is a multiple."""

    skip_damaged: bool = False
    """Give a damaged utterance weight 0, and report so in the batch, instead of raising."""

    @property
    def has_variances(self) -> bool:
        """True if some target is the variance of raters, which the index does not hold."""
        return any(varied_target(target) is not None for target in self.targets)


@dataclass(frozen=True, slots=True)
class _Read:
    """The data of one utterance, beside its audio."""

    tokens: Sequence[int]
    teacher: TeacherOutput | None
    variance: Mapping[str, float]
    """Variance of the raters, where some target is one and the corpus gave it."""

    frames: Mapping[str, Float32[np.ndarray, "frames features"]]
    admitted: bool = False


def read_batch(part: MicroBatch, spec: ReadSpec, epoch: int = 0) -> Batch:
    """Read the utterances of ``part`` into one padded batch, as they are to be read in ``epoch``.

    Raises:
        ShardError: a member is damaged.
        TeacherError: an utterance has no sound teacher output.
        FetchError: a shard cannot be fetched; also when damaged utterances are skipped.
    """
    rows = part.rows
    crops = [None if spec.waveform_reader is None else spec.waveform_reader.crop(row, epoch) for row in rows]
    lengths = [row.num_samples if crop is None else crop.num_samples for row, crop in zip(rows, crops, strict=True)]
    audio = _room(len(rows), rounded_up(max(lengths), spec.pad_multiple) if spec.has_audio else 1)
    read: list[_Read] = []
    damaged: dict[int, str] = {}
    for number, (row, place) in enumerate(zip(rows, audio.numpy(), strict=True)):
        place[lengths[number] :] = 0.0
        try:
            read.append(_read_row(row, place[: lengths[number]], spec, crops[number], epoch))
        except (ShardError, TeacherError) as error:
            if not spec.skip_damaged or isinstance(error, FetchError):
                raise
            place[:] = 0.0
            read.append(_nothing(spec))
            damaged[number] = str(error)
    weight = torch.full((len(rows),), float(part.counts))
    weight[list(damaged)] = 0.0
    tokens = num_tokens = None
    if spec.encode_text is not None:
        tokens, num_tokens = pad_tokens([one.tokens for one in read])
    return Batch(
        keys=tuple(row.key for row in rows),
        audio=audio,
        num_samples=torch.tensor(lengths),
        labels=_labels(rows, spec.targets, read),
        weight=weight,
        tokens=tokens,
        num_tokens=num_tokens,
        categories=_categories(rows, spec) if spec.categories else None,
        votes=_votes(rows, spec.categories) if spec.has_votes else None,
        teacher=None if spec.teacher is None else _teacher_batch(read, spec),
        frames={branch: _pad_frames([one.frames[branch] for one in read]) for branch in spec.frames},
        damaged=tuple(damaged.values()) if part.counts else (),
    )


def pad_tokens(encoded: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "batch tokens"], Int64[Tensor, " batch"]]:
    """Token numbers padded with zeros, and how many each row has."""
    num_tokens = [len(tokens) for tokens in encoded]
    padded = torch.zeros(len(encoded), max(num_tokens), dtype=torch.int64)
    for place, tokens in zip(padded, encoded, strict=True):
        place[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return padded, torch.tensor(num_tokens)


def rounded_up(num_samples: int, multiple: int) -> int:
    """The next multiple that is at least so many samples."""
    return -(-num_samples // multiple) * multiple


def _room(num_rows: int, num_samples: int) -> Float32[Tensor, "batch samples"]:
    """Memory for a batch's audio, in a project's error where there is none: other ranks must learn of it.

    A GPU copies from pinned memory without holding up the host; torch keeps such memory and hands it out again.
    """
    try:
        return torch.empty(num_rows, num_samples, pin_memory=torch.cuda.is_available())
    except RuntimeError as error:  # PyTorch has no kind of its own for this
        raise ShardError(
            f"audio of up to {num_samples} samples for {num_rows} utterances does not fit into memory. "
            "Lower batch.micro_batch_size, or run shards/check.py if no utterance is so long."
        ) from error


def _read_row(
    row: SampleRef, place: Float32[np.ndarray, " samples"], spec: ReadSpec, crop: Crop | None, epoch: int
) -> _Read:
    if not spec.has_audio:
        place[:] = 0.0
    elif spec.waveform_reader is None or crop is None:
        read_audio(spec.shards, row.table, row.row, place)
    else:
        spec.waveform_reader.read(row, crop, epoch, place)
    tokens: Sequence[int] = ()
    if spec.encode_text is not None:
        tokens = spec.encode_text(read_transcript(spec.shards, row.table, row.row))
    teacher = None if spec.teacher is None else spec.teacher.read(row.shard, row.row, row.key)
    variance = read_label_variance(spec.shards, row.table, row.row) if spec.has_variances else {}
    frames = {name: source.read(row.shard, row.row, row.key) for name, source in spec.frames.items()}
    admitted = spec.gate is not None and spec.gate.admits(spec.shards, row.table, row.row)
    return _Read(tokens, teacher, variance, frames, admitted)


def _nothing(spec: ReadSpec) -> _Read:
    """In the place of a damaged utterance: the tokens of silence, and a teacher that states nothing."""
    tokens = () if spec.encode_text is None else spec.encode_text("")
    frames = {branch: np.zeros((1, source.features), np.float32) for branch, source in spec.frames.items()}
    if spec.teacher is None:
        return _Read(tokens, None, {}, frames)
    embedding = np.zeros(spec.teacher.embedding_size, np.float32)
    prediction = np.zeros(len(spec.teacher.targets), np.float32)
    return _Read(tokens, TeacherOutput(embedding=embedding, prediction=prediction), {}, frames)


def _labels(rows: Sequence[SampleRef], targets: Sequence[str], read: Sequence[_Read]) -> Float32[Tensor, "batch dim"]:
    def label(target: str, row: SampleRef, one: _Read) -> float:
        varied = varied_target(target)
        return float(row.table.labels[target][row.row]) if varied is None else one.variance.get(varied, math.nan)

    labels = [[label(target, row, one) for target in targets] for row, one in zip(rows, read, strict=True)]
    return torch.tensor(labels, dtype=torch.float32)


def _categories(rows: Sequence[SampleRef], spec: ReadSpec) -> Int64[Tensor, " batch"]:
    numbers = {name: number for number, name in enumerate(spec.categories)}
    names = (mapped_category(row.table.categories[row.row], spec.category_map) for row in rows)
    return torch.tensor([numbers.get(name or "", -1) for name in names])


def _votes(rows: Sequence[SampleRef], categories: Sequence[str]) -> Float32[Tensor, "batch categories"]:
    names = vote_labels(categories, rows[0].table.labels)
    labels = [[float(row.table.labels[name][row.row]) for name in names] for row in rows]
    return torch.from_numpy(vote_shares(np.array(labels))).float()


def vote_labels(categories: Sequence[str], known: Container[str]) -> list[str]:
    """Names of the labels with the votes for some categories: NAME.share, or NAME where a set has no such label."""
    return [name if (name := category + SHARE) in known else category for category in categories]


def vote_shares(labels: Float64[np.ndarray, "rows categories"]) -> Float64[np.ndarray, "rows categories"]:
    """Distribution of each row's votes over the categories that a model knows; NaN where there are none for them.

    >>> vote_shares(np.array([[0.2, 0.6], [0.0, 0.0], [0.5, np.nan]]))
    array([[0.25, 0.75],
           [ nan,  nan],
           [ nan,  nan]])
    """
    total = labels.sum(axis=1, keepdims=True)
    return labels / np.where(total > 0, total, np.nan)


def _pad_frames(rows: Sequence[Float32[np.ndarray, "_ features"]]) -> FrameBatch:
    padded = torch.zeros(len(rows), max(len(row) for row in rows), rows[0].shape[1])
    for place, row in zip(padded.numpy(), rows, strict=True):
        place[: len(row)] = row
    return FrameBatch(frames=padded, num_frames=torch.tensor([len(row) for row in rows]))


def _teacher_batch(read: Sequence[_Read], spec: ReadSpec) -> TeacherBatch:
    outputs = [one.teacher for one in read if one.teacher is not None]
    return TeacherBatch(
        embedding=_stack([output.embedding for output in outputs]),
        prediction=_stack([output.prediction for output in outputs]),
        admitted=None if spec.gate is None else torch.tensor([one.admitted for one in read]),
    )


def _stack(arrays: Sequence[Float32[np.ndarray, " columns"]]) -> Float32[Tensor, "batch columns"]:
    return torch.from_numpy(np.stack(arrays))
