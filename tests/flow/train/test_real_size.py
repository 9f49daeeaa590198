"""A student of HuBERT-large's real size: loaded as a user's folder, trained on two ranks, and its memory foreseen."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import run_main
from ccts_dist.model import build_model
from launch import train as command
from tests.helpers.models.large_student import build_seconds, save_large_student
from tests.helpers.processes.launching import launcher
from tests.helpers.processes.small_runs import read_history, write_run
from tests.helpers.processes.watching import Watched, watch

pytestmark = pytest.mark.long

NEEDED_GB = 16.0
"""Of free memory: two ranks of HuBERT-large in fp32 with Adam."""

ZERO_3 = {
    "stage": 3,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 20_000_000,
    "stage3_max_live_parameters": 100_000_000,
    "stage3_max_reuse_distance": 100_000_000,
    "stage3_gather_16bit_weights_on_model_save": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    save_large_student(folder / "hubert-large")
    build_seconds(folder, num_train=4, num_valid=2, shortest_s=0.6, longest_s=0.9)
    (folder / "zero3.json").write_text(json.dumps({"zero_optimization": ZERO_3, "zero_allow_untested_optimizer": True}))
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


def run_file(place: Path, name: str, deepspeed: str) -> tuple[Path, Path]:
    output = place / "runs" / name
    config = write_run(
        place / f"{name}.toml", place / "shards", output,
        data={"test_splits": []},
        model={
            "embedding_dim": 128, "gradient_checkpointing": True, "speech": {"encoder": str(place / "hubert-large")},
        },
        batch={"global_batch_size": 2, "micro_batch_size": 1},
        optim={"name": "adam", "learning_rate": 1e-5},
        # The copy of a checkpoint would lie beside a step's memory, and two steps have none to lie beside.
        train={"epochs": 1, "max_steps": 2, "deepspeed": deepspeed, "comm_timeout_s": 900.0, "async_save": False},
    )  # fmt: skip
    return config, output


def test_real_configuration_meets_what_training_relies_on(place):
    """Layers are never dropped, the mask is used, the input is normalised, weights of the old spelling arrive."""
    speech = SpeechConfig(encoder=str(place / "hubert-large"))
    model = build_model(ModelConfig(speech=speech, gradient_checkpointing=True))
    assert model.speech is not None
    assert sum(parameter.numel() for parameter in model.speech.encoder.parameters()) > 310e6
    assert model.training
    assert model.speech.encoder.training
    assert model.speech.encoder.config.layerdrop == 0.0
    assert json.loads((place / "hubert-large/config.json").read_text())["layerdrop"] == 0.1
    assert model.speech.do_normalize
    # check_loaded has compared every tensor with the file by now; here that it is the old spelling that was read.
    names = set(model.speech.encoder.state_dict())
    assert "encoder.pos_conv_embed.conv.parametrizations.weight.original1" in names
    model.eval()
    audio = torch.randn(1, 16_000)
    with torch.no_grad():
        alone = model(audio, torch.tensor([16_000])).prediction[0]
        pair = torch.zeros(2, 24_000)
        pair[0, :16_000], pair[1] = audio[0], torch.randn(24_000)
        padded = model(pair, torch.tensor([16_000, 24_000])).prediction[0]
        louder = model(3 * audio, torch.tensor([16_000])).prediction[0]
    torch.testing.assert_close(padded, alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(louder, alone, atol=2e-5, rtol=1e-5)


def train(place: Path, name: str, deepspeed: str) -> tuple[Watched, Path]:
    available = psutil.virtual_memory().available / 1e9
    if available < NEEDED_GB:
        pytest.skip(f"{available:.1f} GB of memory are free, and two ranks of HuBERT-large need {NEEDED_GB}")
    config, output = run_file(place, name, deepspeed)
    words = [*launcher(2), "launch/train.py", "--config", str(config)]
    seen = watch(words, output / "history.jsonl", timeout_s=900.0)
    shutil.rmtree(output / "checkpoints")
    return seen, output


def test_two_ranks_train_it_under_zero_2_and_3_within_a_quarter_of_the_estimated_memory(place, capsys):
    losses = {}
    for name, deepspeed in (("ZeRO-2", "ds_configs/zero2.json"), ("ZeRO-3", str(place / "zero3.json"))):
        seen, output = train(place, name, deepspeed)
        summary = json.loads((output / "summary.json").read_text())
        estimated = float(re.findall(r"estimated: ([\d.]+) GB", seen.words)[-1])
        measured = [seen.peak_bytes[rank] / 1e9 for rank in (0, 1)]
        seconds = np.diff(seen.step_times)
        with capsys.disabled():
            print(
                f"\n{name}: most resident memory {measured[0]:.2f} and {measured[1]:.2f} GB (process and libraries "
                f"included), estimated {estimated:.2f} GB, {seconds.mean():.0f} s a step"
            )
        # What a rank states of itself at its end is what the kernel reported; it looks once more than we can.
        assert summary["peak_memory_gb"] == pytest.approx(max(measured), rel=0.05)
        assert estimated == pytest.approx(max(measured), rel=0.25)
        losses[name] = [step["train/loss"] for step in read_history(output)]
        shutil.rmtree(output)
    assert len(losses["ZeRO-2"]) == 2
    assert np.isfinite(losses["ZeRO-2"]).all()
    # Same ranks, same random state; the order of summation differs in the reduced gradient, and Adam makes of the
    # rounding a step of up to the learning rate.
    assert losses["ZeRO-3"][0] == pytest.approx(losses["ZeRO-2"][0], abs=1e-6)
    assert losses["ZeRO-3"][1] == pytest.approx(losses["ZeRO-2"][1], abs=1e-3)


def test_check_states_the_memory_and_refuses_a_gpu_that_is_too_small(place, capfd):
    config, output = run_file(place, "checked", "ds_configs/zero2.json")
    options = ["--config", str(config), "--check", "--ranks", "2", "--gpu-memory"]
    assert run_main(command.main, [*options, "40"]) == 0
    assert "fits 40 GB" in capfd.readouterr().out
    assert run_main(command.main, [*options, "3"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in ("--gpu-memory 3: does not fit", "a rank needs", 'train.precision = "bf16"', "train.deepspeed = "):
        assert word in line
    assert not output.exists(), "--check must not touch the run"
