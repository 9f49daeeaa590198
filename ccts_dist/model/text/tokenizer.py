"""From transcripts to token numbers: a SentencePiece model trained on them, or a pretrained encoder's own tokenizer."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ccts_dist.config import TextConfig
from ccts_dist.encoder_settings import check_settings
from ccts_dist.errors import ConfigError
from ccts_dist.limits import read_limited
from ccts_dist.model.encoders import quiet_transformers

PIECES = "pieces.model"
"""The SentencePiece model's file in a tokenizer folder of ours; no transformers tokenizer has a file of this name."""

PADDING, UNKNOWN, BEGIN, END = 0, 1, 2, 3


@runtime_checkable
class Tokenizer(Protocol):
    """Encodes transcripts. Can be pickled, and used by several threads."""

    @property
    def vocabulary_size(self) -> int:
        """Token numbers are below this."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token numbers with those that mark begin and end, so never empty; longer transcripts are cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``load_tokenizer`` reads."""
        ...


class PieceTokenizer:
    """A SentencePiece model. 0 is padding and never a piece; a transcript stands between BEGIN and END."""

    def __init__(self, model: bytes, *, max_tokens: int) -> None:
        self._model = model
        self.max_tokens = max_tokens
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __getstate__(self) -> tuple[bytes, int]:
        return self._model, self.max_tokens

    def __setstate__(self, state: tuple[bytes, int]) -> None:
        self.__init__(state[0], max_tokens=state[1])

    @property
    def vocabulary_size(self) -> int:
        """Token numbers are below this."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Token numbers between BEGIN and END; longer transcripts are cut."""
        pieces = self._processor.encode(text, out_type=int)
        return [BEGIN, *pieces[: self.max_tokens - 2], END]

    def save(self, folder: Path) -> None:
        """Write what ``load_tokenizer`` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{PIECES}.unfinished"
        unfinished.write_bytes(self._model)
        unfinished.replace(folder / PIECES)


class PretrainedTokenizer:
    """A transformers tokenizer. The loader pads with 0 whatever this tokenizer pads with; masks hide the difference."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> None:
        self._tokenizer: Any = tokenizer
        self.max_tokens = max_tokens

    @property
    def vocabulary_size(self) -> int:
        """Token numbers are below this."""
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token numbers with the tokenizer's own marks of begin and end; longer transcripts are cut."""
        return list(self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])

    def save(self, folder: Path) -> None:
        """Write what ``load_tokenizer`` reads."""
        self._tokenizer.save_pretrained(folder)


def train_tokenizer(transcripts: Iterable[str], config: TextConfig, folder: Path) -> PieceTokenizer:
    """A SentencePiece model of at most ``config.vocabulary`` pieces, trained on the transcripts, saved in ``folder``.

    The same transcripts, in any order, give the same bytes. Letters are folded to lower case: transcribers disagree
    about capitals. A corpus too small for so many pieces gets fewer.

    Raises:
        ConfigError: no transcripts, or fewer pieces than the transcripts have characters.
    """
    sentences = sorted(filter(None, (" ".join(transcript.split()) for transcript in transcripts)))
    if not sentences:
        raise ConfigError(
            'model.text.encoder = "scratch": none of the training utterances has a transcript to train a tokenizer on. '
            "Use shards with transcripts, or a pretrained encoder."
        )
    model = io.BytesIO()
    try:
        sentencepiece.set_random_generator_seed(0)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            model_type="unigram",
            normalization_rule_name="nmt_nfkc_cf",
            character_coverage=1.0,
            max_sentence_length=1 << 16,  # bytes; longer ones would be skipped without a word
            num_threads=1,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model.text.vocab_size = {config.vocab_size}: SentencePiece cannot make such a vocabulary from "
            f"{len(sentences)} transcripts: {reason} Raise it."
        ) from error
    tokenizer = PieceTokenizer(model.getvalue(), max_tokens=config.max_tokens)
    tokenizer.save(folder)
    return tokenizer


def load_tokenizer(place: str | Path, *, max_tokens: int) -> Tokenizer:
    """The tokenizer in a folder, ours or transformers', or of a model on the hub; a folder is read offline.

    Args:
        max_tokens: longest encoding, with the marks of begin and end.

    Raises:
        ConfigError: no tokenizer there.
    """
    folder = Path(place)
    pieces = folder / PIECES
    if pieces.is_file():
        try:
            return PieceTokenizer(read_limited(pieces, "tokenizer file"), max_tokens=max_tokens)
        except (RuntimeError, OSError) as error:
            raise _no_tokenizer(pieces, error) from error
    try:
        if folder.is_dir():
            check_settings(folder)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(place), local_files_only=folder.is_dir(), trust_remote_code=False
            )
    # KeyError, TypeError, AttributeError: what a tokenizer's own reader meets in files that are there but incomplete.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise _no_tokenizer(place, error) from error
    return PretrainedTokenizer(tokenizer, max_tokens=max_tokens)


def _no_tokenizer(place: str | Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:240] or type(error).__name__
    return ConfigError(
        f"{place}: no tokenizer can be loaded from here: {reason} Name a folder or a model that has one."
    )
