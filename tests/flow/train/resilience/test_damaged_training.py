"""Training on damaged shards and caches: nothing damaged is trained on in silence.

``on_corrupt = "raise"`` ends both ranks with one message that names shard and key; ``"skip"`` goes on without the
damaged utterances, counts them, and trains as if nobody had ever rated them.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import lockstep, rank_facts, run_on_all_ranks
from ccts_dist.errors import CctsError
from ccts_dist.loader.collate import EncodeText
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS, TeacherOutput
from ccts_dist.shards import open_teacher_cache
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.format.teacher_cache import encode_output
from ccts_dist.shards.shard_set import open_shard_set
from tests.helpers.faults import damage
from tests.helpers.models.model_shapes import TEXT
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import launch
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks

EPOCHS, STEPS_PER_EPOCH, BATCH = 2, 4, 16
SHARDS = ("Train-000000.tar", "Train-000001.tar", "Train-000002.tar")

TEXT_BRANCH = {"text": {"encoder": "scratch", "scratch": TEXT, "pooling": "mean", "max_tokens": 32}}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards`` and ``cache``, to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    shard_set = build_two_kinds(folder, num_train=BATCH * STEPS_PER_EPOCH)
    assert {shard.name for shard in shard_set.manifest.shards} > set(SHARDS)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Path:
    for name in ("shards", "cache"):
        shutil.copytree(sound / name, tmp_path / name)
    return tmp_path


def run_file(place: Path, name: str, **sections: Any) -> Path:
    train = {"epochs": EPOCHS, "max_steps": EPOCHS * STEPS_PER_EPOCH}
    sections = {"train": train, **sections}
    return write_run(place / f"{name}.toml", place / "shards", place / name, **sections)


def train(config: Path) -> subprocess.CompletedProcess[str]:
    return launch(2, "launch/train.py", "--config", str(config))


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.partition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line]


def key_of(place: Path, shard: str, row: int) -> str:
    return open_shard_set(place / "shards").rows(shard).keys[row]


def loader_of(place: Path, encode_text: EncodeText | None = None) -> Loader:
    return Loader(
        open_shard_set(place / "shards"),
        ("Train",),
        batch=BatchConfig(global_batch_size=BATCH, micro_batch_size=BATCH),
        data=DataConfig(shards="", num_workers=0, bucket_batches=1),
        targets=DIMENSIONS,
        seed=3,
        ranks=rank_facts(),
        encode_text=encode_text,
    )


def step_of(sound: Path, key: str) -> int:
    """The step of the first epoch that an utterance belongs to, counted from 0."""
    plan = loader_of(sound).plan
    batches = (plan.global_batch(0, step) for step in range(STEPS_PER_EPOCH))
    return next(step for step, rows in enumerate(batches) if key in {row.key for row in rows})


def test_a_damaged_utterance_stops_both_ranks_with_one_message_before_its_step(place: Path, sound: Path):
    key = key_of(place, SHARDS[1], 2)
    damage.flip_in_member(place / "shards", SHARDS[1], 2, "flac")
    done = train(run_file(place, "run"))
    assert done.returncode == 1, done.stderr[-4000:]
    (error,) = errors_of(done)
    assert error.startswith(f"{SHARDS[1]}: flac of {key!r} is damaged (its CRC-32 differs).")
    assert str(place / "shards") in error
    assert "Traceback" not in done.stderr
    assert len(read_history(place / "run")) == step_of(sound, key)
    assert not (place / "run" / "last").exists()


def letters(words: str) -> list[int]:
    """Tokens without a tokenizer."""
    return list(words.encode())


def read_an_epoch(places: Sequence[str]) -> list[tuple[int, str]]:
    """How many steps this rank got of each place's first epoch, and what it was then reported."""
    reported = []
    for place in places:
        steps, words = 0, ""
        try:
            loader = run_on_all_ranks(partial(loader_of, Path(place), letters))
            for _ in lockstep(loader.epoch(0), STEPS_PER_EPOCH):
                steps += 1
        except CctsError as error:
            words = str(error)
        reported.append((steps, words))
    return reported


def test_every_rank_is_reported_the_same_at_the_same_step_whatever_is_damaged(sound: Path, tmp_path: Path):
    for number, (harm, _) in enumerate(HARMS.values()):
        shutil.copytree(sound / "shards", tmp_path / str(number) / "shards")
        harm(tmp_path / str(number) / "shards")
    first, second = run_on_ranks(read_an_epoch, 2, [str(tmp_path / str(number)) for number in range(len(HARMS))])
    assert first == second
    for (kind, (_, words)), (steps, reported) in zip(HARMS.items(), first, strict=True):
        assert words in reported, kind
        assert steps < STEPS_PER_EPOCH, kind
    assert first[0][0] == step_of(sound, key_of(sound, SHARDS[0], 1))


def forget_labels(root: Path, rows: Sequence[tuple[str, int]]) -> None:
    """Make nobody have rated some utterances: what training reads of labels stands in the index."""
    for shard, row in rows:
        for target in DIMENSIONS:
            damage.change_index(root, shard, f"label.{target}", {row: None})
    damage.bless(root)


