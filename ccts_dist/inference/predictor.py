"""Emotion of recordings, from a model folder or a registered model."""

import copy
import io
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ccts_dist.audio.convert import decode_audio, decode_samples, to_float32
from ccts_dist.audio.limits import MAX_DURATION_S
from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.distributed import named_device
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.model import LoadedModel, load_model
from ccts_dist.records import SAMPLE_RATE_HZ, factor_and_offset

Audio = str | Path | io.BytesIO | np.ndarray | Tensor
"""A file, an opened file, or samples: an array [samples] or [samples channels], as soundfile reads them, or a tensor
[samples] or [channels samples], as torchaudio does; on -1..1, or whole numbers of 16 or 32 bit."""

Sound = TypeVar("Sound")

CATEGORY = "category"
"""In an answer: the likeliest one."""

AUDIO, PATH = "audio", "path"
"""Columns of a served model's input: the base64 of an audio file, or its path below the audio root."""

BATCH_SECONDS = 120.0
"""Padded seconds of one forward pass."""

LOOK_AHEAD = 16
"""Recordings are sorted by duration over the audio of so many batches: 4 % padding on MSP-like durations."""

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def load_student(
    model: str | Path, *, tracking_uri: str = "", device: str | torch.device | None = "cpu"
) -> "Predictor":
    """A speech model ready to predict.

        student = ccts_dist.load_student("models:/emotion@champion")
        student.predict(["a.wav", "b.mp3"])                 [{"activation": 4.1, "valence": 3.2, ...}, {...}]
        student.embed([samples], sample_rate_hz=44_100)     an array [1 hidden]

    Args:
        model: a model folder, a run folder for its best model, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``
            or ``hf://ORG/NAME@REVISION``; the latter are fetched and checked.
        tracking_uri: server of registered models; "" for the default.
        device: where it shall run; None for a GPU if there is one.

    Raises:
        ConfigError: no such folder, a model that needs transcripts, or no such device.
        RegistryError: unknown in the registry, or altered.
    """
    from ccts_dist.registry.pull import resolve_model

    usable = named_device(device)
    folder = resolve_model(str(model), tracking_uri=tracking_uri)
    return Predictor(load_model(folder), name=str(model), device=usable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Output of a student for one recording."""

    answer: dict[str, Any]
    """Answer as ``Predictor.predict`` gives it."""

    embedding: Float32[np.ndarray, " hidden"]


@final
class Predictor:
    """A speech-only emotion model that takes recordings and answers on its corpus's scale.

    Several threads may use one; its forward passes then take turns. See ``twin`` for passes at the same time.

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
        """Names of the predictions, in the order of its answers."""

        self.categories: tuple[str, ...] = loaded.config.categories
        """Emotions that it distinguishes beside the targets; empty for none."""

        self.scale: tuple[float, float] = loaded.scale
        """Lowest and highest rating of its corpus."""

        self.embedding_size: int = loaded.config.embedding_dim
        """Numbers in an embedding."""

        self.device = device
        """Device of the weights."""

        self._name = name
        self._model = loaded.model.eval().to(device)
        self._turn = threading.Lock()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in an answer, in order."""
        return answer_columns(self.targets, self.categories)

    def twin(self) -> "Predictor":
        """The same student with the same weights in memory, whose forward passes may run beside this one's.

        A model keeps the lengths of the batch at hand within itself, so that one model runs one pass at a time.
        """
        weights = {id(tensor): tensor for tensor in chain(self._model.parameters(), self._model.buffers())}
        other = copy.copy(self)
        other._model = copy.deepcopy(self._model, weights)
        other._turn = threading.Lock()
        return other

    def predict(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        batch_seconds: int | float = BATCH_SECONDS,
    ) -> list[dict[str, Any]]:
        """One answer per recording, in order: target -> rating on the corpus's scale.

        A variance of raters is that of ratings on this scale. With categories also "category", the likeliest, and
        "p(NAME)", the probability of each.

        An answer does not depend on the recordings next to it, but for rounding. A recording is processed as training
        would have processed it from a shard, at 16 kHz, mono and 16 bit.

        Args:
            audio: files, arrays or tensors. Few of the files are in memory at a time.
            sample_rate_hz: of arrays and tensors; files state their own.
            batch_seconds: most seconds of padded audio in a forward pass; a single recording may be longer.

        Raises:
            CorpusError: a recording that a shard would not carry; see ``read_audio``.
            ConfigError: what is no audio by its shape or type, a setting out of range, or a pass that does not fit
                the device.
        """
        return [predicted.answer for predicted in self._predict_all(audio, sample_rate_hz, batch_seconds)]

    def embed(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        batch_seconds: int | float = BATCH_SECONDS,
    ) -> Float32[np.ndarray, "recordings hidden"]:
        """The embedding of each recording, in order; arguments and errors are those of ``predict``."""
        predicted = self._predict_all(audio, sample_rate_hz, batch_seconds)
        empty = np.zeros((0, self.embedding_size), dtype=np.float32)
        return np.stack([one.embedding for one in predicted]) if predicted else empty

    def forward(self, waves: Sequence[Float32[Tensor, " _samples"]]) -> list[Prediction]:
        """Predict each wave, in one forward pass.

        Args:
            waves: as ``read_audio`` gives them.

        Raises:
            ConfigError: the pass does not fit the device, or the model gives numbers that are not finite.
        """
        num_samples = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
        try:
            # TF32 would round to ten bits, another way in each batch shape.
            with self._turn, torch.inference_mode(), exact_float32():
                output = self._model(padded.to(self.device), num_samples)
                embeddings, predictions = output.embedding.float().cpu(), output.prediction.double().cpu()
                shares = None if output.categories is None else output.categories.double().softmax(dim=1).cpu()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{len(waves)} recordings of up to {padded.shape[1] / SAMPLE_RATE_HZ:.1f} s do not fit the device "
                "in one pass. Lower --batch-seconds, or cut long recordings with --window."
            ) from error
        if not (predictions.isfinite().all() and embeddings.isfinite().all()):
            raise ConfigError(
                f"model {self._name!r} gives numbers that are not finite. Its weights are damaged: fetch it again, or "
                "name another model."
            )
        rows = shares.tolist() if shares is not None else [[] for _ in waves]
        return [
            Prediction(answer=self._answer(labels, own), embedding=embedding)
            for labels, own, embedding in zip(predictions.tolist(), rows, embeddings.numpy(), strict=True)
        ]

    def _predict_all(self, audio: Sequence[Audio], sample_rate_hz: int, batch_seconds: int | float) -> list[Prediction]:
        predicted: list[Prediction] = []
        for waves in stretches((read_audio(one, sample_rate_hz) for one in audio), len, batch_seconds):
            found: dict[int, Prediction] = {}
            for rows in cut_batches([len(wave) for wave in waves], batch_seconds):
                found |= zip(rows, self.forward([waves[row] for row in rows]), strict=True)
            predicted += (found[row] for row in range(len(waves)))
        return predicted

    def _answer(self, labels: Sequence[float], shares: Sequence[float]) -> dict[str, Any]:
        answer: dict[str, Any] = {
            target: self._on_scale(target, label) for target, label in zip(self.targets, labels, strict=True)
        }
        if shares:
            likeliest = self.categories[shares.index(max(shares))]
            answer |= zip(self.columns[len(self.targets) :], (likeliest, *shares), strict=True)
        return answer

    def _on_scale(self, target: str, label: float) -> float:
        factor, offset = factor_and_offset(target, self.scale)
        return offset + factor * label


def answer_columns(targets: Sequence[str], categories: Sequence[str]) -> tuple[str, ...]:
    """Names in an answer of a model, in order."""
    shares = tuple(f"p({category})" for category in categories)
    return (*targets, *((CATEGORY, *shares) if shares else ()))


def read_audio(audio: Audio, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Float32[Tensor, " samples"]:
    """Samples on -1..1 at 16 kHz, mono, exactly as a shard of that audio would give them to training.

    Arrays too are clipped and brought to 16 bit: an array and the 16 bit file it was read from answer the same.

    Args:
        sample_rate_hz: of an array or a tensor; a file states its own.

    Raises:
        CorpusError: what a shard would not carry: unreadable, empty, cut, too short or too long, not finite, or of a
            sample rate that cannot be resampled.
        ConfigError: an array that is no audio by its shape or type, or a rate that is none.
    """
    if isinstance(audio, np.ndarray | Tensor):
        name = "array" if isinstance(audio, np.ndarray) else "tensor"
        if sample_rate_hz < 1:
            raise ConfigError(
                f"sample_rate_hz={sample_rate_hz}: must be at least 1. Give the rate at which it was recorded."
            )
        decoded = decode_samples(_by_channel(audio, name), sample_rate_hz, max_duration_s=MAX_DURATION_S)
    else:
        name = str(audio) if isinstance(audio, str | Path) else "audio"
        decoded = decode_audio(Path(audio) if isinstance(audio, str) else audio, max_duration_s=MAX_DURATION_S)
    if isinstance(decoded, str):
        raise CorpusError(f"{name}: {decoded}. Leave it out.")
    return torch.from_numpy(to_float32(decoded.pcm16))


def _by_channel(audio: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Samples on -1..1, [samples] or [samples channels].

    Raises:
        ConfigError: another shape or type.
    """
    if isinstance(audio, Tensor):
        wide = audio.detach().cpu()
        samples = (wide.double() if wide.is_floating_point() else wide).numpy().T
    else:
        samples = audio
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0):
        raise ConfigError(
            f"{name} of shape {tuple(audio.shape)}: arrays are [samples] or [samples channels], as soundfile reads "
            "them, tensors [samples] or [channels samples], as torchaudio does. Transpose it."
        )
    if samples.dtype in _FULL_SCALE:
        return samples / _FULL_SCALE[samples.dtype]
    if not np.issubdtype(samples.dtype, np.floating):
        raise ConfigError(
            f"{name} of {samples.dtype}: samples are numbers on -1..1, or whole numbers of 16 or 32 bit. Convert it."
        )
    return samples


