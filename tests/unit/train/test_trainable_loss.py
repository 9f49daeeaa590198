"""Losses that no weight can lower are refused, or named in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError, run_main
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.train.experiment import check_experiment
from launch import train as command
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import write_run

VARIED = (0.1, 0.9, 0.4, 0.7)
Labels = Callable[[str, int], tuple[float, float, float]]


def build(folder: Path, labels: Labels) -> Path:
    """Four utterances in Train and in Development; ``labels`` of each by split and number."""
    utterances = []
    for split in ("Train", "Development"):
        for number in range(4):
            audio = folder / f"{split}{number}.wav"
            soundfile.write(audio, np.full(1_600 + 160 * number, 0.1), 16_000)
            values = dict(zip(DIMENSIONS, labels(split, number), strict=True))
            utterances.append(
                Utterance(key=f"{split}{number}", audio=audio, split=split, labels=values, scale=(1.0, 7.0))
            )
    build_shard_set(
        utterances, folder / "shards", corpus="four", release="1", scale=(1.0, 7.0), targets=DIMENSIONS, root=folder
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("varied"), lambda _, number: (VARIED[number],) * 3)


def config_for(folder: Path, shards: Path, **sections: dict) -> Path:
    sections["data"] = {"test_splits": []} | sections.get("data", {})
    sections["batch"] = {"global_batch_size": 4, "micro_batch_size": 4} | sections.get("batch", {})
    return write_run(folder / "run.toml", shards, folder / "run", **sections)


def test_batch_of_one_utterance_is_refused_since_it_has_no_ccc(shards: Path, tmp_path: Path, capsys):
    path = config_for(tmp_path, shards, batch={"global_batch_size": 1, "micro_batch_size": 1})
    assert run_main(command.main, ["--config", str(path), "--check"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "batch.global_batch_size = 1: the CCC of one utterance does not exist" in line


@pytest.mark.parametrize(
    ("batch", "num_ranks"),
    [
        ({"micro_batch_size": 1}, 1),
        ({"micro_batch_size": 4}, 4),
        ({"micro_batch_size": 2}, 3),
        ({"micro_batch_size": 4, "micro_batch_seconds": 0.14}, 1),
    ],
    ids=["micro-batches of one", "as many ranks as utterances", "nearly as many", "seconds of one"],
)
def test_micro_batches_of_one_utterance_each_are_refused_where_each_has_its_own_ccc(
    shards: Path, tmp_path: Path, batch: dict, num_ranks: int
):
    run = read_run(config_for(tmp_path, shards, loss={"scope": "micro-batch"}, batch=batch))
    if num_ranks == 3:  # the largest of three parts of four utterances has two
        with check_experiment(run, num_ranks):
            return
    with (
        pytest.raises(ConfigError, match="every micro-batch is one utterance, whose CCC does not exist"),
        check_experiment(run, num_ranks),
    ):
        pass
    with check_experiment(read_run(config_for(tmp_path, shards, batch=batch)), num_ranks):
        pass  # the CCC of the global batch exists


@pytest.mark.parametrize("split", ["Train", "Development"])
def test_labels_that_never_vary_are_refused(tmp_path: Path, split: str):
    shards = build(tmp_path, lambda own, number: (0.5 if own == split else VARIED[number],) * 3)
    with (
        pytest.raises(ConfigError, match=rf"every utterance of \['{split}'\] has the same label of .*'valence'"),
        check_experiment(read_run(config_for(tmp_path, shards)), 1),
    ):
        pass


def test_target_that_never_varies_is_named_and_refused_where_it_alone_is_weighted(tmp_path: Path, capsys):
    shards = build(tmp_path, lambda _, number: (VARIED[number], 0.25, VARIED[number]))
    path = config_for(tmp_path, shards)
    assert run_main(command.main, ["--config", str(path), "--check"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert lines == [
        f"warning: every label of 'valence' in {split} is 0.25 (on 0..1): its CCC is 0 whatever is predicted"
        for split in ("Train", "Development")
    ]
    path = config_for(tmp_path, shards, loss={"target_weights": [0.0, 1.0, 0.0]})
    assert run_main(command.main, ["--config", str(path), "--check"]) == 2
    assert "has the same label of ['valence']" in capsys.readouterr().err


def test_epoch_in_which_no_weight_moves_is_named(shards: Path, tmp_path: Path, capfd):
    train_plainly(config_for(tmp_path, shards, loss={"target_weights": [0.0] * 3}, train={"epochs": 2}))
    warned = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: the gradient of every")]
    assert len(warned) == 2
    train_plainly(config_for(tmp_path / "b", shards, train={"epochs": 1}))
    assert "warning: the gradient" not in capfd.readouterr().err
