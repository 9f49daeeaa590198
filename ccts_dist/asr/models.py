"""The two kinds of speech recognition models: how each transcribes a window, and what its confidence is the mean of.

CTC models (wav2vec 2.0, HuBERT, WavLM and their kin) give a distribution over symbols per frame: the most probable
symbol of each, repeats and blanks taken out. Sequence-to-sequence models (Whisper, Moonshine) write token by token,
always the most probable one.

Waves of different lengths share a forward pass only where the model does not see the padding: with layer norm in the
convolutions and a mask, or where it pads every wave to one length itself. Elsewhere (group norm over time, convolutions
after the mask) only waves of one length do.
"""

import hashlib
import inspect
import itertools
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from ccts_dist.encoder_settings import check_settings
from ccts_dist.errors import ConfigError
from ccts_dist.records import SAMPLE_RATE_HZ

CTC_TYPES = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
"""transformers' model types with a CTC head that transcribe here."""

SEQ2SEQ_TYPES = ("moonshine", "whisper")
"""transformers' sequence-to-sequence types that transcribe here."""

WINDOW_S = 30.0
"""Longer audio is cut. What Whisper reads at once; attention over minutes would cost gigabytes."""

_PADDED_TYPES = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
_OPTIONAL_WEIGHTS = ("masked_spec_embed", "position_ids")  # fillers of training, and counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Transcript of one window."""

    transcript: str
    total: float
    """Sum of the probabilities (CTC) or log-probabilities (sequence-to-sequence) that the confidence is the mean of."""

    count: int


@runtime_checkable
class AsrModel(Protocol):
    """A model that transcribes windows."""

    window_samples: int
    """Longest wave it takes."""

    min_samples: int
    """Shortest wave it takes."""

    pads: bool
    """True if waves of different lengths may share a pass."""

    def pieces(self, waves: Sequence[Float32[np.ndarray, " _samples"]]) -> list[Piece]:
        """Transcripts of the waves, in one forward pass."""
        ...

    def confidence(self, total: float, count: int) -> float:
        """Confidence of pieces with this total and count together."""
        ...


def ctc_symbols(logits: Float[Tensor, "frames symbols"], blank: int) -> tuple[list[int], float, int]:
    """The symbols of a CTC output, and for the confidence: sum of probabilities, and number of frames that count.

    Args:
        blank: the symbol that stands for nothing new.

    Returns:
        The most probable symbol of each frame with repeats made one and blanks dropped; the sum of their
        probabilities over the frames that are not blank; how many those are.
    """
    probability, symbol = logits.double().softmax(dim=-1).max(dim=-1)
    spoken = symbol != blank
    collapsed = [one for one, _ in itertools.groupby(symbol.tolist()) if one != blank]
    total = float("nan") if not bool(torch.isfinite(logits).all()) else float(probability[spoken].sum())
    return collapsed, total, int(spoken.sum())


def written_tokens(
    scores: Float[Tensor, "tokens symbols"], tokens: Int64[Tensor, " tokens"], ends: frozenset[int]
) -> tuple[list[int], float, int]:
    """The tokens of one text, and for the confidence: sum of their log-probabilities, and how many count.

    Args:
        scores: before each token, one logit per symbol; minus infinity for what may not be written.
        tokens: as written; what stands after the first end is filling.
        ends: tokens that end a text.

    Returns:
        The tokens before the end; the sum of log-probabilities and the number of tokens, the end included.
    """
    written = tokens.tolist()
    length = next((at + 1 for at, token in enumerate(written) if token in ends), len(written))
    taken = tokens[:length, None].to(scores.device)
    log_probability = scores[:length].double().log_softmax(dim=-1).gather(1, taken)
    return [token for token in written[:length] if token not in ends], float(log_probability.sum()), length


