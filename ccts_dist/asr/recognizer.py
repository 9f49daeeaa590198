"""Speech recognition with a transformers model: the transcript of an utterance, and how sure the model was of them.

An utterance gives the same words and confidence alone and in any batch, up to rounding (``models`` describes how).
Audio longer than a window (30 s, or what the model itself reads at once) is cut at its quietest places, transcribed
piece by piece, and the words are joined.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np
import torch
from jaxtyping import Float32

from ccts_dist.asr.models import AsrModel, Piece, load_asr_model
from ccts_dist.distributed import named_device
from ccts_dist.errors import ConfigError
from ccts_dist.records import SAMPLE_RATE_HZ

BATCH_SECONDS = 120.0
"""Padded audio per forward pass; a convolution of wav2vec 2.0 makes 0.8 GB of it in float32."""

_QUIET_SAMPLES = SAMPLE_RATE_HZ // 5  # a pause between words


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Transcript of one utterance."""

    transcript: str
    """Transcript in the model's spelling, white space made single; empty when it transcribed no word."""

    confidence: float
    """0..1; 0 when no word was transcribed.

    CTC: the mean, over the frames whose most probable symbol is not the blank, of that symbol's probability.
    Sequence-to-sequence: exp of the mean log-probability of the tokens it wrote, the one that ends the text included,
    those it was given to start with not, among the tokens it was allowed to write.
    """


class Recognizer:
    """A loaded speech recognition model. Made by ``load_recognizer``."""

    def __init__(
        self, asr_model: AsrModel, *, name: str, digest: str, language: str | None, batch_seconds: int | float
    ) -> None:
        self._asr_model = asr_model
        self.name, self.digest, self.language = name, digest, language
        self.batch_seconds = batch_seconds

    def transcribe(self, waves: Sequence[Float32[np.ndarray, " _samples"]]) -> list[Words | str]:
        """The transcript of each wave, or why it cannot be transcribed.

        Args:
            waves: on -1..1 at 16 kHz.

        Raises:
            ConfigError: the forward pass does not fit the device, or the model gives numbers that are not finite.
        """
        rows, windows = [], []
        for row, wave in enumerate(waves):
            if len(wave) >= self._asr_model.min_samples:
                cut = cut_windows(wave, self._asr_model.window_samples)
                rows += [row] * len(cut)
                windows += cut
        pieces: list[Piece | None] = [None] * len(windows)
        for taken in self._batches([len(window) for window in windows]):
            for at, piece in zip(taken, self._transcribed([windows[at] for at in taken]), strict=True):
                pieces[at] = piece
        transcripts: list[list[Piece]] = [[] for _ in waves]
        for row, piece in zip(rows, pieces, strict=True):
            assert piece is not None
            transcripts[row].append(piece)
        return [self._words(own) if own else self._too_short(len(waves[row])) for row, own in enumerate(transcripts)]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Which windows share a forward pass: as many as the limit allows, of like or equal length."""
        most = max(1, int(self.batch_seconds * SAMPLE_RATE_HZ))
        taken: list[int] = []
        for at in sorted(range(len(lengths)), key=lengths.__getitem__):
            apart = bool(taken) and not self._asr_model.pads and lengths[at] != lengths[taken[0]]
            if taken and (apart or (len(taken) + 1) * lengths[at] > most):
                yield taken
                taken = []
            taken.append(at)
        if taken:
            yield taken

    def _transcribed(self, windows: Sequence[Float32[np.ndarray, " _samples"]]) -> list[Piece]:
        # cuDNN's convolutions would round to ten bits, another way in each batch shape.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        try:
            with torch.inference_mode(), exact:
                return self._asr_model.pieces(windows)
        except torch.OutOfMemoryError as error:
            longest_s = max(map(len, windows)) / SAMPLE_RATE_HZ
            raise ConfigError(
                f"{len(windows)} windows of up to {longest_s:.1f} s do not fit the device "
                f"(batch_seconds={self.batch_seconds:g}). Lower --batch-seconds."
            ) from error

    def _words(self, pieces: Sequence[Piece]) -> Words:
        transcript = _plain(" ".join(piece.transcript for piece in pieces))
        total, count = math.fsum(piece.total for piece in pieces), sum(piece.count for piece in pieces)
        if not math.isfinite(total):
            raise ConfigError(
                f"model {self.name} ({self.digest[:12]}) gives numbers that are not finite. Its weights are damaged: "
                "bring it back from a copy, or name another with --model."
            )
        confidence = self._asr_model.confidence(total, count) if transcript else 0.0
        return Words(transcript=transcript, confidence=min(1.0, max(0.0, confidence)))

    def _too_short(self, num_samples: int) -> str:
        return (
            f"lasts {num_samples} samples at {SAMPLE_RATE_HZ} Hz, fewer than the recognizer's first frame "
            f"({self._asr_model.min_samples})"
        )


def load_recognizer(
    place: str, *, device: str | None = None, language: str | None = None, batch_seconds: int | float = BATCH_SECONDS
) -> Recognizer:
    """A speech recognition model with its weights, in float32.

    Args:
        place: folder, or name of a model of the hub.
        device: as torch names it; None for a GPU if there is one, else the CPU.
        language: that it is asked for; None for the one it finds out itself, or the only one it knows.
        batch_seconds: most seconds of padded audio in a forward pass; a single window may be longer.

    Raises:
        ConfigError: no such place, no model of a known kind there, weights that did not arrive, a language it does not
            know, a device that is not there, or a limit that is not above 0.
    """
    if not 0 < batch_seconds < math.inf:
        raise ConfigError(
            f"batch_seconds={batch_seconds:g}: must be above 0 and finite. Leave --batch-seconds out for "
            f"{BATCH_SECONDS:g}."
        )
    asr_model, digest = load_asr_model(place, device=named_device(device), language=language)
    name = Path(place).absolute().name if Path(place).is_dir() else place
    return Recognizer(asr_model, name=name, digest=digest, language=language, batch_seconds=batch_seconds)


def _plain(text: str) -> str:
    """White space and control characters, which a model that writes bytes can write, as single spaces."""
    return " ".join("".join(" " if category(one) == "Cc" else one for one in text).split())


def cut_windows(wave: Float32[np.ndarray, " _samples"], most: int) -> list[Float32[np.ndarray, " _samples"]]:
    """The wave in pieces of at most ``most`` samples, cut where 0.2 s are the quietest.

    Every piece of a wave that is cut has at least 0.3 of ``most``. The earliest of equally quiet places is taken.
    """
    pieces = []
    while len(wave) > most:
        last = min(most, len(wave) - math.ceil(0.3 * most))
        first = min(most // 2, last)
        around = min(_QUIET_SAMPLES, most // 8)
        power = np.square(wave[first - around // 2 : last + around], dtype=np.float64)
        power = np.concatenate(([0.0], np.cumsum(power)))
        loudness = power[around : around + last - first + 1] - power[: last - first + 1]
        at = first + int(np.argmin(loudness))
        pieces.append(wave[:at])
        wave = wave[at:]
    return [*pieces, wave]
