"""From a checkpoint through a real MLflow server to predictions elsewhere."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from mlflow.entities.model_registry import ModelVersion

from ccts_dist.config import TrackingConfig
from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.registry import load_student, pull_model, register, resolve_model, resolve_version
from ccts_dist.registry.card_data import without_metadata
from ccts_dist.registry.lineage import code_digest
from ccts_dist.tracking import open_tracking
from ccts_dist.tracking.mlflow_client import open_client
from tests.flow.tracking.faulty_proxy import WITHOUT_LOGGED_MODELS, faulty_proxy
from tests.helpers.models.small_student import save_student
from tests.helpers.processes.launching import ROOT, free_port, run_forked
from tests.helpers.servers.mlflow_server import mlflow_server


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A server with one registered model, whose run folder is no more."""

    uri: str
    files: Path
    """Where the server keeps artifacts."""

    run_folder: Path
    run_id: str
    audio: tuple[Path, ...]
    expected: list[dict[str, float]]
    """What the model reported before it was registered."""


def _save_run_folder(folder: Path, *, seed: int) -> None:
    extra = {"run": "student", "shards": "5ha2d5", "valid_ccc": {"valence": 0.5}}
    extra |= {"teacher_cache": "cac4e", "teacher_version": "teacher/3", "teacher_weights_sha256": "7eac4e5"}
    save_student(folder / "best", seed=seed, extra=extra)
    (folder / "summary.json").write_text(json.dumps({"test": {"valence": 0.4}}), encoding="utf-8")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("registry")
    with mlflow_server(place, port=free_port()) as uri:
        run_folder = place / "run"
        tracking = open_tracking(TrackingConfig(tracking_uri=uri), run_name="student", output=run_folder, resume=False)
        tracking.inputs(shard_set_digest="5ha2d5", splits={"Train": 8}, corpus="small")
        tracking.metrics({"test/ccc_valence": 0.4, "train/loss": 0.2}, 7)
        tracking.close("FINISHED")
        _save_run_folder(run_folder, seed=0)
        audio = []
        for number in range(3):
            noise = np.random.default_rng(number).normal(0.0, 0.1, 9_000 + 4_000 * number)
            audio.append(place / f"{number}.wav")
            soundfile.write(audio[-1], noise, 16_000)
        expected = load_student(run_folder / "best").predict(audio)
        assert register(run_folder, "emotion", tracking_uri=uri) == "1"
        shutil.rmtree(run_folder / "best")
        yield Registry(
            uri=uri,
            files=place / "files",
            run_folder=run_folder,
            run_id=tracking.run_id,
            audio=tuple(audio),
            expected=expected,
        )


def _logged_model(version: ModelVersion) -> str:
    """The id of the logged model whose files a version is."""
    assert version.source is not None
    return version.source.split("/")[-2]


