"""A speech emotion model for transformers, in one file that needs torch and transformers alone.

    from transformers import pipeline

    emotion = pipeline("audio-classification", model=FOLDER, trust_remote_code=True)
    emotion({"raw": samples, "sampling_rate": 16_000})

Recordings are 16 kHz, mono, on -1..1. Each is encoded by itself, so that it is predicted alike alone and in any batch.
"""

import inspect
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AudioClassificationPipeline, AutoConfig, AutoModel, PreTrainedModel
from transformers import PretrainedConfig as _PretrainedConfig
from transformers.utils.generic import ModelOutput

SAMPLE_RATE_HZ = 16_000
FFT_SIZE = 1_024
ACTIVATIONS = {"none": lambda values: values, "relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh}


class CctsConfig(_PretrainedConfig):
    """Shape of an emotion model. ``branches`` has the settings of each speech encoder and its pooling."""

    model_type = "ccts-emotion"

    def __init__(
        self,
        branches=(),
        targets=(),
        categories=(),
        factor=(),
        offset=(),
        poolings="shared",
        embedding_dim=1,
        embedding_norm="none",
        embedding_activation="none",
        heads="shared",
        head_hidden_dim=1,
        **more,
    ):
        self.branches, self.targets, self.categories = list(branches), list(targets), list(categories)
        self.factor, self.offset, self.poolings = list(factor), list(offset), poolings
        self.embedding_dim, self.heads, self.head_hidden_dim = embedding_dim, heads, head_hidden_dim
        self.embedding_norm, self.embedding_activation = embedding_norm, embedding_activation
        super().__init__(**more)


@dataclass
class EmotionOutput(ModelOutput):
    """Predictions of a batch.

    ``logits`` [batch labels] are the ratings on the corpus's scale, followed by the probabilities of the categories; of
    a model without targets the categories' scores before the softmax.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    rating: torch.Tensor | None = None
    probability: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


class EmotionForAudioClassification(PreTrainedModel):
    """Speech encoders, pooling, embedding, and the heads of targets and categories. For inference: it has no loss."""

    config_class = CctsConfig
    main_input_name = "input_values"
    base_model_prefix = "emotion"

    def __init__(self, config):
        super().__init__(config)
        per_target = config.poolings == "per-target"
        num_poolings = len(config.targets) + bool(config.categories) if per_target else 1
        first, *others = [_Branch(settings, num_poolings) for settings in config.branches]
        self.speech = first
        self.add_module("also", nn.ModuleList(others))  # its name in the weights
        self.embedding = nn.Linear(sum(branch.pooling.size for branch in (first, *others)), config.embedding_dim)
        self.embedding_norm = nn.LayerNorm(config.embedding_dim) if config.embedding_norm == "layer" else None
        self.prediction = _heads(config) if config.targets else None
        self.categories = nn.Linear(config.embedding_dim, len(config.categories)) if config.categories else None
        self.post_init()

    def forward(self, input_values, attention_mask=None, **_):
        """``input_values`` [batch samples] are waveforms, ``attention_mask`` is 1 at each row's own samples."""
        if attention_mask is None:
            counts = [input_values.shape[1]] * len(input_values)
        else:
            counts = attention_mask.sum(dim=1).tolist()
        branches = (self.speech, *cast(nn.ModuleList, self.get_submodule("also")))
        rows = [
            torch.cat([branch(row[:count]) for branch in branches], dim=-1)
            for row, count in zip(input_values, counts, strict=True)
        ]
        embedding = self.embedding(torch.stack(rows))
        if self.embedding_norm is not None:
            embedding = self.embedding_norm(embedding)
        embedding = ACTIVATIONS[self.config.embedding_activation](embedding)
        rating: Any = None if self.prediction is None else self.prediction(embedding)
        scores = None if self.categories is None else self.categories(embedding)
        if self.config.poolings == "per-target":  # all have the poolings as second dimension
            rating = rating.diagonal(dim1=1, dim2=2)
            scores = None if scores is None else scores[:, -1]
            embedding = embedding.mean(dim=1)
        probability = None if scores is None else scores.softmax(dim=1)
        if rating is not None:
            rating = rating * rating.new_tensor(self.config.factor) + rating.new_tensor(self.config.offset)
            scores = rating if probability is None else torch.cat([rating, probability], dim=1)
        return EmotionOutput(logits=scores, rating=rating, probability=probability, embedding=embedding)


class EmotionPipeline(AudioClassificationPipeline):
    """Every label with its rating or probability, unless ``top_k`` asks for fewer."""

    def __init__(self, *args, top_k=None, **kwargs):
        super().__init__(*args, top_k=top_k, **kwargs)

    def check_model_type(self, supported_models):
        """Its list has transformers' own classes."""

    def postprocess(self, model_outputs, top_k=None, function_to_apply=None):
        """Ratings and probabilities as they come; scores of categories alone through a softmax."""
        if function_to_apply is None:
            function_to_apply = "none" if self.model.config.targets else "softmax"
        labels: Any = self.model.config.id2label
        return super().postprocess(model_outputs, top_k=top_k or len(labels), function_to_apply=function_to_apply)


class _Branch(nn.Module):
    """A speech encoder and its pooling: of a waveform [samples] one vector, or [poolings features] with several."""

    def __init__(self, settings, num_poolings):
        super().__init__()
        self.settings = settings
        self.normalize, extractor = settings["normalize"], settings.get("extractor")
        self.front_end: Any = None
        self.encoder: Any
        self.extractor: Any = None
        self.mixture = None
        self.squeeze = 1
        if settings["encoder"] is None:
            self.encoder = _Filterbank(settings["filterbank"])
            features, self.shortest = self.encoder.size, self.encoder.samples_for_one_frame()
        else:
            self.encoder = _build_encoder(settings)
            features = self.encoder.config.hidden_size
            self.shortest = SAMPLE_RATE_HZ // 4
        if extractor is not None:
            kind = getattr(transformers, extractor["feature_extractor_type"])
            self.extractor = kind.from_dict(dict(extractor))
            self.piece = getattr(self.extractor, "n_samples", None)
        elif settings["encoder"] is not None:
            self.front_end = self.encoder.feature_extractor
            self.encoder.feature_extractor = nn.Identity()  # it is given the frames of the front end
            self.squeeze = getattr(self.encoder.config, "squeeze_factor", 1)
            self.shortest = self._samples_for(self.squeeze)
        if settings["num_states"]:
            self.mixture = _Mixture(settings["num_states"])
        self.pooling = (
            _Pooling(settings, features) if num_poolings == 1 else _PerTargetPooling(settings, features, num_poolings)
        )

    def forward(self, wave):
        if self.normalize:
            wave = (wave - wave.mean()) * (wave.var(unbiased=False) + 1e-7).rsqrt()
        count = len(wave)
        wave = F.pad(wave, (0, max(0, self.shortest - count)))
        if self.extractor is not None:
            pieces = [wave] if self.piece is None else wave.split(self.piece)
            frames = torch.cat([self._of_piece(piece) for piece in pieces])
        elif self.front_end is None:
            frames = self.encoder(wave[None])[0]
        else:
            frames = self._of_frames(self.front_end(wave[None]), len(wave))
        return self.pooling(frames)

    def _of_frames(self, frames, num_samples):
        if self.squeeze == 1:
            return self._run(input_values=frames)
        # SEW's layers see one frame for so many; a rest that fills none is omitted.
        num_frames = frames.shape[2] // self.squeeze * self.squeeze
        stride = math.prod(self.encoder.config.conv_stride)
        covered = self._samples_for(1) + (num_frames - 1) * stride
        mask = (torch.arange(num_samples, device=frames.device) < covered).long()
        return self._run(input_values=frames, attention_mask=mask[None])[:num_frames]

    def _of_piece(self, piece):
        """Frames of what the feature extractor makes of a piece, without those of silence that it adds."""
        weights = next(self.encoder.parameters())
        how: dict[str, Any] = {}
        if "device" in inspect.signature(self.extractor.__call__).parameters:
            how["device"] = str(piece.device)
        if self.settings["masked"]:
            how["return_attention_mask"] = True
        wave = piece.detach().float().cpu().numpy()
        given = self.extractor([wave], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **how)
        known = inspect.signature(self.encoder.forward).parameters
        given = {name: tensor.to(piece.device) for name, tensor in given.items() if name in known}
        mask = given.get("attention_mask")
        given = {name: one.to(weights.dtype) if one.is_floating_point() else one for name, one in given.items()}
        frames = self._run(**given)
        if self.piece is not None:
            return frames[: -(-len(wave) * len(frames) // self.piece)]
        return frames if mask is None or mask.shape[1] != len(frames) else frames[: int(mask.sum())]

    def _run(self, **inputs):
        if self.mixture is None:
            return self.encoder(**inputs).last_hidden_state[0]
        output = self.encoder(**inputs, output_hidden_states=True)
        return self.mixture((*output.hidden_states[:-1], output.last_hidden_state))[0]

    def _samples_for(self, num_frames):
        """Fewest samples that give so many frames."""
        shape = self.encoder.config
        for kernel, stride in reversed(list(zip(shape.conv_kernel, shape.conv_stride, strict=True))):
            num_frames = (num_frames - 1) * stride + kernel
        return num_frames


def _build_encoder(settings):
    """The transformers encoder, without the parts that the model was trained without."""
    shape = dict(settings["encoder"])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    encoder = AutoModel.from_config(config, trust_remote_code=False)
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    for path in settings["removed"]:
        owner, _, name = path.rpartition(".")
        owner = encoder.get_submodule(owner)
        if isinstance(owner, nn.ModuleList):
            del owner[int(name)]
        else:
            setattr(owner, name, None)
    for path in settings["skipped"]:
        owner, _, name = path.rpartition(".")
        setattr(encoder.get_submodule(owner), name, nn.Identity())
    return encoder


class _Mixture(nn.Module):
    """A mean of what leaves the layers of an encoder, by softmax weights."""

    def __init__(self, num_states):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_states))

    def forward(self, states):
        return torch.einsum("s,sbfh->bfh", self.scores.softmax(dim=0), torch.stack(states))


class _Pooling(nn.Module):
    """Pooling of [frames features] one vector."""

    def __init__(self, settings, features):
        super().__init__()
        self.kind, self.features, self.floor = settings["pooling"], features, settings["variance_floor"]
        self.size = features
        if self.kind == "gru":
            self.size = settings["gru_hidden"]
            self.gru = nn.GRU(features, self.size, settings["gru_layers"], batch_first=True)
        elif self.kind == "attentive-statistics":
            self.hidden = nn.Linear(features, settings["attention_hidden"])
            self.score = nn.Linear(settings["attention_hidden"], 1, bias=False)
        elif self.kind == "self-attention":
            self.query = nn.Linear(features, 1, bias=False)
        if self.kind.endswith("statistics"):
            self.size = 2 * features

    def forward(self, frames):
        if self.kind == "first":
            return frames[0]
        if self.kind == "gru":
            return self.gru(frames[None])[0][0, -1]
        if self.kind == "self-attention":
            weights = (self.query(frames) * self.features**-0.5).softmax(dim=0)
        elif self.kind == "attentive-statistics":
            weights = self.score(torch.tanh(self.hidden(frames))).softmax(dim=0)
        else:
            weights = frames.new_full((len(frames), 1), 1 / len(frames))
        mean = (weights * frames).sum(dim=0)
        if not self.kind.endswith("statistics"):
            return mean
        variance = (weights * (frames - mean).square()).sum(dim=0)
        return torch.cat([mean, (variance + self.floor).sqrt()])


class _PerTargetPooling(nn.Module):
    """A pooling for each target, and one for the categories: of [frames features] one vector each."""

    def __init__(self, settings, features, count):
        super().__init__()
        poolings = [_Pooling(settings, features) for _ in range(count)]
        self.poolings, self.size = nn.ModuleList(poolings), poolings[0].size

    def forward(self, frames):
        return torch.stack([pooling(frames) for pooling in self.poolings])


class _PerTarget(nn.Module):
    """A hidden layer and a linear one for each target."""

    def __init__(self, features, hidden, num_targets):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(num_targets)
        )

    def forward(self, embedding):
        return torch.cat([head(embedding) for head in self.heads], dim=-1)


