"""The text of a first run file: every key with its reason, values from the facts of a shard set."""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ccts_dist.config import parse_run
from ccts_dist.errors import ConfigError, without_controls
from ccts_dist.train.starter.facts import SetFacts

LARGE = "facebook/hubert-large-ll60k"
BERT = "google-bert/bert-base-uncased"

_SMALL_SPEECH = {
    "model_type": "hubert",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": [64, 64, 96],
    "conv_kernel": [40, 8, 16],
    "conv_stride": [20, 4, 8],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 16,
}
_SMALL_TEXT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
"""Shapes of the demo's encoders."""

_LONGEST_S = 30.0
"""Training utterances above it are cut to ``_CUT_S``: activations grow with the longest one."""

_CUT_S = 15.0
_PASS_S, _SMALL_PASS_S = 80.0, 160.0
"""Padded seconds of a forward and backward pass of a large encoder in 40 GB, and of a small one on a laptop."""

_LARGEST_BATCH, _LEAST_BATCH, _STEPS_OF_AN_EPOCH = 32, 8, 8

Kind = Literal["speech", "teacher", "student"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The run that is asked for."""

    kind: Kind
    shards: str
    name: str
    """Name of the run, its folder and its registered model."""

    cache: str = ""
    """Teacher cache of a student."""

    encoder: str = ""
    """Speech encoder: hub name, folder or "filterbank"; "" for HuBERT large, or with ``small`` a small one."""

    text_encoder: str = ""
    """Text encoder of a teacher: hub name or folder; "" for BERT base, or with ``small`` a small one."""

    small: bool = False
    """Small encoders with random weights, which a laptop trains without downloads."""


def write_run_file(path: Path, text: str) -> None:
    """Write a new file.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path}: is there already. Name another file, or remove it.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written ({error}). Name another file.") from error


def run_file_text(wanted: Wanted, facts: SetFacts) -> str:
    """A run file that ``config.read_run`` takes.

    Raises:
        ConfigError: a teacher without transcripts or targets, a student without targets, or a name that is none.
    """
    if wanted.kind != "speech" and not facts.targets:
        raise ConfigError(
            f"{wanted.shards}: has no target with labels, only categories: a student learns a teacher's predictions of "
            "targets. Leave --with-text and --teacher-cache out for a model of speech and categories."
        )
    if wanted.kind == "teacher" and not facts.has_transcripts:
        raise ConfigError(
            f"{wanted.shards}: most utterances have no transcript, and a teacher reads them. Transcribe the corpus "
            "with shards/transcribe.py and build it again, or leave --teacher out."
        )
    text = "\n".join(_lines(wanted, facts)) + "\n"
    parse_run(tomllib.loads(text), source=wanted.name)
    return text


_TITLES: Mapping[Kind, str] = {
    "speech": "A model of speech alone, without a teacher",
    "teacher": "A teacher: a model of speech and transcripts",
    "student": "A student: a model of speech that also learns from a teacher",
}


def _lines(wanted: Wanted, facts: SetFacts) -> Iterator[str]:
    corpus = without_controls(facts.corpus)
    yield f"# {_TITLES[wanted.kind]}."
    yield f"# {corpus}: {facts.num_utterances} training utterances, {facts.hours:.2f} h, up to {facts.longest_s:.1f} s."
    yield from _pairs({
        "run_name": (wanted.name, "name of the run, for people"),
        "output_dir": (f"runs/{wanted.name}", "checkpoints and the best model, in best/"),
        "seed": (17, "of new weights, order and dropout"),
    })  # fmt: skip
    yield from _data(wanted, facts)
    yield from _model(wanted, facts)
    if wanted.kind == "student":
        yield from _pairs({
            "embedding_weight": (30.0, "lambda of the paper: weight of the teacher's embeddings"),
            "gate": ("any-dimension", 'distil where the teacher can be trusted; "none": everywhere'),
            "threshold": (2.0, "largest trusted residual, in standard deviations"),
        }, "distill")  # fmt: skip
    yield from _training(wanted, facts)


def _data(wanted: Wanted, facts: SetFacts) -> Iterator[str]:
    how = "by their names" if facts.by_name else "by their order: look whether this is what you want"
    pairs: dict[str, tuple[Any, str]] = {"shards": (wanted.shards, "folder or address of the shard set")}
    if wanted.kind == "student":
        pairs["teacher_cache"] = (wanted.cache, 'of cache_teacher.py; "merged" if the shards carry it')
    pairs |= {
        "train_splits": (facts.train_splits, f"splits were chosen {how}"),
        "valid_splits": (facts.valid_splits, "select the best model"),
        "test_splits": (facts.test_splits, "scored once, at the end; may be empty"),
    }
    if facts.longest_s > _LONGEST_S:
        pairs["max_duration_s"] = (_CUT_S, "train on a random part of longer utterances")
    yield from _pairs(pairs, "data")