def test_skipping_goes_on_without_what_is_damaged_and_counts_it(place: Path):
    planted = [(SHARDS[0], 1), (SHARDS[0], 2), (SHARDS[2], 0)]
    for shard, row in planted:
        damage.flip_in_member(place / "shards", shard, row, "flac")
    done = train(run_file(place, "run", data={"on_corrupt": "skip"}))
    assert done.returncode == 0, done.stderr[-4000:]
    assert damaged_by_epoch(place / "run") == [len(planted)] * EPOCHS
    for shard, row in planted:
        words = f"skipped: {shard}: flac of {key_of(place, shard, row)!r} is damaged (its CRC-32 differs)"
        assert done.stderr.count(words) == EPOCHS


def damaged_by_epoch(output: Path) -> list[float]:
    history = read_history(output)
    return [
        sum(step["data/corrupt_utterances"] for step in history if step["epoch"] == epoch) for epoch in range(EPOCHS)
    ]


@pytest.mark.long
def test_skipping_trains_as_if_nobody_had_rated_what_is_damaged(place: Path, sound: Path):
    planted = [(SHARDS[0], 1), (SHARDS[0], 2), (SHARDS[2], 0)]
    for shard, row in planted:
        damage.flip_in_member(place / "shards", shard, row, "flac")
    done = train(run_file(place, "skipping", data={"on_corrupt": "skip"}))
    assert done.returncode == 0, done.stderr[-4000:]
    shutil.rmtree(place / "shards")
    shutil.copytree(sound / "shards", place / "shards")
    forget_labels(place / "shards", planted)
    done = train(run_file(place, "unrated"))
    assert done.returncode == 0, done.stderr[-4000:]
    losses, theirs = ([step["train/loss"] for step in read_history(place / name)] for name in ("skipping", "unrated"))
    assert losses == theirs
    weights, theirs = (load_file(place / name / "last" / "model.safetensors") for name in ("skipping", "unrated"))
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_more_damage_than_was_allowed_ends_both_ranks(place: Path):
    for row in range(3):
        damage.flip_in_member(place / "shards", SHARDS[0], row, "flac")
    done = train(run_file(place, "run", data={"on_corrupt": "skip", "max_corrupt": 2}))
    assert done.returncode == 1
    (error,) = errors_of(done)
    assert error.startswith("epoch 1: 3 damaged utterances, and data.max_corrupt=2.")
    assert SHARDS[0] in error
    done = train(run_file(place, "again", data={"on_corrupt": "skip", "max_corrupt": 3}))
    assert done.returncode == 0, done.stderr[-4000:]


def lose_shard(root: Path) -> None:
    damage.lose(root, SHARDS[1])


def swap_shards(root: Path) -> None:
    one, other = (root / SHARDS[0]).read_bytes(), (root / SHARDS[1]).read_bytes()
    (root / SHARDS[0]).write_bytes(other)
    (root / SHARDS[1]).write_bytes(one)


