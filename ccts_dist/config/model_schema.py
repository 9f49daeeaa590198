"""What a run file can say of the model: the tables under ``[model]``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ccts_dist.config.augment import SpecAugmentConfig
from ccts_dist.config.ranges import Between, Count, Share
from ccts_dist.records import DIMENSIONS

Pooling = Literal["gru", "mean", "statistics", "attentive-statistics", "self-attention", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterbankConfig:
    """A small speech encoder that needs no pretraining: log-mel energies, then convolutions over time."""

    num_mel_bins: Annotated[int, Between(8, 128)] = 40
    """Mel bands between 0 and 8,000 Hz."""

    frame_length_ms: Annotated[float, Between(5, 64)] = 25.0
    """Length of the audio that one vector of energies describes."""

    frame_shift_ms: Annotated[float, Between(1, 64)] = 10.0
    """Time from one such vector to the next."""

    channels: tuple[Count, ...] = (64, 64)
    """Features that come out of each convolution; empty for the energies themselves."""

    kernel: Count = 5
    """Width of each convolution."""

    stride: Count = 2
    """Step of each convolution: frames come every ``step_ms`` times stride to the power of the convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechConfig:
    """The speech branch: encoder, what of it is trained, and how its frames become one vector."""

    encoder: str
    """Folder or hub name of a transformers speech encoder. Of type "hubert", "wav2vec2", "wavlm", "data2vec-audio",
    "unispeech", "unispeech-sat", "wav2vec2-conformer", "sew", "sew-d" and "modified-cpc", which is ours, the waveform
    is heard in batches. Any other that gives frames hears through the feature extractor saved with it: "whisper" (its
    encoder, in pieces of 30 s, filled up) and "wav2vec2-bert" in batches; all others are tried out when they are
    loaded, and hear one utterance at a time, not under ZeRO-3. "scratch" for random weights shaped by ``scratch``;
    "filterbank" for a small encoder of log-mel energies, shaped by ``filterbank``."""

    scratch: Mapping[str, Any] = field(default_factory=dict)
    """With encoder = "scratch": ``model_type`` ("hubert", ...; of those that hear the waveform in batches) and keys of
    that model's transformers configuration."""

    filterbank: FilterbankConfig | None = None
    """With encoder = "filterbank": its shape; absent for the defaults."""

    trainable: str = "all"
    """Transformer layers that are trained: "none", "all", or "top:N": the N highest of those that are used, and what
    lies above them in the encoder. The paper's teachers and frozen rows have "none", its tuned students "top:6"."""

    layers: str = "last"
    """Which frames are pooled. "last": what leaves the encoder; "layer:N": what leaves its layer N, counted from 1 (0:
    what enters the first), and no layer above is computed; "weighted": a learnt softmax-weighted mean of all of these,
    equally weighted at first. SEW, SEW-D and "filterbank" give "last" only."""

    encoder_dropout: Share | None = None
    """Every dropout inside the encoder (on its attention, activations, layers and projected features) while the model
    is trained, also in layers that are not; absent as the encoder's own configuration has it. Not with encoder =
    "filterbank", which has none, nor with ``trainable`` = "none", whose encoder is never in training mode."""

    train_feature_encoder: bool = False
    """Train the convolutional front end too. Not of encoders that hear through a feature extractor, whose convolutions
    belong to what ``trainable`` "all" trains."""

    spec_augment: SpecAugmentConfig | None = None
    """Masking while it is trained; without this table it is as the encoder's own configuration says, and none with
    encoder = "scratch" unless ``scratch`` names ``apply_spec_augment``. To turn it off set both shares to 0. Encoders
    that hear through a feature extractor mask nothing, and refuse the table."""

    do_normalize: Literal["auto", "on", "off"] = "auto"
    """Zero mean, unit variance per utterance before the encoder; "auto" does as the encoder was pretrained. A feature
    extractor decides by itself: beside one it must be "auto"."""

    pooling: Pooling = "gru"
    """Frames to one vector. "gru": the GRU's output at the last real frame; "mean"; "statistics": mean and deviation;
    "attentive-statistics": both weighted by a learnt attention (Okabe 2018); "self-attention": the mean weighted by the
    frames' likeness to a learnt query; "first": the first frame, or the first token, which BERT-like encoders put
    before the words for this use ([CLS], <s>)."""

    gru_hidden: Count = 128
    """Units of the GRU."""

    gru_layers: Count = 2
    """Layers of the GRU."""

    attention_hidden: Count = 128
    """Hidden units of "attentive-statistics"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text branch."""

    encoder: str
    """Folder or hub name of a BERT-like encoder with its own tokenizer, SentencePiece's too; BERT, ELECTRA, ALBERT,
    DeBERTa-v3 and XLM-R are tested. "scratch" for random weights shaped by ``scratch``."""

    scratch: Mapping[str, Any] = field(default_factory=dict)
    """With encoder = "scratch": ``model_type`` ("bert", ...) and keys of that model's transformers configuration."""

    vocab_size: Count = 400
    """With encoder = "scratch": most pieces of the SentencePiece model trained on the training transcripts."""

    trainable: str = "all"
    """As in the speech branch. The paper's text encoders are frozen: "none"."""

    layers: str = "last"
    """As in the speech branch. N begins at 1 in ALBERT and DeBERTa; ALBERT always computes all of its layers."""

    max_tokens: Annotated[int, Between(3)] = 128
    """Longer transcripts are cut."""

    pooling: Pooling = "gru"
    """As in the speech branch, over tokens."""

    gru_hidden: Count = 128
    """Units of the GRU."""

    gru_layers: Count = 2
    """Layers of the GRU."""

    attention_hidden: Count = 128
    """Hidden units of "attentive-statistics"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """An emotion model: speech branches and/or a text branch -> embedding -> prediction."""

    targets: tuple[str, ...] = DIMENSIONS
    """What is predicted, in this order; names of labels in the shards. NAME.variance (valence.variance) is how far the
    raters of NAME were apart: the population variance of their ratings on 0..1, so 0 to 0.25, where the corpus gives
    it; not for a teacher whose outputs are to be cached. Empty to train ``categories`` alone: then the loss is their
    cross-entropy, and the best model the one of the highest unweighted accuracy (``valid/uar``)."""

    categories: tuple[str, ...] = ()
    """Emotions to tell apart beside the targets, as the corpus spells them: a linear layer on the embedding gives each
    a score. Utterances of another category, or of none, count for the targets alone. What is told of them on validation
    and test splits: weighted and unweighted accuracy, macro F1, cross-entropy. Empty for none."""

    embedding_dim: Count = 128
    """Size of the embedding that a teacher hands on."""

    embedding_norm: Literal["none", "layer"] = "none"
    """Between the linear layer that makes the embedding and its activation: "layer" for layer normalization."""

    embedding_activation: Literal["none", "relu", "gelu", "tanh"] = "none"
    """Activation of the embedding; "none" for the paper's linear one. The embedding that is distilled, cached and given
    to users is what comes out of it."""

    embedding_dropout: Share = 0.0
    """Dropout on what the heads read of the embedding; the embedding term of the distillation takes it undropped."""

    dropout: Share = 0.0
    """Dropout on each branch's pooled vector."""

    heads: Literal["shared", "per-target"] = "shared"
    """From the embedding to the targets: one linear layer for all, or for each target a hidden layer and a linear one
    of its own."""

    head_hidden_dim: Count = 64
    """Hidden units of each head of "per-target"."""

    gradient_checkpointing: bool = False
    """Recompute encoder layers in the backward pass: less memory, about a third more time."""

    speech: SpeechConfig | None = None
    extra_speech: tuple[SpeechConfig, ...] = ()
    """Further speech encoders beside ``speech``, tables [[model.extra_speech]]: each hears the same audio, normalised
    its own way, and pools its own frames; the vectors stand side by side before the embedding."""

    text: TextConfig | None = None


def num_trainable_layers(trainable: str) -> int | None:
    """Transformer layers counted from the top that ``trainable`` names; None for all of them.

    Raises:
        ValueError: not "none", "all" or "top:N" with N of at least 1.
    """
    if trainable == "all":
        return None
    if trainable == "none":
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
