"""Models are pushed to a hub and pulled from it by digest; code and pickles never, and tokens are not shown."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ccts_dist.config import ModelConfig
from ccts_dist.errors import ConfigError, RegistryError, run_main
from ccts_dist.export.push import push_model
from ccts_dist.model import build_model, save_model
from ccts_dist.model.description import description_bytes
from ccts_dist.registry import PulledModel, is_address, load_student, pull_model, resolve_version
from ccts_dist.registry.attach import attach
from ccts_dist.registry.hub import HubName, asking_the_hub, parse_hub_name
from launch import push as command
from tests.helpers.faults.hub_server import TOKEN, Hub, Repository, serve_hub
from tests.helpers.models import model_shapes

SPEECH = model_shapes.speech_config
REPO = "lab/student"


@pytest.fixture(scope="module")
def _server() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub that this process takes for Hugging Face's, with a token, and empty caches."""
    _server.repositories.clear()
    _server.asked.clear()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", _server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", _server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _server


def _save(folder: Path, config: ModelConfig, **extra: Any) -> Path:
    torch.manual_seed(0)
    model = build_model(config)
    save_model(folder, model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra=extra)
    return folder


def _student(**changes: Any) -> ModelConfig:
    return replace(ModelConfig(embedding_dim=8, speech=SPEECH()), **changes)


def test_what_is_pushed_predicts_here_as_the_folder_does(hub: Hub, tmp_path: Path) -> None:
    model = _save(
        tmp_path / "model", _student(categories=("sad", "happy")), corpus="Spoken", valid_ccc={"valence": 0.5}
    )
    pushed = push_model(str(model), REPO, license="cc-by-nc-4.0", language=("en",))
    assert pushed.not_for_transformers == ""
    assert pushed.url == f"{hub.address}/{REPO}/commit/{hub.repositories[REPO].branches['main']}"
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert (card.data.license, card.data.language) == ("cc-by-nc-4.0", ["en"])
    assert f"model='{REPO}', trust_remote_code=True" in card.text
    assert f"--model hf://{REPO} a.wav" in card.text
    assert set(hub.files(REPO)) == {
        *("model.json", "model.safetensors", "speech_encoder/config.json"),
        *("config.json", "preprocessor_config.json", "modeling_ccts.py", "README.md", "export.json"),
    }
    waves = [0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(1))]
    assert load_student(f"hf://{REPO}").predict(waves) == load_student(model).predict(waves)
    pulled = pull_model(f"hf://{REPO}")
    assert pulled.version == str(pushed.model) == resolve_version(f"hf://{REPO}")
    names = {path.relative_to(pulled.folder).as_posix() for path in pulled.folder.rglob("*") if path.is_file()}
    assert names == {"model.json", "model.safetensors", "speech_encoder/config.json"}
    assert not any(path.is_symlink() for path in pulled.folder.rglob("*"))
    assert not [one for one in hub.asked if "modeling" in one and "resolve" in one], "code was fetched"


def test_a_commit_stays_what_it_was_and_a_branch_moves(hub: Hub, tmp_path: Path) -> None:
    first = push_model(str(_save(tmp_path / "one", _student())), REPO)
    second = push_model(str(_save(tmp_path / "two", _student(embedding_dim=4))), REPO, revision="trial")
    assert set(hub.repositories[REPO].branches) == {"main", "trial"}
    assert load_student(f"hf://{REPO}@trial").embedding_size == 4
    assert load_student(f"hf://{REPO}").embedding_size == 8
    assert load_student(str(second.model)).embedding_size == 4
    push_model(str(tmp_path / "two"), REPO)
    assert load_student(f"hf://{REPO}").embedding_size == 4
    assert load_student(str(first.model)).embedding_size == 8


def test_files_of_an_earlier_model_do_not_stay(hub: Hub, tmp_path: Path) -> None:
    push_model(str(_save(tmp_path / "two", _student(extra_speech=(SPEECH(pooling="mean"),)))), REPO)
    assert "also_encoder_0/config.json" in hub.files(REPO)
    push_model(str(_save(tmp_path / "one", _student())), REPO)
    assert "also_encoder_0/config.json" not in hub.files(REPO)
    assert load_student(f"hf://{REPO}").embedding_size == 8


def test_a_model_that_transformers_lacks_is_pushed_without_code(hub: Hub, tmp_path: Path) -> None:
    config = _student(speech=SPEECH(shape=model_shapes.SPEECH_FAMILIES["modified-cpc"]))
    pushed = push_model(str(_save(tmp_path / "model", config)), REPO)
    assert "a modified-cpc encoder is not in transformers" in pushed.not_for_transformers
    assert set(hub.files(REPO)) == {"model.json", "model.safetensors", "speech_encoder/config.json", "README.md"}
    assert ModelCard(hub.files(REPO)["README.md"].decode()).data.library_name == "ccts-dist"
    assert load_student(f"hf://{REPO}").embedding_size == 8


