"""A corpus with targets of its own, ratings missing here and there, and utterances that nobody rated: trained on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.corpus import read_manifest
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.small_runs import read_history, write_run

TARGETS = ("valence", "tension")
NUM_TRAIN = 48


def ratings(number: int) -> dict[str, float | None]:
    """Every fourth without valence, every sixth without tension, every eighth without any."""
    return {
        "valence": None if number % 4 == 0 else 1 + number % 5,
        "tension": None if number % 6 == 0 or number % 8 == 0 else 1 + (number * 3) % 5,
    }


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("gaps")
    draws, lines = np.random.default_rng(0), []
    for number in range(NUM_TRAIN + 16):
        soundfile.write(folder / f"{number}.flac", draws.normal(0, 0.1, 1_600 + 50 * (number % 7)), 16_000)
        record = {
            "key": f"take {number}/ü.1",
            "audio": f"{number}.flac",
            "split": "Train" if number < NUM_TRAIN else "Development",
            "category": ("calm", "tense", None)[number % 3],
            **ratings(number),
        }
        lines.append(json.dumps(record))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    corpus = read_manifest(folder / "manifest.jsonl", release="1", targets=TARGETS, scale=(1.0, 5.0))
    facts = {"corpus": corpus.name, "release": corpus.release, "scale": corpus.scale, "targets": corpus.targets}
    build_shard_set(corpus.utterances, folder / "shards", root=folder, shard_bytes=60_000, **facts)
    return open_shard_set(folder / "shards")


def test_a_batch_holds_labelled_half_labelled_and_unlabelled_utterances_as_the_manifest_rates_them(shard_set):
    loader = Loader(
        shard_set,
        ("Train",),
        batch=BatchConfig(global_batch_size=NUM_TRAIN, micro_batch_size=NUM_TRAIN),
        data=DataConfig(shards="", num_workers=1),
        targets=("tension", "valence"),
        categories=("calm", "tense"),
        seed=0,
        ranks=Ranks(),
    )
    (step,) = loader.epoch(0)
    (batch,) = step.micro_batches
    assert len(batch.keys) == NUM_TRAIN
    for key, label, category in zip(batch.keys, batch.labels.tolist(), batch.categories.tolist(), strict=True):
        number = int(key.removeprefix("take ").partition("/")[0])
        for target, value in zip(("tension", "valence"), label, strict=True):
            rating = ratings(number)[target]
            assert math.isnan(value) if rating is None else value == pytest.approx((rating - 1) / 4)
        assert category == (0, 1, -1)[number % 3]
    assert batch.weight.tolist() == [1.0] * NUM_TRAIN
    loader.close()


def test_two_ranks_train_on_named_targets_with_gaps_and_count_what_is_rated(shard_set: ShardSet, tmp_path: Path):
    run = write_run(
        tmp_path / "run.toml",
        shard_set.root,
        tmp_path / "out",
        data={"test_splits": [], "num_workers": 1},
        model={"targets": list(TARGETS)},
        train={"epochs": 2, "max_steps": 6},
    )
    launch_well(2, "launch/train.py", "--config", str(run))
    history = read_history(tmp_path / "out")
    assert len(history) == 6
    for step in history:
        assert math.isfinite(step["train/loss"])
        assert {name for name in step if name.startswith("train/ccc_")} == {f"train/ccc_{target}" for target in TARGETS}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["valid"]) == set(TARGETS)
    assert all(math.isfinite(value) for value in summary["valid"].values())
