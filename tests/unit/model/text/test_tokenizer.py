import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from ccts_dist.config import TextConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import PieceTokenizer, load_tokenizer, train_tokenizer
from tests.tiers import examples

SENTENCES = [
    "what a wonderful day this is",
    "this is the worst thing that ever happened",
    "I do not know what to state",
    "please come back tomorrow, the day is over",
]
CONFIG = TextConfig(encoder="scratch", scratch={"model_type": "bert"}, vocab_size=60, max_tokens=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tokenizer(SENTENCES, CONFIG, tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def wordpiece_folder(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "a", "day", "wonder", "##ful"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path


def test_an_encoding_begins_with_2_ends_with_3_and_never_holds_padding(trained):
    tokens = trained.encode("what a day")
    assert (tokens[0], tokens[-1]) == (2, 3)
    assert all(1 <= token < trained.vocabulary_size for token in tokens)


def test_an_empty_transcript_is_begin_and_end(trained):
    assert trained.encode("") == [2, 3]


def test_unknown_characters_become_unknown_pieces(trained):
    assert 1 in trained.encode("日本")


def test_capitals_do_not_matter(trained):
    assert trained.encode("WHAT a Day") == trained.encode("what a day")


@examples(50)
@given(text=st.text(max_size=200))
def test_any_text_is_encoded_within_the_limit_and_the_vocabulary(trained, text):
    tokens = trained.encode(text)
    assert 2 <= len(tokens) <= CONFIG.max_tokens
    assert tokens[-1] == 3
    assert 0 not in tokens
    assert max(tokens) < trained.vocabulary_size


def test_equal_transcripts_in_any_order_give_equal_bytes(tmp_path):
    train_tokenizer(SENTENCES, CONFIG, tmp_path / "a")
    train_tokenizer([*reversed(SENTENCES)], CONFIG, tmp_path / "b")
    assert (tmp_path / "a/pieces.model").read_bytes() == (tmp_path / "b/pieces.model").read_bytes()


def test_a_corpus_too_small_for_the_vocabulary_gets_fewer_pieces(tmp_path):
    config = TextConfig(encoder="scratch", scratch={"model_type": "bert"}, vocab_size=5000)
    tokenizer = train_tokenizer(SENTENCES, config, tmp_path)
    assert 30 < tokenizer.vocabulary_size < 5000


def test_saved_and_loaded_it_encodes_the_same(trained, tmp_path):
    trained.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", max_tokens=CONFIG.max_tokens)
    assert isinstance(again, PieceTokenizer)
    assert [again.encode(s) for s in SENTENCES] == [trained.encode(s) for s in SENTENCES]


def test_it_travels_to_a_worker_process(trained):
    again = pickle.loads(pickle.dumps(trained))
    assert again.encode(SENTENCES[0]) == trained.encode(SENTENCES[0])
    assert again.max_tokens == trained.max_tokens


def test_no_transcripts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="none of the training utterances has a transcript"):
        train_tokenizer(["", "  "], CONFIG, tmp_path)


def test_a_vocabulary_below_the_number_of_characters_is_refused(tmp_path):
    config = TextConfig(encoder="scratch", scratch={"model_type": "bert"}, vocab_size=8)
    with pytest.raises(ConfigError, match=r"model.text.vocab_size = 8: SentencePiece cannot make") as error:
        train_tokenizer(SENTENCES, config, tmp_path)
    assert "\n" not in str(error.value)


def test_a_wordpiece_tokenizer_from_a_folder(wordpiece_folder, tmp_path):
    tokenizer = load_tokenizer(wordpiece_folder, max_tokens=5)
    assert tokenizer.vocabulary_size == 10
    assert tokenizer.encode("What a day") == [2, 5, 6, 7, 3]
    assert tokenizer.encode("what a wonderful day") == [2, 5, 6, 8, 3]
    assert tokenizer.encode("") == [2, 3]
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved", max_tokens=5).encode("what a day") == [2, 5, 6, 7, 3]
    assert pickle.loads(pickle.dumps(tokenizer)).encode("what a day") == [2, 5, 6, 7, 3]


@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_a_place_without_a_tokenizer_is_refused_in_one_line(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from here") as error:
        load_tokenizer(tmp_path / place, max_tokens=12)
    assert "\n" not in str(error.value)


def test_a_damaged_piece_model_is_refused(tmp_path):
    (tmp_path / "pieces.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"pieces.model: no tokenizer can be loaded"):
        load_tokenizer(tmp_path, max_tokens=12)
