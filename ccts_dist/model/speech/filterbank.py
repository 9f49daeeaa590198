"""A small speech encoder that needs no pretraining: log-mel energies, then convolutions over time.

Neither frames nor convolutions reach beyond the real samples, so that padding does not reach real frames.
"""

import math
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ccts_dist.config import FilterbankConfig, SpeechConfig
from ccts_dist.device.transfer import queued
from ccts_dist.model.layers import LayerFrames
from ccts_dist.model.pooling import build_pooling, real_positions
from ccts_dist.model.precision import exact_product, widened
from ccts_dist.model.speech.feature_encoder import normalize_utterances
from ccts_dist.records import SAMPLE_RATE_HZ

FFT_SIZE = 1_024
"""Points of the spectrum: 64 ms, the longest window. They are 16 Hz apart, the lowest of 128 mel bands is 28 Hz wide:
each band has a point."""

ENERGY_FLOOR = 1e-8
"""Floor of the energy in a band: about what rounding to 16 bits leaves there, a variance of 8e-11 times the 150 of
the window that is squared and summed."""


class Filterbank(nn.Module):
    """Waveforms to frames of ``size`` features. A frame is real when its whole field lies on real samples."""

    def __init__(self, config: FilterbankConfig) -> None:
        super().__init__()
        self.config = config
        self.size = config.channels[-1] if config.channels else config.num_mel_bins
        self.kernels, self.strides = filterbank_fields(config)
        inputs = [config.num_mel_bins, *config.channels]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, config.kernel, config.stride) for before, after in pairwise(inputs)
        )
        # Neither parameters nor buffers: those would be rounded with the weights where these are bfloat16.
        self._constants: tuple[Tensor, Tensor] | None = None

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames features"]:
        return deque(self.states(audio), maxlen=1).pop()  # lets go of the lower ones

    def states(self, audio: Float[Tensor, "batch samples"]) -> Iterator[Float[Tensor, "batch frames features"]]:
        """The energies, and what leaves each convolution."""
        with torch.autocast(device_type=audio.device.type, enabled=False):
            hidden = self._log_mel(widened(audio)).transpose(1, 2)
        yield hidden.transpose(1, 2)
        for convolution in self.convolutions:
            weights = next(convolution.parameters())
            hidden = nn.functional.gelu(convolution(hidden.to(weights.dtype)))
            yield hidden.transpose(1, 2)

    def num_frames(self, num_samples: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Frames that lie wholly on each row's real samples."""
        return self.nums_frames(num_samples)[-1]

    def nums_frames(self, num_samples: Int64[Tensor, " batch"]) -> list[Int64[Tensor, " batch"]]:
        """The same for each of ``states``."""
        counts = [num_samples]
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            counts.append(torch.div(counts[-1] - kernel, stride, rounding_mode="floor") + 1)
        return counts[1:]

    def samples_for_one_frame(self) -> int:
        """Fewest samples that give a frame."""
        length = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            length = (length - 1) * stride + kernel
        return length

    @torch.no_grad()
    def _log_mel(self, audio: Tensor) -> Tensor:
        """[batch frames bins]: log10 of the energies, brought to about -1..1 by the shift and scale of Radford (2022),
        "Robust Speech Recognition via Large-Scale Weak Supervision"; the floor is fixed, so that no frame depends on
        another."""
        if self._constants is None or self._constants[0].device != audio.device:
            self._constants = _window_and_bands(self.config, audio.device)
        window, bands = self._constants
        pieces = audio.unfold(1, self.kernels[0], self.strides[0]) * window.to(audio.dtype)
        energy = exact_product(torch.fft.rfft(pieces, n=FFT_SIZE).abs().square(), bands.to(audio.dtype))
        return (energy.clamp(min=ENERGY_FLOOR).log10() + 4) / 4


class FilterbankBranch(nn.Module):
    """Waveforms to one vector per utterance through a filter bank; what ``SpeechBranch`` is for transformers.

    Rows shorter than one frame's field are filled up with silence.
    """

    def __init__(self, config: SpeechConfig, *, do_normalize: bool) -> None:
        super().__init__()
        self.do_normalize = do_normalize
        self.encoder = Filterbank(config.filterbank or FilterbankConfig())
        self.frame_size = self.encoder.size
        self.pooling = build_pooling(config, self.frame_size)

    def forward(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch *poolings hidden"]:
        return self.pooling(*self.encode(audio, num_samples))

    def encode(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch frames features"], Int64[Tensor, " batch"]]:
        """The encoder's frames, and how many of each row's are real."""
        audio, num_samples = self._prepare(audio, queued(num_samples, audio.device))
        return self.encoder(audio), self.encoder.num_frames(num_samples)

    def layer_frames(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> list[LayerFrames]:
        """The energies, and what leaves each convolution; no gradient."""
        audio, num_samples = self._prepare(audio, queued(num_samples, audio.device))
        with torch.no_grad():
            states = list(self.encoder.states(audio))
        return [LayerFrames(*both) for both in zip(states, self.encoder.nums_frames(num_samples), strict=True)]

    def _prepare(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.do_normalize:
            audio = normalize_utterances(audio, num_samples)
        else:
            audio = audio.masked_fill(~real_positions(num_samples, audio.shape[1]), 0.0)
        needed = self.encoder.samples_for_one_frame()
        if audio.shape[1] < needed:
            audio = nn.functional.pad(audio, (0, needed - audio.shape[1]))
        return audio, num_samples.clamp(min=needed)


def filterbank_fields(config: FilterbankConfig) -> tuple[list[int], list[int]]:
    """Widths and steps of what turns samples into frames, the first in samples: the window, then the convolutions."""
    window, step = (
        max(1, round(ms * SAMPLE_RATE_HZ / 1_000)) for ms in (config.frame_length_ms, config.frame_shift_ms)
    )
    layers = len(config.channels)
    return [window, *[config.kernel] * layers], [step, *[config.stride] * layers]


def _window_and_bands(config: FilterbankConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The window [samples], and the weight of each point of the spectrum in each band [points bins].

    The bands are the triangles of the HTK book, as torchaudio's ``melscale_fbanks`` gives them; that one looks at
    numbers, and the forecast of memory runs on shapes alone.
    """
    highest_hz = SAMPLE_RATE_HZ / 2
    mels = torch.linspace(0, 2_595 * math.log10(1 + highest_hz / 700), config.num_mel_bins + 2, device=device)
    edges = 700 * (10 ** (mels / 2_595) - 1)
    points = torch.linspace(0, highest_hz, FFT_SIZE // 2 + 1, device=device)[:, None]
    widths = edges.diff()
    rising, falling = (points - edges[:-2]) / widths[:-1], (edges[2:] - points) / widths[1:]
    window = torch.hann_window(filterbank_fields(config)[0][0], device=device)
    return window, torch.minimum(rising, falling).clamp(min=0)
