"""The emotion model: speech branches and/or a text branch -> embedding -> prediction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from ccts_dist.batches import FrameBatch
from ccts_dist.config import ModelConfig, SpeechConfig, num_poolings, speech_tables
from ccts_dist.config.model_rules import EXTRA_SPEECH
from ccts_dist.errors import ConfigError
from ccts_dist.model.adapters import add_adapters
from ccts_dist.model.branches import SpeechBranch, TextBranch
from ccts_dist.model.encoder_check import check_encoder
from ccts_dist.model.encoders import (
    does_normalize,
    encoder_from_config,
    load_speech_encoder,
    read_extractor,
    reads_features,
)
from ccts_dist.model.fusion import CrossAttentionFusion
from ccts_dist.model.heads import ACTIVATIONS, WideLayerNorm, build_heads
from ccts_dist.model.pooling import PerTargetPooling, build_pooling
from ccts_dist.model.precision import WideLinear
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch
from ccts_dist.model.speech.filterbank import FilterbankBranch
from ccts_dist.model.text.encoders import load_text_encoder


class ModelOutput(NamedTuple):
    """Output of the model for a batch. A tuple of tensors, since DeepSpeed's hooks walk through it."""

    embedding: Tensor
    """[batch hidden], in float32: what a teacher hands on and a student imitates."""

    prediction: Tensor
    """[batch dim], in float32: one number per target, on 0..1 labels but not bounded."""

    categories: Tensor | None = None
    """[batch categories], in float32: a score per category, before any softmax; None in a model without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfigs:
    """The configurations, beside a ``ModelConfig``, to build a model again without the hub and its encoders'
    folders."""

    speech: PreTrainedConfig | None = None
    """None for a filter bank, which its table shapes, or without that branch."""

    text: PreTrainedConfig | None = None
    do_normalize: bool = False
    """True if utterances are normalised before the speech encoder; "auto" has been resolved."""

    extra_speech: tuple[PreTrainedConfig | None, ...] = ()
    """Configurations of the further speech encoders, in order; None for a filter bank."""

    extra_do_normalize: tuple[bool, ...] = ()
    """``do_normalize`` of each further speech encoder."""

    extractor: FeatureExtractionMixin | None = None
    """Feature extractor of the speech encoder; None for one that convolves the waveform, or a filter bank."""

    extra_extractors: tuple[FeatureExtractionMixin | None, ...] = ()
    """``extractor`` of each further speech encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """Numbers of parameters."""

    parameters: int
    trained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechEncoder:
    """A speech encoder before it becomes part of a model."""

    encoder: PreTrainedModel | None
    """None for a filter bank, which the model makes itself."""

    do_normalize: bool
    """Zero mean, unit variance per utterance before the encoder."""

    extractor: FeatureExtractionMixin | None = None
    """Feature extractor of the encoder; None where audio itself is the input."""


