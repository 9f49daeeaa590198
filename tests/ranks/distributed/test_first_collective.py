"""Every launched command takes its GPU before its ranks meet; CUDA is pretended."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, write_run
from tests.helpers.ranks.processes import HOST, end_ranks

_COLLECTIVES = ("all_gather_object", "all_reduce", "broadcast_object_list", "broadcast", "barrier")


class Met(BaseException):
    """Ends a command at its first collective."""


def first_collective(command: list[str], num_gpus: int) -> dict[str, Any]:
    """On one rank: the group that a command makes on a host of so many GPUs, and its first collective."""
    seen: dict[str, Any] = {"set": []}
    make_group = dist.init_process_group

    def current() -> str:
        return f"cuda:{seen['set'][-1] if seen['set'] else 0}"

    def make(backend: str | None = None, device_id: torch.device | None = None, **options: Any) -> None:
        seen["group"] = (backend, str(device_id), current())
        make_group("gloo", **options)

    def meet(name: str) -> Callable[..., None]:
        def collective(*args: Any, **_: Any) -> None:
            device = args[0].device.type if isinstance(args[0], torch.Tensor) else "cpu"
            seen["first"] = (name, device, current(), "group" in seen)
            raise Met

        return collective

    pretended = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: num_gpus,
        "torch.cuda.current_device": lambda: seen["set"][-1] if seen["set"] else 0,
        "torch.cuda.set_device": lambda device: seen["set"].append(torch.device(device).index),
        "torch.cuda.get_device_properties": lambda _: SimpleNamespace(uuid="GPU-of-both"),
        "torch.distributed.init_process_group": make,
        "os._exit": sys.exit,
        "atexit._run_exitfuncs": lambda: None,
        "ccts_dist.errors._SPEAK_S": 0.0,
        **{f"torch.distributed.{name}": meet(name) for name in _COLLECTIVES},
    }
    patches = [mock.patch(name, value) for name, value in pretended.items()]
    with mock.patch.object(sys, "argv", command):
        for patch in patches:
            patch.start()
        try:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        except Met:
            pass
        except SystemExit as left:
            seen["left"] = left.code
        finally:
            for patch in patches:
                patch.stop()
    return seen


def try_commands(commands: list[tuple[list[str], int]], ports: list[int], folder: Path) -> None:
    """On one rank: each command in a group of its own."""
    found = []
    for (command, num_gpus), port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        found.append(first_collective(command, num_gpus))
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By command, what was seen on each of two ranks."""
    folder = tmp_path_factory.mktemp("first")
    shards = build_two_kinds(folder, num_train=8, num_valid=4).root
    config = write_run(folder / "run.toml", Path(shards), folder / "run")
    on_shards = ("--shards", str(shards))
    commands = {
        "train": ["launch/train.py", "--config", str(config)],
        "evaluate": ["launch/evaluate.py", "--model", "m", *on_shards, "--splits", "Test1", "--out", str(folder / "e")],
        "cache_teacher": ["launch/cache_teacher.py", "--teacher", "t", *on_shards, "--out", str(folder / "c")],
        "probe": [
            *("launch/probe.py", "--model", "m", *on_shards, "--train", "Train", "--valid", "Development"),
            *("--test", "Test1", "--out", str(folder / "p")),
        ],
        "register": ["launch/register.py", "--promote", "--name", "n", *on_shards, "--splits", "Test1"],
    }
    tried = [(command, 2) for command in commands.values()] + [(commands["train"], 1)]
    stores = [TCPStore(HOST, 0, is_master=True, wait_for_workers=False) for _ in tried]
    codes, words = end_ranks(
        try_commands, 2, tried, [store.port for store in stores], folder, place=folder, grouped=False
    )
    assert codes == [0, 0], words
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return dict(zip([*commands, "train on one GPU"], map(list, zip(*ranks, strict=True)), strict=True))


@pytest.mark.parametrize("command", ["train", "evaluate", "cache_teacher", "probe", "register"])
def test_gpu_of_a_rank_is_current_and_given_to_the_group_before_the_first_collective(found, command):
    for rank, seen in enumerate(found[command]):
        own = f"cuda:{rank}"
        assert seen["group"] == ["cpu:gloo,cuda:nccl", own, own]
        name, device, current, has_group = seen["first"]
        assert (device, current, has_group) == ("cpu", own, True), f"{name} of {command}"


def test_two_ranks_on_a_host_of_one_gpu_are_refused_before_any_group(found):
    for seen in found["train on one GPU"]:
        assert "group" not in seen
        assert seen["left"] == 2
