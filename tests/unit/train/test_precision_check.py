"""bfloat16 is refused on GPUs that would emulate it."""

from pathlib import Path

import pytest
import torch

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError
from ccts_dist.train.run import check_precision
from tests.helpers.processes.small_runs import write_run


@pytest.mark.parametrize(("precision", "has_bf16"), [("bf16", True), ("fp32", False)])
def test_precision_that_the_gpu_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision, has_bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bf16)
    config = write_run(tmp_path / "run.toml", tmp_path, tmp_path / "run", train={"precision": precision})
    check_precision(read_run(config, []), torch.device("cuda", 1))


def test_bf16_is_refused_where_it_would_be_emulated_and_taken_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Tesla V100 {device}")
    config = write_run(tmp_path / "run.toml", tmp_path, tmp_path / "run", train={"precision": "bf16"})
    run = read_run(config, [])
    with pytest.raises(ConfigError, match=r'^train.precision = "bf16": Tesla V100 cuda:1 does not compute .*"fp32"\.$'):
        check_precision(run, torch.device("cuda", 1))
    check_precision(run, torch.device("cpu"))