def _python(code: str, *args: str, uri: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(
        [sys.executable, *(("-c", code) if code else ()), *args],
        env={
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "XDG_CACHE_HOME": str(cache),
        },
        cwd=cache.parent,
    )


def test_a_registered_model_predicts_the_same_in_a_fresh_process(registry: Registry, tmp_path: Path) -> None:
    """The folder it was registered from is gone, and unpickling is off."""
    script = str(ROOT / "launch" / "predict.py")
    files = [str(path) for path in registry.audio]
    args = (script, "--model", "models:/emotion@candidate", "--format", "json", *files)
    done = _python("", *args, uri=registry.uri, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer.pop("file") for answer in answers] == files
    for answer, expected in zip(answers, registry.expected, strict=True):
        assert answer == pytest.approx(expected, abs=1e-4)


def test_mlflow_itself_loads_and_serves_the_model_without_unpickling(registry: Registry, tmp_path: Path) -> None:
    code = """
import sys, json, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/emotion@candidate")
rows = pandas.DataFrame({"audio": [open(path, "rb").read() for path in sys.argv[1:]]})
print(json.dumps(model.predict(rows).to_dict(orient="records")))
"""
    done = _python(code, *(str(path) for path in registry.audio), uri=registry.uri, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    for answer, expected in zip(json.loads(done.stdout.splitlines()[-1]), registry.expected, strict=True):
        assert answer == pytest.approx(expected, abs=1e-4)


def test_a_version_holds_no_pickle_no_path_of_this_machine_and_a_card(registry: Registry, tmp_path: Path) -> None:
    (mlmodel,) = registry.files.rglob("MLmodel")
    names = {path.relative_to(mlmodel.parent).as_posix() for path in mlmodel.parent.rglob("*") if path.is_file()}
    assert names == {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "pyfunc_model.py",
        "artifacts/package/MODEL_CARD.md",
        "artifacts/package/digests.json",
        "artifacts/package/lineage.json",
        "artifacts/package/metrics.json",
        "artifacts/package/model.json",
        "artifacts/package/model.safetensors",
        "artifacts/package/preprocessing.json",
        "artifacts/package/speech_encoder/config.json",
    }
    for name in names - {"artifacts/package/model.safetensors"}:
        text = (mlmodel.parent / name).read_text(encoding="utf-8")
        assert str(ROOT) not in text, name
        assert "/tmp/" not in text, name
        assert str(registry.run_folder.parent) not in text, name
    card = (mlmodel.parent / "artifacts/package/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "test / valence: 0.4000" in card
    results = {one.metric_name: one.metric_value for one in ModelCard(card).data.eval_results or ()}
    assert results["CCC of valence"] == 0.4


def test_a_version_belongs_to_its_run_and_its_tags_state_what_it_is(registry: Registry) -> None:
    version = open_client(registry.uri).get_model_version("emotion", "1")
    assert version.run_id == registry.run_id
    tags = version.tags
    assert (tags["targets"], tags["scale"], tags["run_name"]) == ("activation,valence,dominance", "1,7", "student")
    assert tags["shard_set_digest"] == "5ha2d5"
    assert [tag for tag in tags if tag.startswith("sha256.")] == ["sha256.digests.json"]
    assert len(tags["weights_sha256"]) == 64
    card = next(registry.files.rglob("MODEL_CARD.md")).read_text(encoding="utf-8")
    assert version.description is not None
    assert version.description[:1000] == without_metadata(card)[:1000]
    assert version.description.startswith("Predicts ")
    assert (tags["teacher_cache_digest"], tags["teacher_version"]) == ("cac4e", "teacher/3")
    assert (tags["teacher_weights_sha256"], tags["sample_rate_hz"]) == ("7eac4e5", "16000")
    assert tags["code_sha256"] == code_digest()


def test_a_run_shows_its_model_with_scores_data_and_version(registry: Registry) -> None:
    client = open_client(registry.uri)
    run = client.get_run(registry.run_id)
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, model.source_run_id, model.status.value) == ("emotion", registry.run_id, "READY")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "emotion", "version": 1}]
    assert model.tags["mlflow.note.content"] == client.get_model_version("emotion", "1").description
    assert model.metrics is not None
    assert [(one.key, one.value, one.step, one.dataset_name, one.dataset_digest) for one in model.metrics] == [
        ("test/ccc_valence", 0.4, 7, "small", "5ha2d5")
    ]
    assert len(client.get_metric_history(registry.run_id, "test/ccc_valence")) == 1, "no second point in the curve"
    assert _logged_model(client.get_model_version("emotion", "1")) == output.model_id
    digest = json.loads((next(registry.files.rglob("digests.json"))).read_text())["model.safetensors"]
    stored = [path for path in registry.files.rglob("model.safetensors") if output.model_id in str(path)]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in stored] == [digest], "uploaded once"
    assert [path.path for path in client.list_artifacts(registry.run_id)] == ["inputs"]


def test_a_server_before_logged_models_keeps_the_model_in_its_run(registry: Registry, tmp_path: Path) -> None:
    _save_run_folder(tmp_path / "run", seed=9)
    with faulty_proxy(registry.uri) as proxy:
        proxy.fault = WITHOUT_LOGGED_MODELS
        version = register(tmp_path / "run", "old", tracking_uri=proxy.address, run_id=registry.run_id)
    found = open_client(registry.uri).get_model_version("old", version)
    digest = found.tags["sha256.digests.json"]
    assert found.source is not None
    assert found.source.endswith(f"{registry.run_id}/artifacts/models/{digest[:16]}")
    pulled = pull_model("models:/old/1", tracking_uri=registry.uri, cache=tmp_path / "cache")
    weights = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert (pulled.folder / "model.safetensors").read_bytes() == weights


