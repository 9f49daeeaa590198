"""The tables of a run file under ``[model]``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ccts_dist.config.augment import SpecAugmentConfig
from ccts_dist.config.ranges import Between, Count, Share
from ccts_dist.records import DIMENSIONS

Pooling = Literal["gru", "mean", "statistics", "attentive-statistics", "self-attention", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterbankConfig:
    """Small speech encoder that needs no pretraining: log-mel energies, then convolutions over time."""

    num_mel_bins: Annotated[int, Between(8, 128)] = 40
    """Number of mel bands between 0 and 8,000 Hz."""

    frame_length_ms: Annotated[float, Between(5, 64)] = 25.0
    """Length of a frame of audio, in milliseconds."""

    frame_shift_ms: Annotated[float, Between(1, 64)] = 10.0
    """Time from one frame to the next, in milliseconds."""

    channels: tuple[Count, ...] = (64, 64)
    """Output features of each convolution; empty for the energies themselves."""

    kernel: Count = 5
    """Width of each convolution."""

    stride: Count = 2
    """Stride of each convolution: its output has a frame every ``frame_shift_ms`` times stride to the power of the
    number of convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechConfig:
    """Speech branch: encoder, trainable layers, and pooling of its frames to one vector."""

    encoder: str
    """Folder or hub name of a transformers speech encoder. Types "hubert", "wav2vec2", "wavlm", "data2vec-audio",
    "unispeech", "unispeech-sat", "wav2vec2-conformer", "sew", "sew-d" and our "modified-cpc" and "emotion2vec" encode
    the waveform in batches. Any other that gives frames takes features from the feature extractor saved with it. Of
    those, "whisper" (its encoder, in pieces of 30 s, filled up) and "wav2vec2-bert" run in batches. All others are
    checked when they are loaded; they encode one utterance at a time, and not under ZeRO-3. "scratch" for random
    weights shaped by ``scratch``; "filterbank" for a small encoder of log-mel energies, shaped by ``filterbank``."""

    scratch: Mapping[str, Any] = field(default_factory=dict)
    """Shape for encoder = "scratch": ``model_type`` ("hubert", ...; of those that encode the waveform in batches) and
    keys of that model's transformers configuration."""

    filterbank: FilterbankConfig | None = None
    """Shape for encoder = "filterbank"; absent for the defaults."""

    trainable: str = "all"
    """Transformer layers that are trained: "none", "all" or "top:N", the N highest of those in use and the parts above
    them. The paper's teachers and frozen rows have "none", its tuned students "top:6". "lora:R" trains low-rank
    adapters of rank R next to frozen weights; it needs the extra "lora". They are in the query and value projections of
    every layer, of "wavlm" in the feed-forward layers. Models are saved with adapters merged into their weights."""

    layers: str = "last"
    """Layer whose frames are pooled. "last": the encoder's output. "layer:N": the output of its layer N, counted from 1
    (0: the input of the first); no layer above is computed. "weighted": a learnt softmax-weighted mean of all of these,
    equally weighted at first. SEW, SEW-D and "filterbank" give "last" only."""

    encoder_dropout: Share | None = None
    """Every dropout rate inside the encoder (attention, activations, layers, projected features) in training, also in
    frozen layers. Absent for the rates of the encoder's own configuration. Not with encoder = "filterbank", which has
    none. Not with ``trainable`` = "none", whose encoder is never in training mode."""

    train_feature_encoder: bool = False
    """Train the convolutional feature encoder too. Not for encoders with a feature extractor, whose convolutions are
    part of ``trainable`` = "all"."""

    spec_augment: SpecAugmentConfig | None = None
    """SpecAugment masking in training; without this table as the encoder's own configuration has it. With encoder =
    "scratch" there is none unless ``scratch`` names ``apply_spec_augment``. To turn it off set both shares to 0.
    Encoders with a feature extractor mask nothing, and refuse the table."""

    do_normalize: Literal["auto", "on", "off"] = "auto"
    """Zero mean and unit variance per utterance before the encoder; "auto" as in the encoder's pretraining. A feature
    extractor decides by itself: with one it must be "auto"."""

    pooling: Pooling = "gru"
    """Pooling of frames to one vector. "gru": the GRU's output at the last real frame. "mean": the mean. "statistics":
    mean and standard deviation. "attentive-statistics": both weighted by a learnt attention (Okabe 2018).
    "self-attention": the mean weighted by the frames' likeness to a learnt query. "first": the first frame, or the
    first token, which BERT-like encoders reserve for this use ([CLS], <s>)."""

    gru_hidden: Count = 128
    """Hidden units of the GRU."""

    gru_layers: Annotated[int, Between(1, 64)] = 2
    """Layers of the GRU."""

    attention_hidden: Count = 128
    """Hidden units of "attentive-statistics"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Text branch: encoder, tokenizer, and pooling of its tokens to one vector."""

    encoder: str
    """Folder or hub name of a BERT-like encoder with its own tokenizer, SentencePiece's too. BERT, ELECTRA, ALBERT,
    DeBERTa-v3 and XLM-R are tested. "scratch" for random weights shaped by ``scratch``."""

    scratch: Mapping[str, Any] = field(default_factory=dict)
    """Shape for encoder = "scratch": ``model_type`` ("bert", ...) and keys of that model's transformers configuration.
    """

    vocab_size: Count = 400
    """Largest vocabulary of the SentencePiece model for encoder = "scratch", trained on the training transcripts."""

    trainable: str = "all"
    """Transformer layers that are trained, as in the speech branch. The paper's text encoders are frozen: "none"."""

    layers: str = "last"
    """Layer whose tokens are pooled, as in the speech branch. N begins at 1 in ALBERT and DeBERTa; ALBERT always
    computes all of its layers."""

    max_tokens: Annotated[int, Between(3)] = 128
    """Most tokens of a transcript; longer ones are cut."""

    pooling: Pooling = "gru"
    """Pooling of tokens to one vector, as in the speech branch."""

    gru_hidden: Count = 128
    """Hidden units of the GRU."""

    gru_layers: Annotated[int, Between(1, 64)] = 2
    """Layers of the GRU."""

    attention_hidden: Count = 128
    """Hidden units of "attentive-statistics"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Emotion model: speech branches and/or a text branch -> embedding -> prediction."""

    targets: tuple[str, ...] = DIMENSIONS
    """Predicted targets, in this order; names of labels in the shards. NAME.variance (valence.variance) is the
    population variance of the raters of NAME on 0..1, so 0 to 0.25, where the corpus has it. A teacher with cached
    outputs cannot predict it. Empty to train ``categories`` alone: the loss is their cross-entropy, and
    the best model has the highest unweighted accuracy (``valid/uar``)."""

    categories: tuple[str, ...] = ()
    """Emotion categories that are predicted besides the targets, as the corpus spells them; empty for none. A linear
    layer on the embedding scores each. Utterances of another category, or of none, count for the targets alone.
    Validation and test report weighted and unweighted accuracy, macro F1 and cross-entropy."""

    category_map: Mapping[str, str] = field(default_factory=dict)
    """Categories of the corpus that count as another: { exc = "hap" } merges two, { Other = "" } makes one unknown. All
    others keep their names, and ``categories`` has the names after it. Also used in evaluation, where a corpus may lack
    some of them."""

    fusion: Literal["concat", "cross-attention"] = "concat"
    """Fusion of speech and text. "concat": each branch pools its own frames, and the vectors are concatenated.
    "cross-attention": before pooling the speech frames attend to the tokens of the transcript, and these to the speech
    frames. Both ways are multi-head attention with a residual connection and layer normalization, the co-attentional
    layer of ViLBERT (Lu 2019) without its feed-forward parts. It needs [model.speech] and [model.text] alone."""

    fusion_heads: Count = 4
    """Attention heads of "cross-attention"; must divide the features of both encoders."""

    poolings: Literal["shared", "per-target"] = "shared"
    """Poolings of each branch. "shared": one, for all targets. "per-target": one for each target, and one for the
    categories together, so that each weighs the frames its own way; not for poolings without weights. The layers from
    a pooled vector to the embedding are the same for all. A head reads the embedding of its own target, and the
    embedding that is distilled, cached and returned is the mean of all of them."""

    embedding_dim: Count = 128
    """Size of the embedding, which the student imitates."""

    embedding_norm: Literal["none", "layer"] = "none"
    """Normalization between the linear layer of the embedding and its activation; "layer" for layer normalization."""

    embedding_activation: Literal["none", "relu", "gelu", "tanh"] = "none"
    """Activation of the embedding; "none" for the paper's linear one. Its output is the embedding that is distilled,
    cached and returned."""

    embedding_dropout: Share = 0.0
    """Dropout rate on the embedding as input of the heads; the embedding term of the distillation takes it undropped.
    """

    dropout: Share = 0.0
    """Dropout rate on each branch's pooled vector."""

    heads: Literal["shared", "per-target"] = "shared"
    """Heads from the embedding to the targets. "shared": one linear layer for all. "per-target": a hidden layer and a
    linear one for each target."""

    head_hidden_dim: Count = 64
    """Hidden units of each head of "per-target"."""

    gradient_checkpointing: bool = False
    """Recompute encoder layers in the backward pass: less memory, about a third more time."""

    speech: SpeechConfig | None = None
    extra_speech: tuple[SpeechConfig, ...] = ()
    """Further speech encoders besides ``speech``, tables [[model.extra_speech]]. Each encodes the same audio,
    normalized its own way, and pools its own frames; the vectors are concatenated before the embedding."""

    text: TextConfig | None = None