def stretches(
    source: Iterable[Sound], num_samples: Callable[[Sound], int], batch_seconds: int | float
) -> Iterator[list[Sound]]:
    """Stretches that are in memory together: enough to be sorted by duration.

    Args:
        num_samples: of one of the source, at 16 kHz.

    Raises:
        ConfigError: ``batch_seconds`` out of range.
    """
    stretch: list[Sound] = []
    held, most = 0, LOOK_AHEAD * samples_per_batch(batch_seconds)
    for sound in source:
        stretch.append(sound)
        held += num_samples(sound)
        if held >= most:
            yield stretch
            stretch, held = [], 0
    if stretch:
        yield stretch


def samples_per_batch(batch_seconds: int | float) -> int:
    """Padded samples of a pass that lasts so long.

    Raises:
        ConfigError: not above 0, or endless.
    """
    if not 0 < batch_seconds < math.inf:
        raise ConfigError(
            f"batch_seconds={batch_seconds:g}: must be above 0 and finite. Leave --batch-seconds out for the default."
        )
    return int(batch_seconds * SAMPLE_RATE_HZ)


def cut_batches(num_samples: Sequence[int], batch_seconds: int | float) -> Iterator[list[int]]:
    """Rows of like duration together, longest first, each batch within the bound unless it is one row."""
    limit = samples_per_batch(batch_seconds)
    batch: list[int] = []
    for row in sorted(range(len(num_samples)), key=lambda row: -num_samples[row]):
        if batch and num_samples[batch[0]] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
