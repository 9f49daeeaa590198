import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccts_dist.config import ModelConfig
from ccts_dist.errors import CheckpointError, ConfigError
from ccts_dist.model import build_model, load_model, save_model, train_tokenizer, weights_digest
from ccts_dist.model.description import model_files
from tests.helpers.models.model_shapes import both, speech_config, text_config, utterances

SENTENCES = ["what a wonderful day this is", "this is the worst thing that ever happened to me"]


@pytest.fixture
def speech_folder(tmp_path):
    return _save_speech(tmp_path / "model")


def _save_speech(folder, *, seed=0, **changes):
    torch.manual_seed(seed)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config(**changes)))
    _save(folder, model)
    return folder


def _save(folder, model, tokenizer=None, extra=None):
    return save_model(
        folder,
        model.state_dict(),
        model.config,
        encoders=model.encoder_configs,
        tokenizer=tokenizer,
        scale=(1.0, 7.0),
        extra={} if extra is None else extra,
    )


def _edit(path, **changes):
    description = json.loads(path.read_text()) | {"seal": None} | changes
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def test_a_saved_model_predicts_the_same_after_loading(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SENTENCES, text_config(vocab_size=40), tmp_path / "tokenizer")
    model = build_model(both(), vocabulary_size=tokenizer.vocabulary_size).eval()
    digest = _save(tmp_path / "model", model, tokenizer, {"seed": 17, "splits": ["Train"], "name": "Übung"})
    shutil.rmtree(tmp_path / "tokenizer")

    loaded = load_model(tmp_path / "model")
    tokens = torch.tensor([tokenizer.encode(SENTENCES[0])])
    audio, num_samples = utterances([2000])
    inputs = (audio, num_samples, tokens, torch.tensor([tokens.shape[1]]))
    with torch.no_grad():
        assert torch.equal(loaded.model(*inputs).prediction, model(*inputs).prediction)
        assert torch.equal(loaded.model(*inputs).embedding, model(*inputs).embedding)
    assert loaded.config == model.config
    assert not loaded.model.training
    assert loaded.tokenizer.encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])
    assert loaded.scale == (1.0, 7.0)
    assert loaded.extra == {"seed": 17, "splits": ["Train"], "name": "Übung"}
    assert loaded.digest == digest == weights_digest(tmp_path / "model")


@pytest.mark.parametrize("do_normalize", ["on", "off"])
def test_whether_utterances_are_normalised_is_remembered(tmp_path, do_normalize):
    loaded = load_model(_save_speech(tmp_path / "model", do_normalize=do_normalize))
    assert loaded.model.speech.do_normalize is (do_normalize == "on")


def test_a_model_is_trained_on_after_loading_as_it_was_before(speech_folder):
    model = load_model(speech_folder).model.train()
    model(*utterances([1000, 2500])).prediction.sum().backward()
    assert not any(name.startswith("speech.front_end") for name, p in model.named_parameters() if p.grad is not None)


def test_the_folder_holds_no_pickle_and_no_path(speech_folder, tmp_path):
    files = sorted(str(path.relative_to(speech_folder)) for path in speech_folder.rglob("*") if path.is_file())
    assert files == ["model.json", "model.safetensors", "speech_encoder/config.json"]
    for path in speech_folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_saving_twice_gives_equal_bytes_and_replaces_the_whole_folder(tmp_path):
    first = _save_speech(tmp_path / "a", seed=1)
    second = _save_speech(tmp_path / "b", seed=2)
    (second / "stray").write_text("of the earlier model")
    _save_speech(second, seed=1)
    assert not (second / "stray").exists()
    for path in first.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_altered_weights_are_refused_with_both_digests(speech_folder):
    expected = weights_digest(speech_folder)
    path = speech_folder / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    found = weights_digest(speech_folder)
    with pytest.raises(CheckpointError, match=f"SHA-256 is {found}, model.json states {expected}"):
        load_model(speech_folder)


def test_a_folder_without_its_description_is_not_complete(speech_folder):
    (speech_folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no readable model.json .* no complete model folder"):
        load_model(speech_folder)


def test_no_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match="no such model folder"):
        load_model(tmp_path / "nowhere")


def test_another_format_version_is_refused(speech_folder):
    _edit(speech_folder / "model.json", format_version=2)
    with pytest.raises(CheckpointError, match="format version is 2, this library reads 1"):
        load_model(speech_folder)


def test_a_description_that_is_not_json_or_lacks_a_key_is_refused(speech_folder):
    _edit(speech_folder / "model.json", scale=None)
    with pytest.raises(CheckpointError, match=r"model.json: lacks 'scale'"):
        load_model(speech_folder)
    (speech_folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model.json: not JSON"):
        load_model(speech_folder)


def test_files_of_a_description_are_digests_by_path(speech_folder):
    _edit(speech_folder / "model.json", files={"model.safetensors": 3})
    with pytest.raises(CheckpointError, match=r"'?files'? .*an object of a SHA-256 by path"):
        load_model(speech_folder)


def test_files_of_a_model_of_an_earlier_version_are_those_in_its_folders(speech_folder):
    listed = model_files(speech_folder)
    _edit(speech_folder / "model.json", files=None)
    (speech_folder / "beside.txt").write_text("")
    assert model_files(speech_folder) == listed == ["model.json", "model.safetensors", "speech_encoder/config.json"]


def test_weights_that_are_not_there_are_refused(speech_folder):
    (speech_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        load_model(speech_folder)


def test_weights_of_another_model_are_refused(speech_folder):
    tensors = load_file(speech_folder / "model.safetensors")
    tensors.pop("prediction.bias")
    save_file(tensors, speech_folder / "model.safetensors")
    _edit(speech_folder / "model.json", sha256=weights_digest(speech_folder))
    with pytest.raises(CheckpointError, match=r"not the weights of the model.*prediction.bias") as error:
        load_model(speech_folder)
    assert "\n" not in str(error.value)


def test_a_missing_encoder_configuration_is_refused(speech_folder):
    shutil.rmtree(speech_folder / "speech_encoder")
    with pytest.raises(
        CheckpointError, match=r"speech_encoder/config.json: cannot be read .*, and model.json names it"
    ):
        load_model(speech_folder)


def test_extra_that_is_not_json_is_refused_and_nothing_is_left(tmp_path):
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config()))
    with pytest.raises(CheckpointError, match="extra cannot be written as JSON"):
        _save(tmp_path / "model", model, extra={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_text_branch_without_its_tokenizer_is_not_saved(tmp_path):
    model = build_model(both(), vocabulary_size=40)
    with pytest.raises(CheckpointError, match="a text branch and a tokenizer go together"):
        _save(tmp_path / "model", model)