def num_poolings(model: ModelConfig) -> int:
    """Poolings of each branch; with ``poolings`` = "per-target" that of the categories is the last."""
    return 1 if model.poolings == "shared" else len(model.targets) + bool(model.categories)


def lora_rank(trainable: str) -> int | None:
    """The R of "lora:R"; None for all else."""
    kind, _, rank = trainable.partition(":")
    return int(rank) if kind == "lora" and rank.isdecimal() and int(rank) >= 1 else None


def num_trainable_layers(trainable: str) -> int | None:
    """Transformer layers counted from the top whose own weights ``trainable`` names; None for all of them.

    Raises:
        ValueError: not "none", "all", "lora:R" or "top:N" with numbers of at least 1.
    """
    if trainable == "all":
        return None
    if trainable == "none" or lora_rank(trainable) is not None:
        return 0
    kind, _, number = trainable.partition(":")
    if kind != "top" or not number.isdecimal() or int(number) < 1:
        raise ValueError(trainable)
    return int(number)


def layer_number(layers: str) -> int | None:
    """The N of "layer:N"; None for "last" and "weighted".

    Raises:
        ValueError: none of these.
    """
    if layers in ("last", "weighted"):
        return None
    kind, _, number = layers.partition(":")
    if kind != "layer" or not number.isdecimal():
        raise ValueError(layers)
    return int(number)