class CtcModel:
    """A model with a CTC head, its feature extractor and its tokenizer."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, device: torch.device) -> None:
        self._model, self._extractor, self._tokenizer, self._device = model, extractor, tokenizer, device
        self.window_samples = int(WINDOW_S * SAMPLE_RATE_HZ)
        self.min_samples = _first_frame(model, self.window_samples)
        self.pads = _ignores_padding(model.config)
        # transformers' own grouping (5.23) drops the blanks first and so makes one of every double letter.
        groups = "group_tokens" in inspect.signature(tokenizer._decode).parameters
        self._ungrouped = {"group_tokens": False} if groups else {}

    def pieces(self, waves: Sequence[Float32[np.ndarray, " _samples"]]) -> list[Piece]:
        # One by one: each is normalised over its own samples, whatever the extractor thinks of masks.
        rows = [self._extractor(wave, sampling_rate=SAMPLE_RATE_HZ)["input_values"][0] for wave in waves]
        lengths = torch.tensor([len(row) for row in rows])
        audio = torch.zeros(len(rows), int(lengths.max()))
        for at, row in enumerate(rows):
            audio[at, : len(row)] = torch.as_tensor(row)
        mask = (torch.arange(audio.shape[1]) < lengths[:, None]).long() if self.pads else None
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # WavLM's own attention
            logits = self._model(audio.to(self._device), None if mask is None else mask.to(self._device)).logits
        frames = self._model._get_feat_extract_output_lengths(lengths).tolist() if self.pads else [None] * len(rows)
        return [self._piece(row[:real]) for row, real in zip(logits.float().cpu(), frames, strict=True)]

    def confidence(self, total: float, count: int) -> float:
        return total / max(1, count)

    def _piece(self, logits: Float[Tensor, "frames symbols"]) -> Piece:
        symbols, total, count = ctc_symbols(logits, self._tokenizer.pad_token_id)
        text = self._tokenizer.decode(symbols, skip_special_tokens=True, **self._ungrouped)
        return Piece(transcript=text, total=total, count=count)


class Seq2SeqModel:
    """A model that writes what it transcribes, its feature extractor and its tokenizer."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, device: torch.device, language: str | None) -> None:
        self._model, self._extractor, self._tokenizer, self._device = model, extractor, tokenizer, device
        whisper = model.config.model_type == "whisper"
        self.window_samples = extractor.n_samples if whisper else int(WINDOW_S * SAMPLE_RATE_HZ)
        self.min_samples = 1 if whisper else _first_frame(model, self.window_samples)
        self.pads = whisper  # which pads every wave to its window
        config = model.generation_config
        ends = config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._choices: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if whisper:
            self._choices["return_timestamps"] = False
            if getattr(config, "is_multilingual", False):
                self._choices |= {"task": "transcribe", "language": language}
        if config.max_length is None and config.max_new_tokens is None:
            places = model.config.max_target_positions if whisper else model.config.max_position_embeddings
            self._choices["max_length"] = places  # transformers would stop after 20 tokens

    def pieces(self, waves: Sequence[Float32[np.ndarray, " _samples"]]) -> list[Piece]:
        inputs = self._extractor(
            list(waves), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", return_attention_mask=True
        )
        with quiet_transformers():
            written = self._model.generate(
                **{name: tensor.to(self._device) for name, tensor in inputs.items()},
                **self._choices,
                return_dict_in_generate=True,
                output_scores=True,
            )
        # The sequences begin with what the model was given to start with.
        tokens = written.sequences[:, -len(written.scores) :].cpu()
        return [
            self._piece(torch.stack([scores[row] for scores in written.scores]), tokens[row])
            for row in range(len(waves))
        ]

    def confidence(self, total: float, count: int) -> float:
        return math.exp(total / max(1, count))

    def _piece(self, scores: Float[Tensor, "tokens symbols"], tokens: Int64[Tensor, " tokens"]) -> Piece:
        text, total, count = written_tokens(scores, tokens, self._ends)
        return Piece(transcript=self._tokenizer.decode(text, skip_special_tokens=True), total=total, count=count)


