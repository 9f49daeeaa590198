"""A run in a few sentences."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.train.description import describe_run
from ccts_dist.train.experiment import Experiment, open_experiment
from tests.helpers.processes.small_runs import build_two_kinds, write_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    build_two_kinds(folder, num_train=16, beside=True)
    return folder / "shards"


@pytest.fixture
def opened(shards: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Experiment]:
    model = {"categories": ["calm", "tense"], "targets": request.param}
    run = read_run(write_run(tmp_path / "r.toml", shards, tmp_path / "r", model=model))
    with closing(open_experiment(run, Ranks())) as one:
        yield one


@pytest.mark.parametrize("opened", [["valence"]], indirect=True)
def test_targets_and_categories_are_distinguished(opened: Experiment):
    words = describe_run(opened, {"valence": 0.25}, 0.5)
    assert "It predicts valence, and the categories calm, tense.\n" in words
    assert "| test splits | valence |\n|---|---:|\n| CCC | 0.250 |\n" in words
    assert "Unweighted accuracy of the categories on the test splits: 0.500.\n" in words
    assert "Trained on 16 utterances of two kinds 1 (Train)" in words


@pytest.mark.parametrize("opened", [[]], indirect=True)
def test_categories_alone_have_no_table_of_ccc(opened: Experiment):
    words = describe_run(opened, {}, 0.5)
    assert "It predicts the categories calm, tense.\nUnweighted accuracy of the categories on" in words
    assert "CCC" not in words
    assert "accuracy" not in describe_run(opened)
