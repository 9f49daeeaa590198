"""The frozen encoders that a user names, and one vector per utterance from each of their layers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ccts_dist.batches import Batch
from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig, read_run
from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.errors import ConfigError
from ccts_dist.files.model_folders import model_folder
from ccts_dist.loader.collate import EncodeText
from ccts_dist.model import EmotionModel, Tokenizer, build_model, load_model, load_tokenizer
from ccts_dist.model.folder import DESCRIPTION
from ccts_dist.model.pooling import MeanPooling, StatisticsPooling
from ccts_dist.process.seeds import derive_seed, seed_everything

LayerPooling = Literal["mean", "statistics"]
_POOLINGS = {"mean": MeanPooling, "statistics": StatisticsPooling}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of one encoder."""

    encoder: str
    """ "speech", "extra speech 0" for the first further speech encoder, "text"."""

    number: int
    """0 for what enters the first layer; of a filter bank, for the energies."""


@runtime_checkable
class Encoders(Protocol):
    """The encoders that a probe processes."""

    encode_text: EncodeText | None
    """Transcript to token numbers; None without a text encoder."""

    def vectors(self, batch: Batch) -> Mapping[Layer, Tensor]:
        """One vector per row for each layer [batch features], of a batch on the device; always the same layers."""
        ...


class FrozenEncoders:
    """A model's encoders in evaluation mode, all layers of which are processed; its embedding and heads are not."""

    def __init__(self, model: EmotionModel, tokenizer: Tokenizer | None, *, pooling: LayerPooling = "mean") -> None:
        """``pooling`` makes one vector of a layer's real frames: their mean, or mean and standard deviation side by
        side."""
        self.encode_text: EncodeText | None = None if tokenizer is None else tokenizer.encode
        self._model = model.eval().requires_grad_(False)
        self._pooling = _POOLINGS[pooling]

    def vectors(self, batch: Batch) -> dict[Layer, Tensor]:
        """[batch features] for each layer, the speech encoders' first; the same for a row alone and in any batch."""
        with exact_float32():
            return self._vectors(batch)

    def _vectors(self, batch: Batch) -> dict[Layer, Tensor]:
        model, audio = self._model, (batch.audio, batch.num_samples)
        frames = {} if model.speech is None else {"speech": model.speech.layer_frames(*audio)}
        for number, branch in enumerate(model.extra_speech):
            frames[f"extra speech {number}"] = branch.layer_frames(*audio)  # type: ignore[operator]
        if model.text is not None:
            assert batch.tokens is not None
            assert batch.num_tokens is not None
            frames["text"] = model.text.layer_frames(batch.tokens, batch.num_tokens)
        return {
            Layer(encoder=name, number=number): self._pooling(one.frames.shape[2])(one.frames, one.num_frames)
            for name, layers in frames.items()
            for number, one in enumerate(layers)
        }


def open_encoders(
    place: str | Path,
    device: torch.device | str = "cpu",
    *,
    do_normalize: Literal["auto", "on", "off"] = "auto",
    pooling: LayerPooling = "mean",
) -> FrozenEncoders:
    """The encoders of a model folder of ours, of a run file, or the one speech encoder in a folder or on the hub.

    Those of a run file are as they are before training, and all their layers are there whatever ``layers`` states.

    Args:
        place: a model folder, a run folder for its best model, a run file (``*.toml``), or what
            ``model.speech.encoder`` may be.
        do_normalize: of a folder or hub name, as ``model.speech.do_normalize``.

    Raises:
        ConfigError: none of these, or a text encoder from scratch, which has no tokenizer before training.
        CheckpointError: a model folder that is not whole.
    """
    place = str(model_folder(Path(place))) if Path(place).is_dir() else str(place)
    if (Path(place) / DESCRIPTION).is_file():
        loaded = load_model(place, device)
        return FrozenEncoders(loaded.model, loaded.tokenizer, pooling=pooling)
    seed = 0
    if Path(place).suffix == ".toml":
        run = read_run(Path(place))
        config, seed = run.model, run.seed
    elif place == "scratch":
        raise ConfigError("--model scratch: an encoder from scratch has its shape in a run file. Name that file.")
    else:
        config = ModelConfig(speech=SpeechConfig(encoder=place, do_normalize=do_normalize))
    config = _all_layers(config)
    tokenizer = None if config.text is None else _tokenizer_of(config.text, place)
    seed_everything(derive_seed("model", seed))  # as training does, for encoders from scratch
    try:
        model = build_model(config, vocabulary_size=tokenizer.vocabulary_size if tokenizer else None)
    except ConfigError as error:
        if Path(place).suffix == ".toml":
            raise
        # It was named on the command line.
        words = str(error).replace("model.speech.encoder =", "--model").replace("model.speech.", "--")
        raise ConfigError(words) from error
    return FrozenEncoders(model.to(device), tokenizer, pooling=pooling)


def _all_layers(config: ModelConfig) -> ModelConfig:
    """The same encoders, uncut, with the cheapest of poolings."""
    plain: Mapping[str, str] = {"layers": "last", "pooling": "mean"}
    return replace(
        config,
        speech=None if config.speech is None else replace(config.speech, **plain),
        extra_speech=tuple(replace(branch, **plain) for branch in config.extra_speech),
        text=None if config.text is None else replace(config.text, **plain),
    )


def _tokenizer_of(text: TextConfig, place: str) -> Tokenizer:
    if text.encoder == "scratch":
        raise ConfigError(
            f'{place}: model.text.encoder = "scratch" has no tokenizer before it is trained. Train it, and name the '
            "model folder."
        )
    return load_tokenizer(text.encoder, max_tokens=text.max_tokens)