def load_asr_model(place: str, *, device: torch.device, language: str | None) -> tuple[AsrModel, str]:
    """The model at a place, ready to transcribe, and the digest of its weights.

    Args:
        place: folder, or name of a model of the hub.
        language: that it is asked for; None for the one it finds out itself, or the only one it knows.

    Raises:
        ConfigError: no such place, no model of a known kind there, weights that did not arrive, or a language it does
            not know.
    """
    model, extractor, tokenizer = _load(place)
    rate = getattr(extractor, "sampling_rate", None)
    if rate != SAMPLE_RATE_HZ:
        raise ConfigError(f"model {place!r} transcribes audio of {rate} Hz: must be {SAMPLE_RATE_HZ}. Name another.")
    digest = _weights_digest(model)
    model.to(device).eval()
    if model.config.model_type in CTC_TYPES:
        if language is not None:
            raise _no_language(place, language, "has one language and takes no --language. Leave it out.")
        if tokenizer.pad_token_id is None:
            raise ConfigError(f"model {place!r} has a tokenizer without a pad token, CTC's blank. Name another.")
        return CtcModel(model, extractor, tokenizer, device), digest
    if language is not None:
        language = _known_language(place, model, language)
    return Seq2SeqModel(model, extractor, tokenizer, device, language), digest


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers for the duration of the block; what matters is checked here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(place: str) -> tuple[Any, Any, Any]:
    """Model in float32, feature extractor and tokenizer; no code from the place is run."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoTokenizer

    folder = Path(place)
    if not folder.is_dir() and (folder.is_absolute() or place.startswith((".", "~")) or place.count("/") > 1):
        raise ConfigError(f"model {place!r}: no such folder. Name a folder or a model of the hub with --model.")
    options = {"local_files_only": folder.is_dir(), "trust_remote_code": False}
    refusals = (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, ImportError, pickle.PickleError)
    try:
        if folder.is_dir():
            check_settings(folder)
        with quiet_transformers():
            kind = AutoConfig.from_pretrained(place, **options).model_type
            if kind not in CTC_TYPES + SEQ2SEQ_TYPES:
                raise ConfigError(
                    f"model {place!r} is of type {kind!r}: must be one of {', '.join(CTC_TYPES + SEQ2SEQ_TYPES)}. "
                    "Name another with --model."
                )
            extractor = AutoFeatureExtractor.from_pretrained(place, **options)
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            auto = AutoModelForCTC if kind in CTC_TYPES else AutoModelForSpeechSeq2Seq
            model, found = auto.from_pretrained(place, dtype=torch.float32, output_loading_info=True, **options)
    except (*refusals, LookupError, AssertionError, ArithmeticError, StrictDataclassError, SafetensorError) as error:
        raise ConfigError(
            f"model {place!r}: transformers cannot load it: {_short(error)} Name a folder or a model of the hub that "
            "holds config.json, weights, tokenizer and preprocessor_config.json."
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not name.endswith(_OPTIONAL_WEIGHTS))
    if missing:
        raise ConfigError(
            f"model {place!r} has no weights for {missing[0]} and {len(missing) - 1} more, so it would transcribe at "
            "random: it was not trained to recognise speech. Name one that was."
        )
    return model, extractor, tokenizer


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors: of the weights, however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _known_language(place: str, model: Any, language: str) -> str:
    """The model's own token of a language, given by code ("de") or by English name ("german")."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    known = getattr(model.generation_config, "lang_to_id", {})
    if not known or not getattr(model.generation_config, "is_multilingual", False):
        raise _no_language(place, language, "has one language and takes no --language. Leave it out.")
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    token = f"<|{code}|>"
    if token not in known:
        codes = ", ".join(sorted(one.strip("<|>") for one in known))
        raise _no_language(place, language, f"knows {codes}. Name one of them, or leave --language out.")
    return token


def _no_language(place: str, language: str, what: str) -> ConfigError:
    return ConfigError(f"language {language!r}: model {place!r} {what}")


def _ignores_padding(config: Any) -> bool:
    """True if a wave model of this configuration gives padded rows, with a mask, what it gives them alone."""
    return (
        config.model_type in _PADDED_TYPES
        and config.feat_extract_norm == "layer"
        and not getattr(config, "add_adapter", False)
        and not getattr(config, "conv_pos_batch_norm", False)
    )


def _first_frame(model: Any, most: int) -> int:
    """Fewest samples that give a frame."""
    few, enough = 0, most
    while enough - few > 1:
        middle = (few + enough) // 2
        if int(model._get_feat_extract_output_lengths(torch.tensor(middle))) >= 1:
            enough = middle
        else:
            few = middle
    return enough


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 240 else text[:237] + "..."
    return text if text.endswith(".") else text + "."
