"""Every reader of files that somebody else may have made, under changed ones: see
``tests/helpers/faults/fuzzing.py``."""

import json
import random
import shutil
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from ccts_dist.config import ModelConfig, read_run
from ccts_dist.corpus.asr_transcripts import AsrTranscript, read_transcripts
from ccts_dist.corpus.iemocap import read_iemocap
from ccts_dist.corpus.manifest import read_manifest as read_table
from ccts_dist.corpus.msp_podcast.reader import read_msp_podcast
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.shards import open_shard_set, open_teacher_cache
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.format.schema import label_variance_of, num_raters_of, transcript_of
from ccts_dist.shards.format.sealed_json import sealed_bytes
from ccts_dist.shards.format.tars import walk_tar
from ccts_dist.shards.format.teacher_cache import decode_output
from ccts_dist.train.checkpoints.checkpoint import find_checkpoint, read_manifest, read_state
from tests.helpers.examples import audformat_examples
from tests.helpers.examples.sound_sets import SHARD, build_sound
from tests.helpers.faults import damage
from tests.helpers.faults.fuzzing import fuzz
from tests.helpers.faults.mutations import mutate_bytes, mutate_json, mutate_lines, mutate_tar, mutate_tree
from tests.helpers.models.model_shapes import speech_config

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards``, ``cache`` and ``merged``."""
    return build_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def work(sound: Path, tmp_path: Path) -> Path:
    for name in ("shards", "cache"):
        shutil.copytree(sound / name, tmp_path / name)
    return tmp_path


def either(draw: random.Random, one: Callable[..., bytes], data: bytes) -> bytes:
    return one(draw, data) if draw.random() < 0.8 else mutate_bytes(draw, data, 1)


def sealed(draw: random.Random, data: bytes) -> bytes:
    """A changed manifest, most of the time sealed again, as anybody can."""
    if draw.random() < 0.1:
        return mutate_json(draw, data)
    tree = mutate_tree(draw, json.loads(data))
    try:
        return sealed_bytes(tree) if isinstance(tree, dict) else json.dumps(tree).encode()
    except ValueError:  # half a surrogate, which no sealed document can spell
        return json.dumps(tree).encode()


def read_all(root: Path) -> None:
    shard_set = open_shard_set(root)
    for shard in shard_set.manifest.shards:
        rows = shard_set.rows(shard.name)
        for row in range(min(len(rows), 3)):
            for member in rows.members:
                shard_set.member(rows, row, member)


def test_tars(work: Path):
    sound, path = (work / "shards" / SHARD).read_bytes(), work / "shards" / SHARD

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for member in walk_tar(path):
            assert 0 <= member.offset <= member.offset + member.size <= len(data)

    assert fuzz(lambda draw: either(draw, mutate_tar, sound), read, work / "found") > 0


def test_tars_that_a_manifest_agrees_with(work: Path):
    sound, path = (work / "shards" / SHARD).read_bytes(), work / "shards" / SHARD

    def read(data: bytes) -> None:
        path.write_bytes(data)
        damage.bless_bytes(work / "shards")
        check_shard_set(work / "shards", num_threads=1)
        read_all(work / "shards")

    assert fuzz(lambda draw: either(draw, mutate_tar, sound), read, work / "found") > 0


@pytest.mark.parametrize("folder", ["shards", "cache"])
def test_indexes(work: Path, folder: str):
    path = work / folder / "index.arrow"
    sound, manifest = path.read_bytes(), (work / folder / "manifest.json").read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        (work / folder / "manifest.json").write_bytes(manifest)
        damage.bless_bytes(work / folder)
        check_shard_set(work / "shards", work / "cache", fast=True, num_threads=1)
        if folder == "shards":
            read_all(work / "shards")
        else:
            open_teacher_cache(work / "cache", open_shard_set(work / "shards")).check_outputs([SHARD])

    assert fuzz(lambda draw: mutate_bytes(draw, sound), read, work / "found") > 0


def test_manifests(work: Path):
    path = work / "shards" / "manifest.json"
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        check_shard_set(work / "shards", fast=True, num_threads=1)
        read_all(work / "shards")

    assert fuzz(lambda draw: sealed(draw, sound), read, work / "found") > 0


@pytest.mark.parametrize("name", ["manifest.json", "condition.json"])
def test_documents_of_teacher_caches(work: Path, name: str):
    path, shard_set = work / "cache" / name, open_shard_set(work / "shards")
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if name == "condition.json":
            damage.bless_condition(work / "cache")
        check_shard_set(work / "shards", work / "cache", fast=True, num_threads=1)
        cache = open_teacher_cache(work / "cache", shard_set)
        cache.check_outputs([SHARD])
        cache.read(SHARD, 0, shard_set.rows(SHARD).keys[0])

    change = sealed if name == "manifest.json" else mutate_json
    assert fuzz(lambda draw: change(draw, sound), read, work / "found") > 0


@pytest.mark.parametrize("member", ["json", "teacher.npy"])
def test_members(work: Path, member: str):
    root = work / ("shards" if member == "json" else "cache")
    found = damage.member_of(root, SHARD, 0, member)
    sound = (root / SHARD).read_bytes()[found.offset : found.offset + found.size]

    def read(data: bytes) -> None:
        if member == "json":
            transcript_of(data)
            label_variance_of(data)
            num_raters_of(data)
        else:
            decode_output(data, 5, 3)

    change = mutate_json if member == "json" else mutate_bytes
    assert fuzz(lambda draw: change(draw, sound), read, work / "found", allowed=(ValueError,)) > 0


def changed_toml(draw: random.Random, text: str) -> bytes:
    if draw.random() < 0.5:
        return mutate_bytes(draw, text.encode())
    tree = mutate_tree(draw, tomllib.loads(text))
    try:
        return tomli_w.dumps(tree).encode()
    except (TypeError, ValueError, AttributeError):  # null, half a surrogate, or no table
        return mutate_bytes(draw, text.encode(), 1)


@pytest.mark.parametrize("name", ["demo/cts.toml", "full/cts.toml"])
def test_run_files(tmp_path: Path, name: str):
    path = ROOT / "launch/runs" / name
    if not path.is_file():
        path = sorted((ROOT / "launch/runs" / name).parent.glob("*.toml"))[0]
    text = path.read_text()

    def read(data: bytes) -> None:
        (tmp_path / "run.toml").write_bytes(data)
        read_run(tmp_path / "run.toml", ["optim.learning_rate=1e-3"])

    assert fuzz(partial(changed_toml, text=text), read, tmp_path / "found") > 0


def test_settings_on_the_command_line(tmp_path: Path):
    path = ROOT / "launch/runs/demo/cts.toml"

    def read(data: bytes) -> None:
        read_run(path, data.decode("utf-8", "replace").split("\n"))

    sound = b"optim.learning_rate=1e-3\ntrain.epochs=3\nname=x\nbatch={global_batch_size=4}\ndata.test_splits=['a']"
    assert fuzz(lambda draw: mutate_lines(draw, sound), read, tmp_path / "found") > 0


TABLES = {
    "table.csv": b"key,audio,split,transcript,speaker,valence,valence.variance,num_raters\n"
    b'a,a.wav,Train,"one, two",s,3.5,0.5,4\nb,b.wav,Test,,,,,\n',
    "table.jsonl": b'{"key": "a", "audio": "a.wav", "split": "Train", "valence": 3.5, "num_raters": 4}\n'
    b'{"key": "b", "audio": "b.wav", "split": "Test", "valence": null, "transcript": "x"}\n',
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_label_tables(tmp_path: Path, name: str):
    (tmp_path / "a.wav").write_bytes(b"RIFF")

    def read(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        list(read_table(tmp_path / name).utterances)

    assert fuzz(lambda draw: mutate_lines(draw, TABLES[name]), read, tmp_path / "found") > 0


CONSENSUS = (
    b"FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    b"MSP-PODCAST_0001_0001.wav,N,4.2,3.5,5.0,7,Female,Train\nMSP-PODCAST_0001_0002.wav,A,1,7,2,Unknown,Male,Test1\n"
)
DETAILED = b"FileName,EmoDetail\nMSP-PODCAST_0001_0001.wav,WORKER1; Neutral; Neutral,Other; A:3; V:4; D:3;\n"


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("Labels/labels_consensus.csv", CONSENSUS),
        ("Labels/labels_detailed.csv", DETAILED),
        ("Labels/labels.txt", b"MSP-PODCAST_0001_0001.wav; N; A:2.2; V:4.0; D:2.6;\nWORKER1; N; N; A:3; V:4; D:3;\n"),
        ("Partitions.txt", b"Train; MSP-PODCAST_0001_0001.wav\nTest3; MSP-PODCAST_0009_0001.wav\n"),
        ("Transcripts/MSP-PODCAST_0001_0001.txt", "well, it\u2019s “one”\n".encode()),
    ],
)
def test_labels_of_msp_podcast(tmp_path: Path, name: str, sound: bytes):
    for path, data in (
        ("Labels/labels_consensus.csv", CONSENSUS),
        ("Labels/labels_detailed.csv", DETAILED),
        (name, sound),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    if name == "Labels/labels.txt":
        (tmp_path / "Labels/labels_consensus.csv").unlink()
        (tmp_path / "Labels/labels_detailed.csv").unlink()
    for number in (1, 2):
        (tmp_path / "Audios").mkdir(exist_ok=True)
        (tmp_path / "Audios" / f"MSP-PODCAST_0001_000{number}.wav").write_bytes(b"RIFF")

    def read(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        list(read_msp_podcast(tmp_path).utterances)

    assert fuzz(lambda draw: mutate_lines(draw, sound), read, tmp_path / "found") > 0


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        (
            "EmoEvaluation",
            b"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
            b"[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
            b"C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n",
        ),
        ("transcriptions", b"Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n"),
    ],
)
def test_labels_of_iemocap(tmp_path: Path, name: str, sound: bytes):
    for number in range(1, 6):
        (tmp_path / f"Session{number}" / "dialog" / "EmoEvaluation").mkdir(parents=True)
    path = tmp_path / "Session1" / "dialog" / name / "Ses01F_impro01.txt"
    path.parent.mkdir(exist_ok=True)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        list(read_iemocap(tmp_path).utterances)

    assert fuzz(lambda draw: mutate_lines(draw, sound), read, tmp_path / "found") > 0


@pytest.mark.parametrize("name", ["db.yaml", "db.segments.parquet"])
def test_files_of_an_audformat_database(name: str, tmp_path: Path):
    audformat_examples.segments(tmp_path)
    path = tmp_path / name
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        audformat_examples.read_segments(tmp_path)

    mutate = mutate_lines if name.endswith("yaml") else partial(mutate_bytes, most=4)
    assert fuzz(lambda draw: either(draw, mutate, sound), read, tmp_path / "found") > 0


def test_files_of_a_recognizer(tmp_path: Path):
    from dataclasses import asdict

    one = AsrTranscript(
        key="a", transcript="ü", confidence=0.5, duration_s=1.0, model="m", digest="0" * 64, language=None
    )
    sound = json.dumps(asdict(one), sort_keys=True).encode() + b"\n"

    def read(data: bytes) -> None:
        (tmp_path / "a-asr.jsonl").write_bytes(data)
        read_transcripts(tmp_path / "a-asr.jsonl")

    assert fuzz(lambda draw: mutate_json(draw, sound) + b"\n", read, tmp_path / "found") > 0


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_checkpoints(tmp_path: Path, name: str):
    folder = checkpoint(tmp_path)
    path, manifest = folder / name, json.loads((folder / "manifest.json").read_text())
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if name == "state.json":
            import hashlib

            manifest["files"]["state.json"] = [len(data), hashlib.sha256(data).hexdigest()]
            (folder / "manifest.json").write_text(json.dumps(manifest))
        read_manifest(folder)
        read_state(folder)
        find_checkpoint(tmp_path, lambda _: None)

    assert fuzz(lambda draw: mutate_json(draw, sound), read, tmp_path / "found") > 0


def checkpoint(output: Path) -> Path:
    """The smallest checkpoint: what a run of no model would write."""
    import hashlib
    from dataclasses import asdict

    from ccts_dist.train.checkpoints.checkpoint import FORMAT_VERSION, TrainState

    folder = output / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(asdict(TrainState(step=3, epoch_sums={"loss": 0.5}))))
    (folder / "weights.safetensors").write_bytes(b"x")
    files = {
        path.name: [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(folder.iterdir())
    }
    tree: dict[str, Any] = {"format_version": FORMAT_VERSION, "step": 3, "num_ranks": 2, "plan_digest": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(tree | {"run": {"name": "x"}, "files": files}))
    read_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["model.json", "speech_encoder/config.json", "model.safetensors"])
def test_model_folders(tmp_path: Path, name: str):
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=8, speech=speech_config()))
    folder = tmp_path / "model"
    save_model(
        folder, model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={"seed": 1}
    )
    tree = json.loads((folder / "model.json").read_text())
    for key in ("seal", "files"):  # as folders of earlier versions are, and as anybody may make one
        del tree[key]
    (folder / "model.json").write_text(json.dumps(tree))
    sound = (folder / name).read_bytes()

    def read(data: bytes) -> None:
        import hashlib

        (folder / name).write_bytes(data)
        if name == "model.safetensors":
            (folder / "model.json").write_text(json.dumps(tree | {"sha256": hashlib.sha256(data).hexdigest()}))
        load_model(folder)

    change = mutate_bytes if name == "model.safetensors" else mutate_json
    assert fuzz(lambda draw: change(draw, sound), read, tmp_path / "found") > 0