def test_a_private_model_is_not_pushed_where_it_would_be_public(hub: Hub, tmp_path: Path) -> None:
    model = str(_save(tmp_path / "model", _student()))
    push_model(model, "lab/secret", private=True)
    assert hub.repositories["lab/secret"].private
    push_model(model, "lab/secret", private=True)
    hub.repositories[REPO] = Repository()
    with pytest.raises(RegistryError, match=r"lab/student: is there already, and public\. Make it private"):
        push_model(model, REPO, private=True)
    assert hub.files(REPO) == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("weights.bin", "may be code or a pickle"),
        ("tokenizer/tokenization.py", "may be code or a pickle"),
        ("../../outside.json", "a path outside the model"),
        ("/etc/outside.json", "a path outside the model"),
    ],
)
def test_code_pickles_and_paths_outside_are_not_fetched(hub: Hub, tmp_path: Path, name: str, reason: str) -> None:
    description = description_bytes({"files": {name: "0" * 64, "model.safetensors": "0" * 64}})
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", {"model.json": description, "model.safetensors": b"", name: b"x"})
    with pytest.raises(RegistryError, match=f"hf://lab/student@[0-9a-f]+: its model.json names .*{reason}"):
        pull_model(f"hf://{REPO}")
    assert [one for one in hub.asked if "resolve" in one and "model.json" not in one] == []


def test_a_model_of_an_earlier_version_is_neither_pushed_nor_pulled(hub: Hub, tmp_path: Path) -> None:
    """Nobody could check its files."""
    model = _save(tmp_path / "model", _student())
    tree = json.loads((model / "model.json").read_text())
    del tree["files"], tree["seal"]
    (model / "model.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"model: was saved by an earlier version, whose model\.json names no files"):
        push_model(str(model), REPO)
    assert hub.asked == []
    hub.repositories[REPO] = Repository()
    files = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    hub.repositories[REPO].commit("main", files)
    with pytest.raises(RegistryError, match=r"its model\.json names no model\.safetensors"):
        pull_model(f"hf://{REPO}")


@pytest.mark.parametrize("name", ["model.safetensors", "speech_encoder/config.json", "model.json"])
def test_a_file_that_was_altered_on_the_hub_is_not_used(hub: Hub, tmp_path: Path, name: str) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)
    files = dict(hub.files(REPO))
    files[name] = files[name].replace(b"hubert", b"wavlm ") if name.endswith("json") else files[name][:-1] + b"x"
    hub.repositories[REPO].commit("main", files)
    with pytest.raises(RegistryError, match=r"hf://lab/student@[0-9a-f]+: .*(SHA-256|seal|digest)"):
        pull_model(f"hf://{REPO}")
    assert list((tmp_path / "cache" / "ccts_dist" / "models").glob("hub-*")) == []


def test_a_model_damaged_in_the_cache_is_taken_again(hub: Hub, tmp_path: Path) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)
    folder = pull_model(f"hf://{REPO}").folder
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    assert pull_model(f"hf://{REPO}").folder == folder
    assert load_student(str(folder)).embedding_size == 8