class EmotionModel(nn.Module):
    """Predicts the targets of a ``ModelConfig`` from speech, from a transcript, or from both."""

    def __init__(self, config: ModelConfig, *, speech: Sequence[SpeechEncoder], text: PreTrainedModel | None) -> None:
        """The encoders become the model's own and are changed by it.

        Args:
            speech: encoders for ``config.speech`` and each of ``config.extra_speech``, in this order; empty without
                speech.
            text: encoder for ``config.text``; None without that branch.
        """
        super().__init__()
        self.config = config
        self.encoder_configs = _configs_of(speech, text)
        branches = [
            _speech_branch(encoder, table, branch, config)
            for encoder, (table, branch) in zip(speech, speech_tables(config).items(), strict=True)
        ]
        self.speech: SpeechBranch | ExtractedBranch | FilterbankBranch | None = branches[0] if branches else None
        self.text: TextBranch | None = None
        if config.text is not None:
            assert text is not None
            self.text = TextBranch(text, config.text, gradient_checkpointing=config.gradient_checkpointing)
        self.add_module(EXTRA_SPEECH, nn.ModuleList(branches[1:]))
        pooled = [branch for branch in (*branches, self.text) if branch is not None]
        if config.poolings == "per-target":
            tables = [table for table in (*speech_tables(config).values(), config.text) if table is not None]
            for branch, table in zip(pooled, tables, strict=True):
                others = [build_pooling(table, branch.frame_size) for _ in range(num_poolings(config) - 1)]
                branch.pooling = PerTargetPooling([branch.pooling, *others])
        size = sum(branch.pooling.size for branch in pooled)
        self.fusion: CrossAttentionFusion | None = None
        if config.fusion == "cross-attention":
            assert self.speech is not None
            assert self.text is not None
            self.fusion = CrossAttentionFusion(self.speech.frame_size, self.text.frame_size, config.fusion_heads)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = WideLinear(size, config.embedding_dim)
        self.embedding_norm = WideLayerNorm(config.embedding_dim) if config.embedding_norm == "layer" else None
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.prediction = build_heads(config)
        self.categories = WideLinear(config.embedding_dim, len(config.categories)) if config.categories else None

    @property
    def extra_speech(self) -> nn.ModuleList:
        """The branches of ``config.extra_speech``, in this order."""
        return cast(nn.ModuleList, self.get_submodule(EXTRA_SPEECH))

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        num_samples: Int64[Tensor, " batch"],
        tokens: Int64[Tensor, "batch tokens"] | None = None,
        num_tokens: Int64[Tensor, " batch"] | None = None,
        frames: Mapping[str, FrameBatch] | None = None,
    ) -> ModelOutput:
        """Embedding and prediction of each row; the same for a row alone and in any batch, in evaluation mode.

        Args:
            audio: waveforms on -1..1 at 16 kHz; what lies after a row's ``num_samples`` is not looked at.
            num_samples: real samples per row.
            tokens: transcripts as token numbers; not looked at without a text branch.
            num_tokens: real tokens per row.
            frames: by branch, what its encoder made of these rows; it is then not run again.

        Raises:
            ConfigError: a model with a text branch was given no tokens.
        """
        cached = frames or {}
        if self.text is not None and "text" not in cached and (tokens is None or num_tokens is None):
            raise ConfigError("this model reads transcripts, and was given none. Use a model without a text branch.")
        pooled = self._pool_each if self.fusion is None else self._pool_fused
        vectors = [self.dropout(vector) for vector in pooled(audio, num_samples, tokens, num_tokens, cached)]
        embedding = self.embedding(torch.cat(vectors, dim=-1))
        if self.embedding_norm is not None:
            embedding = self.embedding_norm(embedding)
        embedding = ACTIVATIONS[self.config.embedding_activation](embedding)
        read = self.embedding_dropout(embedding)
        prediction = self.prediction(read)
        categories = None if self.categories is None else self.categories(read)
        if self.config.poolings == "per-target":  # all have the poolings as second dimension
            prediction = prediction.diagonal(dim1=1, dim2=2)
            categories = None if categories is None else categories[:, -1]
            embedding = embedding.mean(dim=1)
        return ModelOutput(embedding=embedding, prediction=prediction, categories=categories)

    def _pool_each(
        self,
        audio: Tensor,
        num_samples: Tensor,
        tokens: Tensor | None,
        num_tokens: Tensor | None,
        cached: Mapping[str, FrameBatch],
    ) -> Iterator[Tensor]:
        """The vector of each branch by itself."""
        speech = {} if self.speech is None else {"speech": self.speech}
        speech |= {f"{EXTRA_SPEECH}.{number}": branch for number, branch in enumerate(self.extra_speech)}
        for name, branch in speech.items():
            yield branch(audio, num_samples, cached[name]) if name in cached else branch(audio, num_samples)
        if self.text is not None:
            yield self.text(tokens, num_tokens, cached.get("text"))

    def _pool_fused(
        self,
        audio: Tensor,
        num_samples: Tensor,
        tokens: Tensor | None,
        num_tokens: Tensor | None,
        cached: Mapping[str, FrameBatch],
    ) -> Iterator[Tensor]:
        """The vectors of speech and text, whose frames are fused before they are pooled."""
        assert self.speech is not None
        assert self.text is not None
        assert self.fusion is not None
        speech, text = (
            None if one is None else (one.frames, one.num_frames) for one in map(cached.get, ("speech", "text"))
        )
        frames, num_frames = speech or self.speech.encode(audio, num_samples)
        words, num_words = text or self.text.encode(cast(Tensor, tokens), cast(Tensor, num_tokens))
        frames, words = self.fusion(frames, num_frames, words, num_words)
        yield self.speech.pooling(frames, num_frames)
        yield self.text.pooling(words, num_words)


def build_model(config: ModelConfig, *, vocabulary_size: int | None = None) -> EmotionModel:
    """The model that ``[model]`` describes, with pretrained weights where it names them.

    Call it before an Accelerator exists (ZeRO-3 breaks loading) and after seeding: random weights come from torch's
    global generator. The model is in training mode.

    Args:
        vocabulary_size: pieces of the tokenizer; a text encoder from "scratch" needs it.

    Raises:
        ConfigError: an encoder that cannot be had or does not fit, or a setting that makes no sense with it.
    """
    speech = [_load_speech(table, branch) for table, branch in speech_tables(config).items()]
    text = None if config.text is None else load_text_encoder(config.text, vocabulary_size)
    return with_adapters(EmotionModel(config, speech=speech, text=text)).train()