def test_a_version_reports_where_it_comes_from_and_how_audio_is_prepared(registry: Registry, tmp_path: Path) -> None:
    folder = resolve_model("models:/emotion/1", tracking_uri=registry.uri, cache=tmp_path)
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    assert (lineage["run_id"], lineage["run_name"]) == (registry.run_id, "student")
    assert (lineage["shard_set_digest"], lineage["teacher_version"]) == ("5ha2d5", "teacher/3")
    prepared = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    assert (prepared["sample_rate_hz"], prepared["normalised_per_utterance"]) == (16_000, {"model.speech": False})
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "- teacher_version: teacher/3" in card
    assert '{"activation": ..., "valence": ..., "dominance": ...}' in card


def test_a_run_names_the_model_that_was_registered_of_it_last(registry: Registry, tmp_path: Path) -> None:
    tracking = open_tracking(
        TrackingConfig(tracking_uri=registry.uri), run_name="another", output=tmp_path / "run", resume=False
    )
    tracking.close("FINISHED")
    model = f"runs:/{tracking.run_id}"
    with pytest.raises(RegistryError, match=rf"{model}: no model of this run is in the registry at http://127"):
        resolve_version(model, tracking_uri=registry.uri)
    for seed, name in ((5, "of a run"), (6, "of the same run")):
        _save_run_folder(tmp_path / "run", seed=seed)
        register(tmp_path / "run", name, tracking_uri=registry.uri)
    assert resolve_version(model, tracking_uri=registry.uri) == "of the same run/1"
    pulled = pull_model(model, tracking_uri=registry.uri, cache=tmp_path / "cache")
    assert pulled.version == "of the same run/1"
    weights = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert (pulled.folder / "model.safetensors").read_bytes() == weights


def test_an_alias_is_followed_once_and_given_with_its_version(registry: Registry, tmp_path: Path) -> None:
    assert resolve_version("models:/emotion@candidate", tracking_uri=registry.uri) == "emotion/1"
    pulled = pull_model("models:/emotion@candidate", tracking_uri=registry.uri, cache=tmp_path)
    assert pulled.version == "emotion/1"
    assert pulled.folder.parent == tmp_path
    again = resolve_model("models:/emotion/1", tracking_uri=registry.uri, cache=tmp_path)
    assert again == pulled.folder
    assert [path.name for path in tmp_path.iterdir()] == [pulled.folder.name], "nothing is left of the fetching"


def test_a_damaged_copy_in_the_cache_is_fetched_again(registry: Registry, tmp_path: Path) -> None:
    folder = resolve_model("models:/emotion/1", tracking_uri=registry.uri, cache=tmp_path)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert resolve_model("models:/emotion/1", tracking_uri=registry.uri, cache=tmp_path) == folder
    assert load_student(folder).predict(registry.audio[:1])[0] == pytest.approx(registry.expected[0], abs=1e-4)


@pytest.mark.parametrize("model", ["models:/emotion@champion", "models:/emotion/99", "models:/unknown@candidate"])
def test_an_unknown_name_alias_or_version_is_reported_in_one_line(registry: Registry, model: str) -> None:
    with pytest.raises(RegistryError, match=r"not in the registry at http://127") as error:
        resolve_model(model, tracking_uri=registry.uri)
    assert "\n" not in str(error.value)
    assert model in str(error.value)


def test_a_version_with_a_digest_tag_for_each_file_as_earlier_ones_have_is_pulled(
    registry: Registry, tmp_path: Path
) -> None:
    client = open_client(registry.uri)
    new = client.get_model_version("emotion", "1")
    folder = resolve_model("models:/emotion/1", tracking_uri=registry.uri, cache=tmp_path / "new")
    tags = {f"sha256.{name}": digest for name, digest in json.loads((folder / "digests.json").read_text()).items()}
    client.create_registered_model("earlier")
    assert new.source is not None
    client.create_model_version(
        "earlier", new.source, registry.run_id, tags=tags | new.tags, model_id=_logged_model(new)
    )
    again = resolve_model("models:/earlier/1", tracking_uri=registry.uri, cache=tmp_path / "old")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    wrong = tags | {"sha256.model.safetensors": "0" * 64}
    client.create_model_version(
        "earlier", new.source, registry.run_id, tags=wrong | new.tags, model_id=_logged_model(new)
    )
    with pytest.raises(RegistryError, match=r"^model\.safetensors: its SHA-256 is .* states 0000"):
        resolve_model("models:/earlier/2", tracking_uri=registry.uri, cache=tmp_path / "old")


