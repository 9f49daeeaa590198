"""Every shipped run file passes ``--check``: on shards of its corpus in miniature and encoders under its names."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from ccts_dist.config import read_run
from ccts_dist.model import build_model, load_tokenizer, save_model
from ccts_dist.model.speech import emotion2vec_checkpoint
from ccts_dist.model.speech.modified_cpc import convert
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from launch import init
from launch import train as command
from tests.helpers.examples import open_examples
from tests.helpers.examples.related_corpora import build_for
from tests.helpers.examples.small_corpora import write_iemocap, write_msp_podcast
from tests.helpers.models import published_emotion2vec
from tests.helpers.models.hub import write_hub
from tests.helpers.models.published_cpc import published, write_checkpoint
from tests.helpers.processes.launching import run_forked
from tests.helpers.processes.small_runs import make_cache
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention

RUN_FILES = sorted(Path("launch/runs").rglob("*.toml"))
RELATED = [path for path in RUN_FILES if path.parent.name == "related"]
OPEN = [path for path in RUN_FILES if path.parent.name == "open"]
WITH_TEACHER = [path for path in OPEN if path.stem.endswith(("-teacher", "-cts"))]
MSP_SPLITS = {"Train": 40, "Development": 20, "Test1": 20}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def shard_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """As the builder makes them, by the corpus that it is reported."""
    place = tmp_path_factory.mktemp("corpora")
    corpora = {
        "msp-podcast": write_msp_podcast(place / "MSP-Podcast", MSP_SPLITS),
        "iemocap": write_iemocap(place / "IEMOCAP", per_session=20),
    }
    for path in set(OPEN) - set(WITH_TEACHER):  # with planted faults, so that much is rejected
        make = getattr(open_examples, path.stem.replace("-", "_"))
        corpora[path.stem] = make(place / f"{path.stem}-corpus").path
    for name, root in corpora.items():
        build = [sys.executable, "shards/build.py", name, str(root), "--out", str(place / name)]
        done = run_forked([*build, "--max-rejected", "0.9", "--processes", "1"])
        assert done.returncode == 0, done.stderr
    return {name: open_shard_set(place / name) for name in corpora}


@pytest.fixture(autouse=True)
def offline(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, ...], Path]:
    """Teacher caches by what their teachers were trained on; filled as they are needed."""
    return {}


def corpus_of(path: Path) -> str:
    """Name of the corpus of a run file for an open one."""
    return path.stem.removesuffix("-teacher").removesuffix("-cts")


def untrained_teacher(folder: Path, student: Path, scale: tuple[float, float]) -> Path:
    """A model folder of the corpus's teacher, or of the paper's, as if it had been trained on the student's splits."""
    own = student.with_name(f"{corpus_of(student)}-teacher.toml")
    config = read_run(own if own in OPEN else Path("launch/runs/paper/msp/09-teacher.toml")).model
    train_splits = read_run(student).data.train_splits
    assert config.text is not None
    tokenizer = load_tokenizer(config.text.encoder, max_tokens=config.text.max_tokens)
    model = build_model(config, vocabulary_size=tokenizer.vocabulary_size)
    save_model(
        folder, model.state_dict(), config, encoders=model.encoder_configs, tokenizer=tokenizer, scale=scale,
        extra={"train_splits": list(train_splits)},
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: "/".join(path.parts[2:]))
def test_shipped_run_file_passes_its_check(
    path: Path, shard_sets: dict[str, ShardSet], made: dict[tuple[str, ...], Path], tmp_path: Path, capsys
):
    run = read_run(path)
    if path in RELATED:
        shard_set = build_for(run, tmp_path / "corpus")
    else:
        shard_set = (
            shard_sets.get(corpus_of(path)) or shard_sets["iemocap" if "iemocap" in path.parts else "msp-podcast"]
        )
    sets = [word for setting in settings_for(path, shard_set, made, tmp_path) for word in ("--set", setting)]
    assert command.main(["--config", str(path), "--check", "--ranks", "2", *sets]) == 0
    assert "check passed" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def settings_for(path: Path, shard_set: ShardSet, made: dict[tuple[str, ...], Path], tmp_path: Path) -> list[str]:
    """What is to be set so that a run file finds its corpus, its teacher's cache and its encoder here."""
    run = read_run(path)
    settings = [f"data.shards={shard_set.root}", f"output_dir={tmp_path / 'run'}"]
    if path in OPEN:  # the look-alikes have some of the categories, spelt as the readers do
        assert set(shard_set.manifest.categories) <= set(run.model.categories)
        settings.append(f"model.categories={list(shard_set.manifest.categories)}")
    if run.data.teacher_cache:
        trained_on = (shard_set.digest, *run.data.train_splits)
        if trained_on not in made:
            low, high = shard_set.manifest.scale
            teacher = untrained_teacher(tmp_path / "teacher", path, (low, high))
            made[trained_on] = make_cache(teacher, shard_set, tmp_path / "cache")
        settings.append(f"data.teacher_cache={made[trained_on]}")
    if run.model.speech is not None and run.model.speech.encoder == "msp/encoders/modified-cpc":
        convert(write_checkpoint(tmp_path / "published.pt", published()), tmp_path / "cpc")
        settings.append(f"model.speech.encoder={tmp_path / 'cpc'}")
    if run.model.speech is not None and run.model.speech.encoder == "related/encoders/emotion2vec":
        checkpoint = published_emotion2vec.write_checkpoint(
            tmp_path / "emotion2vec.pt", published_emotion2vec.published()
        )
        emotion2vec_checkpoint.convert(checkpoint, tmp_path / "emotion2vec")
        settings.append(f"model.speech.encoder={tmp_path / 'emotion2vec'}")
    return settings


def train_from_hub(hub: Path, jobs: list[Job]) -> None:
    """On one rank: each job to its end, with the encoders of this hub cache."""
    huggingface_hub.constants.HF_HUB_CACHE, huggingface_hub.constants.HF_HUB_OFFLINE = str(hub), True
    run_trainings(jobs)


@pytest.mark.long
def test_run_files_of_related_papers_and_of_teachers_on_open_corpora_train(hub: Path, tmp_path: Path):
    jobs = []
    for path in (*RELATED, *WITH_TEACHER):
        place = tmp_path / path.stem
        shard_set = build_for(read_run(path), place / "corpus")
        small = ["train.epochs=1", "train.max_steps=2", "tracking.backend=none", "data.num_workers=0"]
        small += ["batch.global_batch_size=16", "batch.micro_batch_size=8"]
        jobs.append(Job(config=path.absolute(), set=(*settings_for(path, shard_set, {}, place), *small)))
    assert len(jobs) == 8 + 4
    run_on_ranks(train_from_hub, 1, hub, jobs, timeout_s=600)
    for path in (*RELATED, *WITH_TEACHER):
        summary = json.loads((tmp_path / path.stem / "run" / "summary.json").read_text())
        assert summary["steps"] == 2
        assert summary["test_scores"], path.stem


def test_run_file_of_init_with_full_encoders_passes_its_check(
    shard_sets: dict[str, ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "teacher.toml"
    assert init.main([str(shard_sets["msp-podcast"].root), "--with-text", "-o", str(run)]) == 0
    assert command.main([str(run), "--check", "--ranks", "2", f"output_dir={tmp_path / 'run'}"]) == 0
    assert "check passed" in capsys.readouterr().out
    model = read_run(run).model
    assert model.speech is not None
    assert model.speech.encoder == "facebook/hubert-large-ll60k"
