"""The emotion model: speech branch and/or text branch -> embedding -> prediction."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ccts_dist.config import ModelConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model.branches import SpeechBranch, TextBranch
from ccts_dist.model.encoders import does_normalise, encoder_from_config, load_speech_encoder, load_text_encoder


class ModelOutput(NamedTuple):
    """What the model says of a batch. A tuple of tensors, since DeepSpeed's hooks walk through it."""

    embedding: Tensor
    """[batch hidden], in float32: what a teacher hands on and a student imitates."""

    prediction: Tensor
    """[batch dim], in float32: one number per target, on 0..1 labels but not bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfigs:
    """What it takes beside a ``ModelConfig`` to build a model again, without the hub and its encoders' folders."""

    speech: PreTrainedConfig | None = None
    text: PreTrainedConfig | None = None
    normalise: bool = False
    """Whether utterances are normalised before the speech encoder; "auto" has been resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """Numbers of parameters."""

    parameters: int
    trained: int


class WideLinear(nn.Linear):
    """A linear layer computed in float32 at least, whatever its weights are kept in, autocast or not.

    bfloat16 has 101 values between 0.35 and 0.65, too few to tell one emotion from the next.
    """

    def forward(self, input: Float[Tensor, "batch features"]) -> Float[Tensor, "batch outputs"]:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(device_type=input.device.type, enabled=False):
            return F.linear(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class EmotionModel(nn.Module):
    """Predicts the targets of a ``ModelConfig`` from speech, from a transcript, or from both."""

    def __init__(
        self, config: ModelConfig, *, speech: PreTrainedModel | None, text: PreTrainedModel | None, normalise: bool
    ) -> None:
        """The encoders become the model's own and are changed by it.

        Args:
            speech: encoder for ``config.speech``; None without that branch.
            text: encoder for ``config.text``; None without that branch.
            normalise: zero mean, unit variance per utterance before the speech encoder.
        """
        super().__init__()
        self.config = config
        self.encoder_configs = EncoderConfigs(
            speech=None if speech is None else speech.config,
            text=None if text is None else text.config,
            normalise=normalise,
        )
        self.speech: SpeechBranch | None = None
        self.text: TextBranch | None = None
        checkpointing = config.gradient_checkpointing
        if config.speech is not None:
            assert speech is not None
            self.speech = SpeechBranch(speech, config.speech, normalise=normalise, gradient_checkpointing=checkpointing)
        if config.text is not None:
            assert text is not None
            self.text = TextBranch(text, config.text, gradient_checkpointing=checkpointing)
        size = sum(branch.pooling.size for branch in (self.speech, self.text) if branch is not None)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = WideLinear(size, config.embedding)
        self.prediction = WideLinear(config.embedding, len(config.targets))
        # Labels lie on 0..1. Started at 0, the first hundreds of steps would go into finding the middle of the scale:
        # while the means differ, CCC has next to no gradient for anything else.
        nn.init.constant_(self.prediction.bias, 0.5)

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        num_samples: Int64[Tensor, " batch"],
        tokens: Int64[Tensor, "batch tokens"] | None = None,
        num_tokens: Int64[Tensor, " batch"] | None = None,
    ) -> ModelOutput:
        """Embedding and prediction of each row; the same for a row alone and in any batch, in evaluation mode.

        Args:
            audio: waveforms on -1..1 at 16 kHz; what lies after a row's ``num_samples`` is not looked at.
            num_samples: real samples per row.
            tokens: transcripts as token numbers; not looked at without a text branch.
            num_tokens: real tokens per row.

        Raises:
            ConfigError: a model with a text branch was given no tokens.
        """
        vectors = []
        if self.speech is not None:
            vectors.append(self.dropout(self.speech(audio, num_samples)))
        if self.text is not None:
            if tokens is None or num_tokens is None:
                raise ConfigError(
                    "this model reads transcripts, and was given none. Use a model without a text branch."
                )
            vectors.append(self.dropout(self.text(tokens, num_tokens)))
        embedding = self.embedding(torch.cat(vectors, dim=1))
        return ModelOutput(embedding=embedding, prediction=self.prediction(embedding))


def build_model(config: ModelConfig, *, vocabulary_size: int | None = None) -> EmotionModel:
    """The model that ``[model]`` describes, with pretrained weights where it names them.

    Call it before an Accelerator exists (ZeRO-3 breaks loading) and after seeding: random weights come from torch's
    global generator. The model is in training mode.

    Args:
        vocabulary_size: pieces of the tokenizer; a text encoder from "scratch" needs it.

    Raises:
        ConfigError: an encoder that cannot be had or does not fit, or a setting that makes no sense with it.
    """
    speech = text = None
    normalise = False
    if config.speech is not None:
        speech = load_speech_encoder(config.speech)  # first: an encoder that is not there has no such property
        normalise = does_normalise(config.speech)
    if config.text is not None:
        text = load_text_encoder(config.text, vocabulary_size)
    return EmotionModel(config, speech=speech, text=text, normalise=normalise).train()


def rebuild_model(config: ModelConfig, encoders: EncoderConfigs) -> EmotionModel:
    """A model of that shape with random weights, for a state to be loaded into; needs neither hub nor folders."""
    return EmotionModel(
        config,
        speech=None if encoders.speech is None else encoder_from_config("speech", encoders.speech),
        text=None if encoders.text is None else encoder_from_config("text", encoders.text),
        normalise=encoders.normalise,
    )


def parameter_groups(model: EmotionModel) -> dict[str, list[nn.Parameter]]:
    """The trained parameters: those of pretrained or scratch encoders under "encoder", all others under "rest".

    "encoder" is empty when the encoders are frozen: an optimizer must not be given an empty group.
    """
    encoders = [
        parameter
        for branch in (model.speech, model.text)
        if branch is not None
        for name, parameter in branch.named_parameters()
        if not name.startswith("pooling.")
    ]
    inside = {id(parameter) for parameter in encoders}
    return {
        "encoder": [p for p in encoders if p.requires_grad],
        "rest": [p for p in model.parameters() if p.requires_grad and id(p) not in inside],
    }


def describe(model: EmotionModel) -> dict[str, PartSize]:
    """Numbers of parameters of each branch, of the "head" and of the "model" as a whole."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, branch in (("speech", model.speech), ("text", model.text)):
        if branch is not None:
            parts[name] = list(branch.parameters())
    parts["head"] = [*model.embedding.parameters(), *model.prediction.parameters()]
    parts["model"] = list(model.parameters())
    return {
        name: PartSize(
            parameters=sum(_size(p) for p in parameters),
            trained=sum(_size(p) for p in parameters if p.requires_grad),
        )
        for name, parameters in parts.items()
    }


def _size(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor here and its size there
