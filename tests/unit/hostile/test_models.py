"""Folders of models and encoders that somebody else has made: no code of theirs is run, nothing in them is believed."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import ccts_dist
from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import CctsError, CheckpointError, ConfigError
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.model.description import description_bytes
from ccts_dist.model.encoders import load_speech_encoder
from ccts_dist.model.text.tokenizer import load_tokenizer
from tests.helpers.examples.shard_examples import write_noise
from tests.helpers.models.model_shapes import speech_config

PACKAGE = Path(ccts_dist.__file__).parent
CONFIG = "speech_encoder/config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config()))
    save_model(
        tmp_path / "model",
        model.state_dict(),
        model.config,
        encoders=model.encoder_configs,
        scale=(1.0, 7.0),
        extra={"train_splits": ["Train"]},
    )
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def bless(folder: Path, **changes: Any) -> None:
    """A description as whoever made the folder would write it: without list and seal, as earlier versions did."""
    tree = json.loads((folder / "model.json").read_text()) | changes
    del tree["files"], tree["seal"]
    (folder / "model.json").write_text(json.dumps(tree))


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(
        [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("launch/*.py"), *PACKAGE.parent.glob("shards/*.py")]
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                whose = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" or (
                    node.func.attr == "from_config" and whose.startswith("Auto")
                ):
                    yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {whose}", node


def test_every_call_that_could_run_a_folders_code_forbids_it():
    """``recognition.models`` passes one dict to all of its calls."""
    found = dict(calls())
    assert len(found) >= 12
    for where, call in found.items():
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        forbidden = keywords.get("trust_remote_code") == "False"
        assert forbidden or keywords.get(None) == "options", where
    models = (PACKAGE / "asr/models.py").read_text(encoding="utf-8")
    assert '"trust_remote_code": False}' in models


OWN_CODE = """
import sys
open(sys.argv[0] if False else {marker!r}, "w").write("run")
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""


def with_code(place: Path, marker: Path, model_type: str = "own") -> None:
    edit(place / "config.json", model_type=model_type, auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.M"})
    (place / "own.py").write_text(OWN_CODE.format(marker=str(marker)))


@pytest.mark.parametrize("model_type", ["own", "hubert"])
def test_a_folder_with_code_of_its_own_is_neither_run_nor_asked_about(
    folder: Path, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
):
    """transformers asks on the terminal unless it is forbidden; a "y" that stands there would be taken."""
    marker = tmp_path / "was-run"
    with_code(folder / "speech_encoder", marker, model_type)
    bless(folder)
    read, write = os.pipe()
    os.write(write, b"y\n" * 10)
    os.close(write)
    with os.fdopen(read) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        for load in (
            lambda: load_model(folder),
            lambda: load_speech_encoder(SpeechConfig(encoder=str(folder / "speech_encoder"), do_normalize="off")),
            lambda: load_tokenizer(folder / "speech_encoder", max_tokens=8),
        ):
            with suppress(CctsError):
                load()
        assert answers.read() == "y\n" * 10
    assert not marker.exists()


@pytest.mark.integration
def test_predict_of_a_folder_with_code_of_its_own_ends_in_one_line_without_a_terminal(folder: Path, tmp_path: Path):
    with_code(folder / "speech_encoder", tmp_path / "was-run")
    bless(folder)
    recording = write_noise(tmp_path / "a.wav")
    command = [sys.executable, "launch/predict.py", "--model", str(folder), str(recording)]
    done = subprocess.run(
        command, cwd=PACKAGE.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Do you wish to run" not in done.stdout
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["model.json", CONFIG, "model.safetensors"])
def test_every_byte_of_a_saved_model_has_a_digest(folder: Path, name: str):
    data = (folder / name).read_bytes()
    for at in (len(data) // 3, len(data) // 2, len(data) - 2):
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            load_model(folder)
    (folder / name).write_bytes(data)
    load_model(folder)


def test_a_setting_that_changes_answers_is_noticed(folder: Path):
    edit(folder / CONFIG, layer_norm_eps=9.0)
    with pytest.raises(CheckpointError, match=r"config.json: SHA-256 is .*, model.json states"):
        load_model(folder)


def test_a_scale_that_was_swapped_is_noticed(folder: Path):
    path = folder / "model.json"
    path.write_bytes(path.read_bytes().replace(b"7.0", b"8.0"))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_model(folder)


def test_a_file_that_was_added_where_files_are_read_by_name_is_refused(folder: Path):
    (folder / "speech_encoder" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was added after the model was saved"):
        load_model(folder)


def test_a_file_beside_the_model_is_nobodys_concern(folder: Path):
    (folder / "MODEL_CARD.md").write_text("a package has one")
    load_model(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a\0b", "speech_encoder/../../x", "\n"])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, name: str):
    tree = json.loads((folder / "model.json").read_text())
    del tree["seal"], tree["format_version"]
    (folder / "model.json").write_bytes(description_bytes(tree | {"files": {name: "0" * 64}}))
    with pytest.raises(CheckpointError, match="must be paths within the folder"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": None},
        {"scale": ["a", "b"]},
        {"scale": [1, 2, 3]},
        {"scale": [7, 1]},
        {"scale": [True, 7]},
        {"model": []},
        {"model": None},
        {"model": {"speech": [1]}},
        {"model": {"embedding_dim": 10**30}},
        {"normalise": [1]},
        {"normalise": None},
        {"also_normalise": 5},
        {"sha256": None},
        {"sha256": "../x"},
        {"format_version": [1]},
        {"format_version": True},
        {"extra": []},
    ],
    ids=str,
)
def test_a_description_of_another_form_is_refused_in_one_line(folder: Path, changes: dict[str, Any]):
    bless(folder, **changes)
    with pytest.raises(CctsError) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    assert "model.json" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", '{"format_version": 1' + "0" * 5_000 + "}", '"\\ud800"', "NaN"]
)
def test_a_description_that_is_no_object_is_refused(folder: Path, text: str):
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.json: (not JSON|format version)"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "x"},
        {"hidden_size": 0},
        {"hidden_size": 1_000_000},
        {"hidden_size": 1 << 40},
        {"intermediate_size": 1 << 30},
        {"num_hidden_layers": 1 << 30},
        {"num_hidden_layers": 900},
        {"conv_dim": None},
        {"conv_dim": [32] * 200_000},
        {"model_type": 5},
        {"model_type": None},
        {"model_type": "bert"},
        {"hidden_act": "nope"},
        {"dtype": "nope"},
        {"torch_dtype": {"a": 1}},
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "someone/kernel"}},
        {"layer_norm_eps": "x"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_settings_of_an_encoder_that_cannot_be_are_refused_before_room_is_made(folder: Path, changes: dict[str, Any]):
    edit(folder / CONFIG, **changes)
    bless(folder)
    with pytest.raises(CctsError) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe{}", b'{"a":' * 100_000, b"{}"])
def test_settings_that_are_none_are_refused(folder: Path, data: bytes):
    (folder / CONFIG).write_bytes(data)
    bless(folder)
    with pytest.raises(CheckpointError, match=r"speech_encoder"):
        load_model(folder)
    with pytest.raises(ConfigError):
        load_speech_encoder(SpeechConfig(encoder=str(folder / "speech_encoder"), do_normalize="off"))


@pytest.mark.parametrize("name", ["model.json", CONFIG, "model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_pipe_a_device_or_a_folder_in_the_place_of_a_file_is_refused(
    folder: Path, name: str, make: Callable[[Path], object]
):
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(CheckpointError, match=r"cannot|no regular file|Is a directory|no encoder"):
        load_model(folder)