def test_a_model_that_was_fetched_is_there_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)
    expected = pull_model(f"hf://{REPO}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pull_model(f"hf://{REPO}") == expected
    with pytest.raises(RegistryError, match=r"hf://lab/other failed: it is not in the hub's cache, and the hub is off"):
        pull_model("hf://lab/other")


def test_faults_are_one_line_without_the_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(_save(tmp_path / "model", _student()))
    hub.repositories["lab/empty"] = Repository()
    with pytest.raises(RegistryError, match=r"fetching hf://lab/none failed: no such repository\. Check its name"):
        pull_model("hf://lab/none")
    with pytest.raises(RegistryError, match="fetching hf://lab/empty@v2 failed: no such branch, tag or commit"):
        pull_model("hf://lab/empty@v2")
    with pytest.raises(RegistryError, match=r"hf://lab/empty@0{40}: has no model\.json"):
        pull_model("hf://lab/empty")
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1])
    assert run_main(command.main, [model, REPO]) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1, line
    assert "error: pushing to lab/student failed: no token, or one that may not do so. Run hf auth login" in line
    assert TOKEN[:-1] not in line
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert run_main(command.main, [model, REPO]) == 1
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1, line
    assert "error: pushing to lab/student failed: " in line
    assert TOKEN[:-1] not in line


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["student"], "'student': the hub's names are ORG/NAME"),
        (["a/b/c"], "'a/b/c': the hub's names are ORG/NAME"),
        ([REPO, "--revision", "a b"], "--revision 'a b': must be a branch"),
        ([REPO, "--language", "English!"], "--language 'English!': must be a code such as en"),
    ],
)
def test_mistakes_in_names_are_found_before_anything_is_sent(
    hub: Hub, tmp_path: Path, args: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(command.main, [str(tmp_path), *args]) == 2
    assert reason in capsys.readouterr().err
    assert hub.asked == []


def test_addresses_of_the_hub_are_read() -> None:
    assert parse_hub_name("hf://lab/student") == HubName("lab/student")
    assert parse_hub_name("hf://lab/student@refs/pr/1") == HubName("lab/student", "refs/pr/1")
    assert str(HubName("lab/student", "v2")) == "hf://lab/student@v2"
    assert parse_hub_name("models:/student@champion") is None
    assert [is_address(one) for one in ("hf://a/b", "models:/a/1", "runs:/b", "a/b")] == [True, True, True, False]
    for wrong in ("hf://student", "hf://a/b/c", "hf://a b/c", "hf:///c", "hf://"):
        with pytest.raises(ConfigError, match="the hub's names are ORG/NAME"):
            parse_hub_name(wrong)
    for wrong in ("hf://a/b@", "hf://a/b@c d", "hf://a/b@../c"):
        with pytest.raises(ConfigError, match="must be hf://ORG/NAME@REVISION"):
            parse_hub_name(wrong)


def test_a_model_of_the_hub_has_no_run_to_put_a_page_into(tmp_path: Path) -> None:
    pulled = PulledModel(folder=tmp_path, version=f"hf://{REPO}@{'0' * 40}")
    with pytest.raises(ConfigError, match="comes from the hub, which has no run"):
        attach(tmp_path / "page.html", pulled)


def test_a_description_that_is_no_json_and_a_file_that_is_not_there_are_refused(hub: Hub) -> None:
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", {"model.json": b"{"})
    with pytest.raises(RegistryError, match=r"hf://lab/student@[0-9a-f]+: its model\.json cannot be read: "):
        pull_model(f"hf://{REPO}")
    description = description_bytes({"files": {"encoder/config.json": "0" * 64, "model.safetensors": "0" * 64}})
    hub.repositories[REPO].commit("main", {"model.json": description, "model.safetensors": b""})
    with pytest.raises(RegistryError, match=r"lacks encoder/config\.json, which its model\.json names\. Push"):
        pull_model(f"hf://{REPO}")


def test_a_cache_that_cannot_be_written_to_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RegistryError, match=r"cannot be cached there \(Not a directory\)\. Set XDG_CACHE_HOME"):
        pull_model(f"hf://{REPO}")


def test_a_model_that_another_process_puts_into_the_cache_meanwhile_is_taken(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)
    is_there = False

    def rename(self: Path, target: Path) -> Path:
        if is_there:
            shutil.copytree(self, target)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Directory not empty"):
        pull_model(f"hf://{REPO}")
    is_there = True
    assert load_student(str(pull_model(f"hf://{REPO}").folder)).embedding_size == 8


def test_a_model_is_copied_where_it_cannot_be_linked_and_bars_stay_off(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_model(str(_save(tmp_path / "model", _student())), REPO)

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    disable_progress_bars()
    try:
        folder = pull_model(f"hf://{REPO}").folder
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
    assert (folder / "model.safetensors").stat().st_nlink == 1
    assert load_student(str(folder)).embedding_size == 8


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        (GatedRepoError, 403, "access to it must be asked for on its page, with a token"),
        (RepositoryNotFoundError, 401, "no such repository, or none that this token may see"),
        (RepositoryNotFoundError, 404, "no such repository. Check its name"),
        (HfHubHTTPError, 401, "no token, or one that may not do so"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(kind: type[HfHubHTTPError], status: int, reason: str) -> None:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    with pytest.raises(RegistryError) as error, asking_the_hub("fetching it"):
        raise kind("refused", response=response)
    assert str(error.value).startswith(f"fetching it failed: {reason}")


def test_push_states_what_transformers_lacks(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _student(speech=SPEECH(shape=model_shapes.SPEECH_FAMILIES["modified-cpc"]))
    assert run_main(command.main, [str(_save(tmp_path / "model", config)), REPO]) == 0
    assert "\nnot for transformers: " in capsys.readouterr().out


@pytest.mark.integration
def test_commands_push_and_predict_with_the_variables_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Processes of their own, as people start them."""
    model = _save(tmp_path / "model", _student())
    soundfile.write(tmp_path / "a.wav", 0.1 * torch.randn(16_000).numpy(), 16_000, subtype="PCM_16")
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    push = [sys.executable, "launch/push.py", str(model), REPO, "--private"]
    done = subprocess.run(push, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    commit = hub.repositories[REPO].branches["main"]
    assert f"use it: --model hf://{REPO}@{commit}" in done.stdout
    predict = [sys.executable, "launch/predict.py", "--model", f"hf://{REPO}", "--format", "jsonl"]
    done = subprocess.run([*predict, str(tmp_path / "a.wav")], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (expected,) = load_student(model).predict([tmp_path / "a.wav"])
    found = json.loads(done.stdout.splitlines()[0])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)
