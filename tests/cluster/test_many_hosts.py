"""The real launcher across hosts: training, a teacher's pass and evaluation are what they are on one host."""

import json
import sys
from typing import Any

import pytest

from ccts_dist.shards import open_shard_set
from ccts_dist.shards.stores.fetch_cache import cached_name
from tests.cluster.hosts import PATIENCE_S
from tests.cluster.many_hosts import launch_without_ssh, wait_well
from tests.cluster.runs import CACHE, largest_difference, write_run_file
from tests.helpers.processes.launching import launch_well, run_forked

pytestmark = pytest.mark.long


def test_two_hosts_by_pdsh_agree_with_two_ranks_on_one_host(undisturbed, material):
    one_host = write_run_file(material, "two-ranks", partitions=2)
    launch_well(2, "launch/train.py", *one_host.args, timeout_s=PATIENCE_S)
    assert largest_difference(undisturbed, one_host) <= 1e-5


def test_each_host_fetches_the_training_shards_of_its_own_streams_alone(undisturbed, hosts, material):
    training = {cached_name(shard): shard.name for shard in open_shard_set(material / "shards").shards_of(("Train",))}
    kept = [{path.name for path in host.path(CACHE).iterdir()} for host in hosts.hosts[:2]]
    first, second = ({name for cached, name in training.items() if cached in names} for names in kept)
    assert first | second == set(training.values())
    assert len(first & second) <= 1, "only the shard on the border of the streams belongs to both"
    assert min(len(first), len(second)) >= len(training) // 2


def test_three_hosts_without_ssh_agree_with_three_ranks_on_one_host(hosts, material):
    one_host, three = (write_run_file(material, name, partitions=3) for name in ("three-ranks", "three-hosts"))
    launch_well(3, "launch/train.py", *one_host.args, timeout_s=PATIENCE_S)
    wait_well(launch_without_ssh(hosts, "launch/train.py", *three.args))
    assert largest_difference(three, one_host) <= 1e-5


def test_teacher_cache_of_two_hosts_is_that_of_one_process_byte_for_byte(hosts, material):
    options = ["--teacher", str(material / "teacher"), "--shards", str(material / "shards"), "--out"]
    alone(["launch/cache_teacher.py", *options, str(material / "alone")])
    two = hosts.first(2)
    wait_well(launch_without_ssh(two, "launch/cache_teacher.py", *options, str(material / "of-hosts")))
    files = {path.name: path.read_bytes() for path in (material / "alone").iterdir() if not path.name.startswith(".")}
    assert "manifest.json" in files
    assert len(files) > 4
    for name, content in files.items():
        assert (material / "of-hosts" / name).read_bytes() == content, name


def test_scores_of_two_hosts_are_those_of_one_process(undisturbed, hosts, material):
    model = undisturbed.output / "best"
    options = ["--model", str(model), "--shards", str(material / "shards"), "--splits", "Test1", "--out"]
    alone(["launch/evaluate.py", *options, str(material / "scores-alone")])
    two = hosts.first(2)
    wait_well(launch_without_ssh(two, "launch/evaluate.py", *options, str(material / "scores-of-hosts")))
    one, of_hosts = (
        json.loads((material / name / "metrics.json").read_text()) for name in ("scores-alone", "scores-of-hosts")
    )
    assert of_hosts["weights"] == one["weights"]
    mine, theirs = (flat(tree["splits"]["Test1"]) for tree in (one, of_hosts))
    assert {name for name, value in mine.items() if isinstance(value, float)} >= {
        "ccc.valence",
        "intervals.mae.valence.0",
    }
    assert theirs.keys() == mine.keys()
    for name, value in mine.items():
        assert theirs[name] == pytest.approx(value, abs=1e-5) if isinstance(value, float) else theirs[name] == value, (
            name
        )


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The values of nested tables and lists by their dotted places."""
    if not isinstance(tree, dict | list):
        return {name.removeprefix("."): tree}
    places = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {place: value for key, inner in places for place, value in flat(inner, f"{name}.{key}").items()}


def alone(command: list[str]) -> None:
    """Run a script as one process, without a launcher."""
    done = run_forked([sys.executable, *command], timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stderr