def test_a_version_that_others_registered_has_no_digests_and_is_refused(registry: Registry, tmp_path: Path) -> None:
    client = open_client(registry.uri)
    client.create_registered_model("foreign")
    found = client.get_model_version("emotion", "1")
    assert found.source is not None
    client.create_model_version("foreign", found.source, registry.run_id, model_id=_logged_model(found))
    with pytest.raises(RegistryError, match=r"models:/foreign/1 has no sha256\.\* tags"):
        resolve_model("models:/foreign/1", tracking_uri=registry.uri, cache=tmp_path)


def test_what_was_altered_in_the_store_is_refused_with_file_and_both_digests_before_it_is_opened(
    registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    _save_run_folder(folder, seed=1)
    version = register(folder / "best", "altered", alias="", tracking_uri=registry.uri)
    found = open_client(registry.uri).get_model_version("altered", version)
    true = found.tags["weights_sha256"]
    assert found.source is not None
    (stored,) = registry.files.rglob(f"{_logged_model(found)}/artifacts/artifacts/package/model.safetensors")
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    with pytest.raises(
        RegistryError, match=rf"^model\.safetensors: its SHA-256 is [0-9a-f]{{64}}, and .* states {true}"
    ):
        resolve_model(f"models:/altered/{version}", tracking_uri=registry.uri, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing of it is kept"


def test_models_of_one_run_stay_apart_by_weights_or_by_figures(registry: Registry, tmp_path: Path) -> None:
    registered = []
    for number, (seed, ccc) in enumerate([(2, 0.4), (3, 0.4), (3, 0.6)]):
        run = tmp_path / f"run{number}"
        _save_run_folder(run, seed=seed)
        (run / "summary.json").write_text(json.dumps({"test": {"valence": ccc}}), encoding="utf-8")
        version = register(run, "apart", tracking_uri=registry.uri, run_id=registry.run_id)
        registered.append((version, (run / "best" / "model.safetensors").read_bytes(), ccc))
    for version, weights, ccc in registered:
        pulled = resolve_model(f"models:/apart/{version}", tracking_uri=registry.uri, cache=tmp_path / "cache")
        assert (pulled / "model.safetensors").read_bytes() == weights
        assert json.loads((pulled / "metrics.json").read_text(encoding="utf-8"))["test"] == {"valence": ccc}
    assert resolve_version("models:/apart@candidate", tracking_uri=registry.uri) == "apart/3"


def test_registering_from_the_command_line_uses_the_runs_own_server(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(registry.run_folder, folder)
    _save_run_folder(folder, seed=4)
    script = str(ROOT / "launch" / "register.py")
    args = (script, "--checkpoint", str(folder), "--name", "by hand", "--alias", "first")
    done = _python("", *args, uri="", cache=tmp_path / "cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "registered models:/by hand/1, alias first\n"
    assert resolve_version("models:/by hand@first", tracking_uri=registry.uri) == "by hand/1"


def test_a_bad_file_is_named_and_left_out_and_the_good_ones_are_there(registry: Registry, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    script = str(ROOT / "launch" / "predict.py")
    files = [str(registry.audio[0]), str(bad), str(registry.audio[1])]
    args = (script, "--model", "models:/emotion/1", "--format", "csv", *files)
    done = _python("", *args, uri=registry.uri, cache=tmp_path / "cache")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"{bad}: cannot be decoded" in done.stderr
    header, *rows = done.stdout.splitlines()
    assert header == "file,activation,valence,dominance"
    assert [row.split(",")[0] for row in rows] == [files[0], files[2]]


def test_a_model_that_is_nowhere_ends_the_command_with_one_line(registry: Registry, tmp_path: Path) -> None:
    script = str(ROOT / "launch" / "predict.py")
    args = (script, "--model", "models:/emotion@champion", str(registry.audio[0]))
    done = _python("", *args, uri=registry.uri, cache=tmp_path / "cache")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: models:/emotion@champion: not in the registry")
    assert "name another store with --tracking-uri or MLFLOW_TRACKING_URI" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_registry_that_is_away_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"looking up models:/emotion@candidate at http://127\.0\.0\.1:9 failed"):
        resolve_model("models:/emotion@candidate", tracking_uri="http://127.0.0.1:9", cache=tmp_path)


def test_a_name_that_no_address_can_hold_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model name 'a/b'"):
        register(tmp_path / "absent", "a/b", tracking_uri="http://127.0.0.1:9")