def _heads(config):
    if config.heads == "per-target":
        return _PerTarget(config.embedding_dim, config.head_hidden_dim, len(config.targets))
    return nn.Linear(config.embedding_dim, len(config.targets))


class _Filterbank(nn.Module):
    """Log-mel energies, then convolutions over time."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        inputs = [settings["num_mel_bins"], *settings["channels"]]
        self.size = inputs[-1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, settings["kernel"], settings["stride"]) for before, after in pairwise(inputs)
        )
        self.window, self.step = (
            max(1, round(settings[name] * SAMPLE_RATE_HZ / 1_000)) for name in ("frame_length_ms", "frame_shift_ms")
        )

    def samples_for_one_frame(self):
        length = 1
        for _ in self.convolutions:
            length = (length - 1) * self.settings["stride"] + self.settings["kernel"]
        return (length - 1) * self.step + self.window

    def forward(self, audio):
        pieces = audio.unfold(1, self.window, self.step) * torch.hann_window(self.window, device=audio.device)
        energy = torch.fft.rfft(pieces, n=FFT_SIZE).abs().square() @ self._bands(audio.device)
        hidden = ((energy.clamp(min=self.settings["energy_floor"]).log10() + 4) / 4).transpose(1, 2)
        for convolution in self.convolutions:
            hidden = F.gelu(convolution(hidden))
        return hidden.transpose(1, 2)

    def _bands(self, device):
        """Weight of each point of the spectrum in each mel band [points bins]."""
        highest_hz = SAMPLE_RATE_HZ / 2
        top = 2_595 * math.log10(1 + highest_hz / 700)
        mels = torch.linspace(0, top, self.settings["num_mel_bins"] + 2, device=device)
        edges = 700 * (10 ** (mels / 2_595) - 1)
        points = torch.linspace(0, highest_hz, FFT_SIZE // 2 + 1, device=device)[:, None]
        widths = edges.diff()
        rising, falling = (points - edges[:-2]) / widths[:-1], (edges[2:] - points) / widths[1:]
        return torch.minimum(rising, falling).clamp(min=0)