def with_adapters(model: EmotionModel) -> EmotionModel:
    """The same model, for training: its encoders have the adapters that "lora:R" asks for.

    Raises:
        ConfigError: an encoder that can have none.
        ModuleNotFoundError: peft is not installed, and there is such an encoder.
    """
    for (table, config), branch in zip(
        speech_tables(model.config).items(), (model.speech, *model.extra_speech), strict=False
    ):
        if isinstance(branch, SpeechBranch | ExtractedBranch):
            add_adapters(branch.encoder, config.trainable, table=table)
    if model.text is not None and model.config.text is not None:
        add_adapters(model.text.encoder, model.config.text.trainable, table="model.text")
    return model


def rebuild_model(config: ModelConfig, encoders: EncoderConfigs) -> EmotionModel:
    """A model of that shape with random weights and no adapters, for a saved state; needs neither hub nor folders."""
    tables = speech_tables(config)
    shapes = (encoders.speech, *encoders.extra_speech)[: len(tables)]
    do_normalize = (encoders.do_normalize, *encoders.extra_do_normalize)[: len(tables)]
    extractors = (encoders.extractor, *encoders.extra_extractors)[: len(tables)]
    speech = [
        SpeechEncoder(
            encoder=None if shape is None else encoder_from_config("speech", shape),
            do_normalize=on,
            extractor=extractor,
        )
        for shape, on, extractor in zip(shapes, do_normalize, extractors, strict=True)
    ]
    text = None if encoders.text is None else encoder_from_config("text", encoders.text)
    return EmotionModel(config, speech=speech, text=text)


def parameter_groups(model: EmotionModel) -> dict[str, list[nn.Parameter]]:
    """The trained parameters: "speech" and "text" hold those of pretrained or scratch encoders, "head" all others.

    A group is empty when its encoders are frozen or not there: an optimizer must not be given an empty group.
    """
    branches = {"speech": [model.speech, *model.extra_speech], "text": [model.text]}
    groups = {
        name: [
            parameter
            for branch in parts
            if branch is not None
            for place, parameter in branch.named_parameters()
            if place.startswith(("encoder.", "front_end.")) and parameter.requires_grad
        ]
        for name, parts in branches.items()
    }
    inside = {id(parameter) for group in groups.values() for parameter in group}
    return groups | {"head": [p for p in model.parameters() if p.requires_grad and id(p) not in inside]}


def describe(model: EmotionModel) -> dict[str, PartSize]:
    """Numbers of parameters of each branch, of the "head" and of the "model" as a whole."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, branch in (("speech", model.speech), ("text", model.text)):
        if branch is not None:
            parts[name] = list(branch.parameters())
    for number, branch in enumerate(model.extra_speech):
        parts[f"extra speech {number}"] = list(branch.parameters())
    heads = (model.fusion, model.embedding, model.embedding_norm, model.prediction, model.categories)
    parts["head"] = [parameter for head in heads if head is not None for parameter in head.parameters()]
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


def _load_speech(table: str, config: SpeechConfig) -> SpeechEncoder:
    """The encoder that a table names, and what is done to the audio before it."""
    try:
        # The encoder first: one that is not there has no such property.
        encoder = None if config.encoder == "filterbank" else load_speech_encoder(config)
        if encoder is None or not reads_features(encoder.config):
            return SpeechEncoder(encoder=encoder, do_normalize=does_normalize(config))
        extractor = read_extractor(config.encoder)
        check_encoder(encoder, extractor, config)
        return SpeechEncoder(encoder=encoder, do_normalize=False, extractor=extractor)
    except ConfigError as error:
        # Loading knows one table of speech encoders.
        raise ConfigError(str(error).replace("model.speech", table)) from error


def _speech_branch(
    speech: SpeechEncoder, table: str, branch: SpeechConfig, config: ModelConfig
) -> SpeechBranch | ExtractedBranch | FilterbankBranch:
    if speech.encoder is None:
        return FilterbankBranch(branch, do_normalize=speech.do_normalize)
    recompute = config.gradient_checkpointing
    if speech.extractor is not None:
        return ExtractedBranch(speech.encoder, speech.extractor, branch, gradient_checkpointing=recompute, table=table)
    return SpeechBranch(
        speech.encoder, branch, do_normalize=speech.do_normalize, gradient_checkpointing=recompute, table=table
    )


def _configs_of(speech: Sequence[SpeechEncoder], text: PreTrainedModel | None) -> EncoderConfigs:
    shapes = [None if one.encoder is None else one.encoder.config for one in speech] or [None]
    do_normalize = [one.do_normalize for one in speech] or [False]
    extractors = [one.extractor for one in speech] or [None]
    return EncoderConfigs(
        speech=shapes[0],
        text=None if text is None else text.config,
        do_normalize=do_normalize[0],
        extra_speech=tuple(shapes[1:]),
        extra_do_normalize=tuple(do_normalize[1:]),
        extractor=extractors[0],
        extra_extractors=tuple(extractors[1:]),
    )
