"""BERT-like and SentencePiece text encoders out of folders: what each promises, of each; and their tokenizers."""

import io
import json
import pickle

import pytest
import sentencepiece
import torch

from ccts_dist.config import ModelConfig, TextConfig
from ccts_dist.model import build_model, load_model, load_tokenizer, save_model
from tests.helpers.models.model_shapes import (
    TEXT_FAMILIES,
    TEXT_MECHANISMS,
    VOCABULARY,
    most_calls,
    save_text_encoder,
    transcripts,
    utterances,
)
from tests.tiers import with_long

FAMILIES = with_long(TEXT_MECHANISMS, sorted(TEXT_FAMILIES))
TRAINABLE = ("none", "top:1", "all")
LENGTHS = [2, 17, 9, 30]
SENTENCES = [
    "what a wonderful day this is",
    "this is the worst thing that ever happened to me",
    "please close the door behind you and never come back",
]
SENTENCE_PIECE = {
    "albert": (
        "AlbertTokenizer",
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "user_defined_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
    ),
    "deberta-v3": (
        "DebertaV2Tokenizer",
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
         "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    ),
    "xlm-roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2}),
}  # fmt: skip


def build(folder, family, *, checkpointing=False, **changes):
    save_text_encoder(folder / family, family)
    text = TextConfig(encoder=str(folder / family), max_tokens=32, gru_hidden=16, **changes)
    config = ModelConfig(embedding_dim=8, gradient_checkpointing=checkpointing, text=text)
    return build_model(config, vocabulary_size=VOCABULARY)


def inputs(lengths):
    return (*utterances([200] * len(lengths)), *transcripts(lengths))


def gradients(model):
    model.train()
    model(*inputs(LENGTHS)).prediction.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def save_pieces(folder, family):
    """A small SentencePiece model under the name and with the marks that the family's own tokenizer has."""
    cls, name, marks = SENTENCE_PIECE[family]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5), model_writer=model, vocab_size=46, hard_vocab_limit=False,
        model_type="unigram", minloglevel=2, num_threads=1,
        **marks,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_the_same_alone_and_in_a_batch(tmp_path, family):
    model = build(tmp_path, family).eval()
    audio, num_samples, tokens, num_tokens = inputs(LENGTHS)
    with torch.no_grad():
        together = model(audio, num_samples, tokens, num_tokens).prediction
        alone = [
            model(audio[i : i + 1], num_samples[i : i + 1], tokens[i : i + 1, :n], num_tokens[i : i + 1]).prediction
            for i, n in enumerate(LENGTHS)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert together.std(dim=0).min() > 1e-4


# ALBERT's layers share their weights, and "top:1" is refused: see test_model_encoders.
@pytest.mark.parametrize(
    ("family", "trainable"),
    with_long(
        [(f, t) for f in TEXT_MECHANISMS for t in TRAINABLE],
        [(f, t) for f in sorted(TEXT_FAMILIES) for t in TRAINABLE if (f, t) != ("albert", "top:1")],
    ),
)
def test_just_what_is_named_is_trained_and_all_of_it_gets_a_gradient(tmp_path, family, trainable):
    model = build(tmp_path, family, trainable=trainable, checkpointing=trainable == "top:1")
    names = [name for name, _ in model.text.encoder.named_parameters()]
    expected = {
        "none": [],
        "top:1": [name for name in names if name.startswith("encoder.layer.1.")],
        "all": names,
    }[trainable]
    assert {name for name, p in model.text.encoder.named_parameters() if p.requires_grad} == set(expected)
    got = {name.removeprefix("text.encoder.") for name in gradients(model) if name.startswith("text.encoder.")}
    assert got == set(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_give_the_gradient_of_those_that_are_kept(tmp_path, family):
    plain, frugal = build(tmp_path / "a", family), build(tmp_path / "b", family, checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    expected = gradients(plain)
    for name, gradient in gradients(frugal).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    once, twice = (most_calls(model.text.encoder.encoder, lambda m=model: gradients(m)) for model in (plain, frugal))
    assert once > 0
    assert twice == 2 * once


@pytest.mark.parametrize("family", sorted(SENTENCE_PIECE))
def test_a_model_and_its_tokenizer_come_back_from_their_folder(tmp_path, family):
    model = build(tmp_path, family).eval()
    save_pieces(tmp_path / family, family)
    tokenizer = load_tokenizer(tmp_path / family, max_tokens=32)
    save_model(
        tmp_path / "model", model.state_dict(), model.config, encoders=model.encoder_configs, tokenizer=tokenizer,
        scale=(1.0, 7.0), extra={},
    )  # fmt: skip
    for path in (tmp_path / family).iterdir():
        path.unlink()
    loaded = load_model(tmp_path / "model")
    tokens = torch.tensor([tokenizer.encode(SENTENCES[0])])
    assert loaded.tokenizer.encode(SENTENCES[0]) == tokens[0].tolist()
    batch = (*utterances([200]), tokens, torch.tensor([tokens.shape[1]]))
    with torch.no_grad():
        assert torch.equal(loaded.model(*batch).prediction, model(*batch).prediction)


@pytest.mark.parametrize("family", sorted(SENTENCE_PIECE))
def test_a_sentence_piece_tokenizer_from_a_folder(tmp_path, family):
    save_text_encoder(tmp_path, family)
    save_pieces(tmp_path, family)
    tokenizer = load_tokenizer(tmp_path, max_tokens=12)
    first, *middle, last = tokenizer.encode(SENTENCES[0])
    assert len(middle) == 10  # cut, between the marks of begin and end
    empty = tokenizer.encode("")
    assert (empty[0], empty[-1], len(empty)) == (first, last, 2)
    assert tokenizer.encode("what") != tokenizer.encode("door")
    assert max(tokenizer.encode(" ".join(SENTENCES))) < tokenizer.vocabulary_size <= VOCABULARY
    assert pickle.loads(pickle.dumps(tokenizer)).encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved", max_tokens=12).encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])