def harm_batch(root: Path) -> None:
    place = open_shard_set(root).manifest.shards[1].index
    damage.flip(root / "index.arrow", place.offset + place.size // 2)


def cut_index(root: Path) -> None:
    size = (root / "index.arrow").stat().st_size
    with open(root / "index.arrow", "r+b") as file:
        file.truncate(size - 8)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit in audio": (lambda root: damage.flip_in_member(root, SHARDS[0], 1, "flac"), "flac of 'Train_1' is da"),
    "zeros in audio": (lambda root: damage.zero_in_member(root, SHARDS[0], 1, "flac"), "flac of 'Train_1' is damaged"),
    "flipped bit in text": (lambda root: damage.flip_in_member(root, SHARDS[0], 1, "json"), "json of 'Train_1' is dam"),
    "cut shard": (lambda root: damage.cut_inside(root, SHARDS[1], 1, "flac"), "is cut"),
    "empty shard": (lambda root: damage.empty(root, SHARDS[1]), "is cut"),
    "compressed shard": (lambda root: damage.compress(root, SHARDS[1], "gzip"), f"{SHARDS[1]}: "),
    "missing shard": (lose_shard, f"{SHARDS[1]}: cannot read"),
    "members in another order": (lambda root: damage.swap_members(root, SHARDS[0], 2, 3), "of 'Train_1' is damaged"),
    "shards in each other's place": (swap_shards, "Train-00000"),
    "stale index": (harm_batch, f"{SHARDS[1]}: its rows in"),
    "cut index": (cut_index, "index.arrow: has"),
    "edited manifest": (lambda root: damage.flip(root / "manifest.json", 40), "manifest.json: "),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flipped bit in text", "cut shard", "missing shard", "stale index"])
def test_damage_stops_a_model_of_speech_and_text(place: Path, kind: str):
    harm, words = HARMS[kind]
    harm(place / "shards")
    done = train(run_file(place, "run", model=TEXT_BRANCH))
    assert done.returncode == 1, done.stderr[-4000:]
    (error,) = errors_of(done)
    assert words in error
    assert "Traceback" not in done.stderr
    assert len(history_of(place / "run")) < STEPS_PER_EPOCH
    assert check_shard_set(place / "shards") != []


def history_of(output: Path) -> list[dict[str, Any]]:
    return read_history(output) if (output / "history.jsonl").exists() else []


@pytest.mark.long
def test_skipping_counts_damage_of_every_kind_that_is_an_utterances(place: Path):
    root = place / "shards"
    rows = {shard: len(open_shard_set(root).rows(shard)) for shard in SHARDS}
    damage.flip_in_member(root, SHARDS[0], 0, "flac")
    damage.flip_in_member(root, SHARDS[0], 1, "json")
    damage.flip_in_member(root, SHARDS[0], 2, "json")
    damage.flip_in_member(root, SHARDS[0], 2, "flac")  # two faults, one utterance
    damage.cut_inside(root, SHARDS[1], 3, "flac")
    damage.lose(root, SHARDS[2])
    planted = 3 + rows[SHARDS[1]] - 3 + rows[SHARDS[2]]
    done = train(run_file(place, "run", model=TEXT_BRANCH, data={"on_corrupt": "skip"}))
    assert done.returncode == 0, done.stderr[-4000:]
    history = read_history(place / "run")
    assert len(history) == EPOCHS * STEPS_PER_EPOCH
    assert sum(step["data/corrupt_utterances"] for step in history) == EPOCHS * planted
    assert all(math.isfinite(step["train/loss"]) for step in history)


@pytest.mark.long
def test_damage_in_what_is_validated_on_is_skipped_and_stopped_at_alike(place: Path):
    damage.flip_in_member(place / "shards", "Development-000000.tar", 1, "flac")
    done = train(run_file(place, "run"))
    assert done.returncode == 1
    assert errors_of(done)[0].startswith("Development-000000.tar: flac of ")
    done = train(run_file(place, "again", data={"on_corrupt": "skip"}))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("skipped: Development-000000.tar: flac of ") == EPOCHS


def with_teacher(place: Path, name: str, **data: Any) -> Path:
    return run_file(
        place, name, data={"teacher_cache": str(place / "cache"), **data}, distill={"embedding_weight": 1.0}
    )


@pytest.mark.long
@pytest.mark.parametrize("harm", [damage.flip_in_member, damage.cut_inside, damage.zero_header])
def test_damage_in_a_teacher_cache_stops_or_is_skipped(place: Path, harm: Callable):
    key = key_of(place, SHARDS[0], 3)
    harm(place / "cache", SHARDS[0], 3, "teacher.npy")
    lost = len(open_shard_set(place / "shards").rows(SHARDS[0])) - 3 if harm is damage.cut_inside else 1
    done = train(with_teacher(place, "run"))
    if harm is damage.zero_header:  # its bytes are nobody's: members are read by offset
        assert done.returncode == 0
        return
    assert done.returncode in (1, 2), done.stderr[-4000:]
    (error,) = errors_of(done)
    assert error.startswith(f"{SHARDS[0]}: teacher.npy of ")
    assert lost > 1 or repr(key) in error
    done = train(with_teacher(place, "again", damaged="skip"))
    assert done.returncode == 0, done.stderr[-4000:]
    counted = sum(step["data/corrupt_utterances"] for step in read_history(place / "again"))
    assert counted == EPOCHS * lost


def test_an_output_that_is_not_finite_in_a_store_ends_both_ranks_with_one_line(place: Path):
    """Sealed, so that no checksum reports. Of a store no output is fetched before its step: set-up cannot find it."""
    facts = open_teacher_cache(place / "cache", open_shard_set(place / "shards"))
    output = TeacherOutput(
        embedding=np.full(facts.embedding_size, np.nan, np.float32), prediction=np.zeros(len(facts.targets), np.float32)
    )
    damage.replace_payload(place / "cache", SHARDS[0], 3, "teacher.npy", encode_output(output))
    damage.bless_crc(place / "cache", SHARDS[0])
    done = train(with_teacher(place, "run", teacher_cache=f"file://{place}/cache", shard_cache=str(place / "fetched")))
    assert done.returncode == 2, done.stderr[-4000:]
    (error,) = errors_of(done)
    assert error.startswith(f"{SHARDS[0]}: teacher.npy of {key_of(place, SHARDS[0], 3)!r} in file://")
    assert "holds numbers that are not finite" in error
    assert "Traceback" not in done.stderr
    assert not (place / "run" / "last").exists()


@pytest.mark.long
def test_a_condition_that_was_changed_is_refused(place: Path):
    document = json.loads((place / "cache" / "condition.json").read_bytes())
    document["condition"]["b"][0] += 0.5
    (place / "cache" / "condition.json").write_text(json.dumps(document))
    done = train(with_teacher(place, "run"))
    assert done.returncode in (1, 2)
    assert "condition.json: is not the one that the manifest names" in errors_of(done)[0]
