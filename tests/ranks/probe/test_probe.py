"""The command that probes all layers, as it is started: the same answer on one rank and on two."""

import json

import pytest

from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.processes.launching import launch, launch_well

pytestmark = pytest.mark.long

SPLITS = ("--train", "Train", "--valid", "Development", "--test", "Test1")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    build_small_shards(folder / "s", {"Train": 41, "Development": 13, "Test1": 15})
    return folder / "s" / "shards", save_small_teacher(folder / "teacher")


def test_same_table_on_one_rank_and_on_two(places, tmp_path):
    shards, teacher = places
    trees = []
    for num_ranks, micro in ((1, "16"), (2, "3")):
        out = tmp_path / str(num_ranks)
        args = ("--model", str(teacher), "--shards", str(shards), *SPLITS, "--out", str(out), "--batch-size", micro)
        printed = launch_well(num_ranks, "launch/probe.py", *args)
        assert printed.count("| speech  |     0 |") == 1
        trees.append(json.loads((out / "layers.json").read_text()))
    one, two = (tree.pop("scores") for tree in trees)
    assert trees[0] == trees[1]
    assert len(one) == 2 * 3 * 3
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_mistake_is_one_line_and_exit_code_2_on_two_ranks(places, tmp_path):
    shards, teacher = places
    args = ("--model", str(teacher), "--shards", str(shards), "--train", "Train", "--valid", "Train", "--test", "Test1")
    done = launch(2, "launch/probe.py", *args, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "split 'Train' is in --train and in --valid" in errors[0]
