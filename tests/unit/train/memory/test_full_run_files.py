"""The shipped run files of HuBERT-large fit the GPUs that they are for, at its real size, without recomputing."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import HubertConfig

from ccts_dist.config import RunConfig, read_run
from ccts_dist.model.emotion import EncoderConfigs, rebuild_model
from ccts_dist.train.memory.activations import BatchShape, trace_peak
from ccts_dist.train.memory.estimate import estimate_memory
from ccts_dist.train.memory.parts import Activations
from ccts_dist.train.zero.ds_config import read_ds_config
from ccts_dist.train.zero.partitioning import read_partitioning, sizes_of
from tests.helpers.models.large_student import LARGE

LONGEST_S = 11.0
"""Of MSP-Podcast."""

STUDENTS = sorted(path for path in Path("launch/runs/full").glob("*.toml") if path.stem != "teacher")
ENCODERS = EncoderConfigs(speech=HubertConfig(**LARGE | {"layerdrop": 0.0}))  # as the model has it when it is loaded


def peak_bytes(run: RunConfig, num_ranks: int) -> int:
    with torch.device("meta"):
        sizes = sizes_of(rebuild_model(run.model, ENCODERS))
    assert sizes.trained > 300_000_000
    rows = min(run.batch.micro_batch_size, run.batch.global_batch_size // num_ranks)
    return estimate_memory(
        sizes,
        read_partitioning(read_ds_config(Path(run.train.deepspeed))),
        run.optim,
        precision=run.train.precision,
        num_ranks=num_ranks,
        num_micro_batches=run.batch.gradient_accumulation_steps(num_ranks),
        activations=Activations(training=rows * activations_of_a_row(), scoring=0, shape=""),
        on_gpu=True,
        async_save=run.train.async_save,
    ).peak()[1]


@cache
def activations_of_a_row() -> int:
    """They grow with the rows (``test_activations``), and a trace of 24 layers takes seconds."""
    shape = BatchShape(rows=16, samples=int(LONGEST_S * 16_000))
    peak = trace_peak(read_run(STUDENTS[0]).model, ENCODERS, shape, precision="bf16", training=True, on_gpu=True)
    assert peak is not None
    return -(-peak // shape.rows)


def test_there_is_a_file_of_each_student_for_each_gpu():
    assert sorted(path.stem for path in STUDENTS) == ["cts", "cts-80gb", "speech", "speech-80gb", "ts", "ts-80gb"]


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_student_fits_with_one_micro_batch_and_nothing_recomputed(path):
    run = read_run(path)
    num_ranks, gpu_bytes = (4, 80e9) if path.stem.endswith("-80gb") else (8, 40e9)
    assert run.model == read_run(STUDENTS[0]).model
    assert not run.model.gradient_checkpointing
    assert run.batch.gradient_accumulation_steps(num_ranks) == 1
    assert 0.4 * gpu_bytes < peak_bytes(run, num_ranks) < gpu_bytes


@pytest.mark.parametrize("name", ["cts", "speech", "ts"])
def test_both_files_of_a_student_differ_in_the_micro_batch_alone(name):
    one, other = (read_run(Path(f"launch/runs/full/{name}{suffix}.toml")) for suffix in ("", "-80gb"))
    assert one.batch.global_batch_size == other.batch.global_batch_size
    assert (one.model, one.optim, one.train, one.data, one.distill) == (
        other.model, other.optim, other.train, other.data, other.distill,
    )  # fmt: skip
