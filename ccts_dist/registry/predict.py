"""Emotion of audio files, from a model folder or a registered model."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.model import LoadedModel, load_model
from ccts_dist.records import SAMPLE_RATE_HZ, varied_target
from ccts_dist.shards.audio import MAX_DURATION_S, decode_audio, decode_samples, to_wave

Audio = str | Path | io.BytesIO | Float32[np.ndarray, "_"]  # "_": recordings need not be equally long
"""A file, an opened file, or samples on -1..1 at 16 kHz."""

CATEGORY = "category"
"""In an answer: the likeliest one."""

_BATCH_S = 120.0
"""Padded seconds of one forward pass."""


def load_student(model: str | Path, *, tracking_uri: str = "", device: str | torch.device = "cpu") -> "Student":
    """A speech model ready to predict.

    Args:
        model: a model folder, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; the latter are fetched and checked.
        tracking_uri: server of registered models; "" for the default.
        device: where it shall run.

    Raises:
        ConfigError: no such folder, or a model that needs transcripts.
        RegistryError: unknown in the registry, or altered.
    """
    from ccts_dist.registry.pull import resolve_model

    folder = resolve_model(str(model), tracking_uri=tracking_uri)
    return Student(load_model(folder), name=str(model), device=torch.device(device))


@final
class Student:
    """A speech-only emotion model that takes files and answers on its corpus's scale.

    Args:
        loaded: the model and what it was saved with.
        name: for errors.
        device: where it shall run.
    """

    def __init__(self, loaded: LoadedModel, *, name: str, device: torch.device) -> None:
        if loaded.config.speech is None or loaded.config.text is not None:
            raise ConfigError(
                f"model {name!r} reads transcripts, and there is audio only. Use a speech-only student: "
                "a run whose [model] has no text table."
            )
        self.targets: tuple[str, ...] = loaded.config.targets
        """What it predicts, in the order of its answers."""

        self.categories: tuple[str, ...] = loaded.config.categories
        """Emotions that it tells apart beside the targets; empty for none."""

        self.scale: tuple[float, float] = loaded.scale
        """Lowest and highest rating of its corpus."""

        self._model = loaded.model.eval().to(device)
        self._device = device

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in an answer, in order."""
        return answer_columns(self.targets, self.categories)

    def predict(self, audio: Sequence[Audio]) -> list[dict[str, Any]]:
        """One answer per recording, in order: target -> rating on the corpus's scale.

        A variance of raters is that of ratings on this scale. With categories also "category", the likeliest, and
        "p(NAME)", the probability of each.

        An answer does not depend on the recordings beside it, but for rounding. A recording is heard as training
        would have heard it from a shard, at 16 kHz, mono and 16 bit.

        Raises:
            CorpusError: a recording that a shard would not carry; see ``read_audio``.
        """
        waves = [read_audio(one) for one in audio]
        answers: list[dict[str, Any]] = [{} for _ in waves]
        for rows in _batches([len(wave) for wave in waves]):
            num_samples = torch.tensor([len(waves[row]) for row in rows])
            padded = torch.nn.utils.rnn.pad_sequence([waves[row] for row in rows], batch_first=True)
            with torch.inference_mode():
                output = self._model(padded.to(self._device), num_samples.to(self._device))
            for row, prediction in zip(rows, output.prediction.double().cpu().tolist(), strict=True):
                answers[row] = {
                    target: self._on_scale(target, label)
                    for target, label in zip(self.targets, prediction, strict=True)
                }
            if output.categories is not None:
                for row, shares in zip(rows, output.categories.double().softmax(dim=1).cpu().tolist(), strict=True):
                    likeliest = self.categories[shares.index(max(shares))]
                    answers[row] |= dict(zip(self.columns[len(self.targets) :], (likeliest, *shares), strict=True))
        return answers

    def _on_scale(self, target: str, label: float) -> float:
        low, high = self.scale
        return low + label * (high - low) if varied_target(target) is None else label * (high - low) ** 2


def answer_columns(targets: Sequence[str], categories: Sequence[str]) -> tuple[str, ...]:
    """Names in an answer of a model, in order."""
    shares = tuple(f"p({category})" for category in categories)
    return (*targets, *((CATEGORY, *shares) if shares else ()))


def read_audio(audio: Audio) -> Float32[Tensor, " samples"]:
    """Samples on -1..1 at 16 kHz, mono, exactly as a shard of that audio would give them to training.

    Arrays too are clipped and brought to 16 bit: an array and the 16 bit file it was read from answer the same.

    Raises:
        CorpusError: what a shard would not carry: unreadable, empty, cut, too short or too long, not finite, or of a
            sample rate that cannot be resampled.
    """
    if isinstance(audio, np.ndarray):
        name, decoded = "array", decode_samples(audio, max_duration_s=MAX_DURATION_S)
    else:
        name = str(audio) if isinstance(audio, str | Path) else "audio"
        decoded = decode_audio(Path(audio) if isinstance(audio, str) else audio, max_duration_s=MAX_DURATION_S)
    if isinstance(decoded, str):
        raise CorpusError(f"{name}: {decoded}. Leave it out.")
    return torch.from_numpy(to_wave(decoded.whole))


def _batches(num_samples: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like duration together, longest first, each batch within the bound unless it is one row."""
    limit = int(_BATCH_S * SAMPLE_RATE_HZ)
    batch: list[int] = []
    for row in sorted(range(len(num_samples)), key=lambda row: -num_samples[row]):
        if batch and num_samples[batch[0]] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
