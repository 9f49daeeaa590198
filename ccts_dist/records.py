"""The records that go from stage to stage, and the words for them.

Axis words in tensor annotations: ``batch`` utterances, ``samples`` of audio, ``frames`` of an encoder, ``tokens`` of a
transcript, ``hidden`` features, ``dim`` emotion dimensions (or the named targets of a run).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ccts_dist.device.transfer import queued

DIMENSIONS = ("activation", "valence", "dominance")
"""The order of the emotion dimensions, everywhere. Index by name: ``DIMENSIONS.index("valence")``."""

VARIANCE = ".variance"
"""Ending of the name of a target that is the variance of another one's raters: see ``varied_target``."""

SHARE = ".share"
"""What a label's name ends in that is the share of the raters who gave one answer: "A.share" of the category A,
"valence.7.share" of the grade 7. It is on 0..1 whatever the scale."""

SAMPLE_RATE_HZ = 16_000
"""Sample rate of all audio in shards and models; other rates are resampled when shards are built."""


def varied_target(target: str) -> str | None:
    """Whose raters' variance a target is: "valence" of "valence.variance"; None for a target that is a rating."""
    return target.removesuffix(VARIANCE) if target.endswith(VARIANCE) and target != VARIANCE else None


def is_rating(target: str) -> bool:
    """True for a target on the corpus's own scale; False for a variance or a share of raters."""
    return varied_target(target) is None and not target.endswith(SHARE)


def factor_and_offset(target: str, scale: tuple[float, float]) -> tuple[float, float]:
    """What brings a target's 0..1 to the scale of its ratings: a variance grows with the square, a share stays."""
    low, high = scale
    if target.endswith(SHARE):
        return 1.0, 0.0
    return (high - low, low) if varied_target(target) is None else ((high - low) ** 2, 0.0)


def mapped_category(category: str | None, category_map: Mapping[str, str]) -> str | None:
    """A corpus's category by its name in ``model.category_map``; None for one that is mapped to none."""
    return (category_map.get(category, category) or None) if category is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One recording as a corpus reader yields it, before its audio has been opened."""

    key: str
    """Unique in the corpus; any Unicode text without control characters."""

    audio: Path
    """Audio file in any format libsndfile reads."""

    segment_s: tuple[float, float] | None = None
    """Beginning and end within ``audio``, in seconds; None for all of it."""

    split: str
    """Named group of utterances, as the corpus calls it: "Train", "Development", "Test1"."""

    labels: Mapping[str, float]
    """Mean rating per target on 0..1; a target nobody rated is absent."""

    scale: tuple[float, float]
    """The corpus's own rating scale (lowest, highest); ``rating = low + label * (high - low)``."""

    transcript: str = ""
    transcript_confidence: float | None = None
    """0..1, when a speech recognizer read the transcript; None when it is the corpus's own."""

    speaker: str | None = None
    gender: str | None = None
    category: str | None = None
    """Categorical emotion as the corpus spells it."""

    label_variance: Mapping[str, float] = field(default_factory=dict)
    """Population variance of the raters per target, on 0..1 ratings; absent where unknown."""

    num_raters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An utterance that a reader or the builder omitted, and why."""

    key: str
    reason: str
    source: str
    """The file that was at fault, relative to the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOutput:
    """Output of a teacher for one utterance, as cached."""

    embedding: Float32[np.ndarray, " hidden"]
    prediction: Float32[np.ndarray, " dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The fit of labels on teacher predictions that decides who is distilled (paper, section on the condition).

    Residual of dimension j: ``r_j = w_j * prediction_j + b_j - label_j``.
    """

    targets: tuple[str, ...]
    w: tuple[float, ...]
    b: tuple[float, ...]
    residual_std: tuple[float, ...]
    """Standard deviation of the residuals over the fitted rows; divides by n."""

    num_rows: tuple[int, ...]
    """Labelled training utterances that the fit of each dimension has seen."""

    splits: tuple[str, ...]
    """The training splits the fit comes from, and no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBatch:
    """Cached teacher outputs beside a ``Batch``, row for row."""

    embedding: Float[Tensor, "batch hidden"]
    prediction: Float[Tensor, "batch dim"]
    admitted: Bool[Tensor, " batch"] | None = None
    """Decisions of a gate that looks at keys or transcripts; None with one that looks at residuals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Frames of a ``Batch`` from a frozen encoder, row for row, padded with zeros."""

    frames: Float[Tensor, "batch frames features"]
    num_frames: Int64[Tensor, " batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The utterances of one forward pass on one rank (a micro-batch), padded.

    Rows of weight 0 fill a micro-batch that would be empty or stand for damaged utterances; they count nowhere.
    """

    keys: tuple[str, ...]
    audio: Float[Tensor, "batch samples"]
    """Waveform on -1..1 at 16 kHz, zero after each row's last sample; a single sample where only frames are read."""

    num_samples: Int64[Tensor, " batch"]
    labels: Float[Tensor, "batch dim"]
    """0..1, NaN where nobody rated."""

    weight: Float[Tensor, " batch"]
    """1 for an utterance that counts, 0 for one that does not."""

    tokens: Int64[Tensor, "batch tokens"] | None = None
    """Transcript as token numbers, 0 after each row's last; None when the model has no text branch."""

    num_tokens: Int64[Tensor, " batch"] | None = None
    categories: Int64[Tensor, " batch"] | None = None
    """Number of the categorical emotion, -1 where it is unknown; None when none were asked for."""

    votes: Float[Tensor, "batch categories"] | None = None
    """Share of the raters' votes for each category, adding up to 1, NaN where unknown; None when not asked for."""

    teacher: TeacherBatch | None = None
    frames: Mapping[str, FrameBatch] = field(default_factory=dict)
    """By branch of the model, of those whose encoder is frozen and was run before."""

    damaged: tuple[str, ...] = ()
    """In words, what was wrong with the utterances that have weight 0 because they are damaged."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with every tensor on ``device`` but ``num_samples`` and ``num_tokens``; the copies are queued.

        From lengths follow shapes and masks, which the host has to know: they stay there, and a model queues a copy of
        its own.
        """
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and f.name not in ("num_samples", "num_tokens"):
                moved[f.name] = queued(value, device)
        if self.teacher is not None:
            admitted = self.teacher.admitted
            moved["teacher"] = TeacherBatch(
                embedding=queued(self.teacher.embedding, device),
                prediction=queued(self.teacher.prediction, device),
                admitted=None if admitted is None else queued(admitted, device),
            )
        if self.frames:
            moved["frames"] = {
                branch: FrameBatch(frames=queued(one.frames, device), num_frames=queued(one.num_frames, device))
                for branch, one in self.frames.items()
            }
        return replace(self, **moved)

    @property
    def padding(self) -> float:
        """Share of the batch's samples that is padding."""
        return 1.0 - float(self.num_samples.sum()) / max(1, len(self.keys) * int(self.num_samples.max()))


def padded_samples(batch: Batch) -> int:
    """Samples of a batch's audio, padding included, also where only frames of it are read."""
    return len(batch.keys) * max(int(batch.num_samples.max()), batch.audio.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatches:
    """One optimizer step's micro-batches on this rank, in order."""

    epoch: int
    step: int
    """Position within the epoch, from 0."""

    micro_batches: tuple[Batch, ...]
    """Micro-batches, equally many on every rank."""