def _model(wanted: Wanted, facts: SetFacts) -> Iterator[str]:
    targets = facts.dimensions or (() if wanted.kind == "speech" and facts.categories else facts.targets)
    pairs: dict[str, tuple[Any, str]] = {
        "targets": (targets, "what is predicted as a number" if targets else "none: categories alone")
    }
    if not targets:
        pairs["categories"] = (facts.categories, "what is predicted as a class")
    yield from _pairs(pairs, "model")
    others = [target for target in facts.targets if target not in targets]
    if others and targets:
        yield f"# rated too, and not among targets: {', '.join(others)}"
    if targets and facts.categories:
        yield f"# categories = {_value(facts.categories)}  # to predict classes as well"
    small_speech = wanted.small and not wanted.encoder
    encoder = "scratch" if small_speech else wanted.encoder or LARGE
    fixed = wanted.kind == "teacher" and encoder not in ("scratch", "filterbank")
    speech: dict[str, tuple[Any, str]] = {
        "encoder": (encoder, "hub name or folder of a speech encoder" if encoder != "scratch" else "random weights")
    }
    if encoder == "scratch":
        speech["train_feature_encoder"] = (True, "its convolutions are new too")
    if fixed:
        speech["trainable"] = ("none", 'the paper\'s teacher is frozen; "top:6" or "all" to train it')
    elif encoder != "filterbank":
        speech["trainable"] = ("all", 'layers to train: "none", "top:6", "all"')
    speech["pooling"] = ("statistics", "of frames to one vector: mean and standard deviation")
    yield from _pairs(speech, "model.speech")
    if small_speech:
        yield from _shape(_SMALL_SPEECH, "model.speech.scratch")
    if wanted.kind != "teacher":
        return
    small_text = wanted.small and not wanted.text_encoder
    text: dict[str, tuple[Any, str]] = {
        "encoder": (
            "scratch" if small_text else wanted.text_encoder or BERT,
            "random weights" if small_text else "hub name or folder of a text encoder",
        ),
        "trainable": ("all" if small_text else "none", "layers to train"),
        "pooling": ("statistics", "of tokens to one vector"),
    }
    yield from _pairs(text, "model.text")
    if small_text:
        yield from _shape(_SMALL_TEXT, "model.text.scratch")


def _training(wanted: Wanted, facts: SetFacts) -> Iterator[str]:
    small = wanted.small or wanted.encoder == "filterbank"
    longest = _CUT_S if facts.longest_s > _LONGEST_S else facts.longest_s
    least = min(facts.num_utterances, _LEAST_BATCH)  # CCC and its gradient are noise in smaller ones
    batch = _power_of_two(max(facts.num_utterances / _STEPS_OF_AN_EPOCH, least), most=_LARGEST_BATCH)
    micro = _power_of_two((_SMALL_PASS_S if small else _PASS_S) / longest, most=batch)
    yield from _pairs({
        "global_batch_size": (batch, "utterances of an optimizer step, over all ranks"),
        "micro_batch_size": (micro, "of a forward pass; lower it if memory is short"),
    }, "batch")  # fmt: skip
    yield from _pairs({
        "learning_rate": (1e-3 if small else 5e-4, "of what is new"),
        "encoder_lr_scale": (1.0 if small else 0.25, "the encoder's learning rate is so many times that"),
        "max_grad_norm": (1.0, "gradients are clipped to it"),
    }, "optim")  # fmt: skip
    yield from _pairs({
        "epochs": (50, "at most"),
        "early_stopping_patience": (5, "validations without a better model"),
        "precision": ("fp32" if small else "bf16", '"bf16" is mixed precision, for GPUs; or "fp32"'),
        "deepspeed": ("ds_configs/zero2.json", "ZeRO stage 2"),
    }, "train")  # fmt: skip
    yield from _pairs({
        "experiment_name": (_plain(facts.corpus), "runs of one experiment are listed together"),
        "registered_model_name": (_plain(wanted.name), 'the best model, alias "candidate"; "" registers none'),
    }, "tracking")  # fmt: skip


def _pairs(pairs: Mapping[str, tuple[Any, str]], table: str = "") -> Iterator[str]:
    """Lines of a table, each with its comment."""
    yield ""
    if table:
        yield f"[{table}]"
    lines = [(f"{key} = {_value(value)}", comment) for key, (value, comment) in pairs.items()]
    width = max(len(line) for line, _ in lines if len(line) < 60)
    yield from (f"{line:<{width}}  # {comment}" for line, comment in lines)


def _shape(shape: Mapping[str, Any], table: str) -> Iterator[str]:
    yield ""
    yield f"[{table}]  # the shape, as transformers spells it"
    yield from (f"{key} = {_value(value)}" for key, value in shape.items())


def _value(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return tomli_w.dumps({"k": value}).strip().removeprefix("k = ")


def _power_of_two(number: int | float, *, most: int) -> int:
    """Largest power of two that is not above ``number``, between 1 and ``most``, a power of two."""
    return min(most, 2 ** max(0, math.floor(math.log2(max(number, 1.0)))))


def _plain(name: str) -> str:
    """A name without what ``models:/NAME@ALIAS`` could not hold."""
    return re.sub(r"[^\w-]+", "-", without_controls(name), flags=re.ASCII).strip("-").lower() or "emotion"
