"""The batches that go from the loader to the model and the losses: tensors, row for row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ccts_dist.device.transfer import queued


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
