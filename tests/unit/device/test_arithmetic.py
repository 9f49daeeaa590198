"""What float32 means: the switches of TF32 as every pass sees them. A CPU has them as a GPU does, and minds none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ccts_dist import distributed
from ccts_dist.config import FilterbankConfig
from ccts_dist.device.arithmetic import exact_float32, tf32, tf32_is_on
from ccts_dist.distributed import Ranks, named_device, take_device
from ccts_dist.inference.predictor import load_student
from ccts_dist.model import load_model
from ccts_dist.model.precision import WideLinear
from ccts_dist.model.speech.feature_encoder import MaskedGroupNorm
from ccts_dist.model.speech.filterbank import Filterbank
from ccts_dist.probe.encoders import FrozenEncoders
from ccts_dist.scoring.evaluator import Evaluator
from ccts_dist.teacher.ensemble import load_ensemble
from ccts_dist.teacher.forward import shard_batches, teacher_outputs
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher

PRODUCTS = tuple(f"aten.{name}." for name in ("mm", "addmm", "bmm", "matmul", "linear", "convolution", "conv1d"))


class Seen(TorchDispatchMode):
    """Whether TF32 was on in each matrix product and convolution, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.flags: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(PRODUCTS):
            self.flags.append(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


def products_of(module: nn.Module, *inputs: Tensor) -> tuple[list[bool], list[Tensor]]:
    """The switches that a forward and a backward pass see in a block of TF32, and the gradients."""
    with tf32(), Seen() as seen:
        output = module(*inputs)
        if output.requires_grad:
            output.square().sum().backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for parameter in module.parameters():
        parameter.grad = None
    return seen.flags, gradients


def test_head_norm_and_filter_bank_are_exact_where_all_else_is_in_tf32():
    torch.manual_seed(0)
    features = torch.randn(3, 5, requires_grad=True)
    assert products_of(nn.Linear(5, 2), features)[0] == [True, True, True]
    assert products_of(WideLinear(5, 2), features)[0] == [False, False, False]
    hidden = torch.randn(2, 4, 9, requires_grad=True)
    flags, _ = products_of(MaskedGroupNorm(nn.GroupNorm(4, 4)), hidden, torch.tensor([9, 6]))
    assert len(flags) >= 4
    assert not any(flags)
    flags, _ = products_of(Filterbank(FilterbankConfig(channels=())), torch.randn(2, 4_000))
    assert flags == [False]
    flags, _ = products_of(Filterbank(FilterbankConfig()), torch.randn(2, 4_000))
    assert flags[0] is False
    assert all(flags[1:]), "convolutions above the energies are in TF32"


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5)])
def test_exact_layer_within_tf32_computes_what_it_does_outside(shape: tuple[int, ...]):
    torch.manual_seed(0)
    layer = WideLinear(5, 2)
    inside, outside = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    inside.requires_grad_()
    outside.requires_grad_()
    _, gradients = products_of(layer, inside)
    layer(outside).square().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    torch.testing.assert_close([inside.grad, *gradients], [outside.grad, *expected])


def test_blocks_within_each_other_put_back_what_was():
    with tf32():
        with exact_float32():
            assert not tf32_is_on()
            with exact_float32():
                assert not tf32_is_on()
            assert not tf32_is_on()
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32


def test_exact_block_of_one_thread_outlasts_that_of_another():
    """Threads that serve share one switch: the first to end must not turn TF32 on under the other."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    both_within, first_has_left = Barrier(2), Barrier(2)
    found: list[bool] = []

    def first() -> None:
        with exact_float32():
            both_within.wait()
        first_has_left.wait()

    def second() -> None:
        with exact_float32():
            both_within.wait()
            first_has_left.wait()
            found.append(tf32_is_on())

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False]
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("take", [lambda: take_device(Ranks()), lambda: named_device(None)], ids=["rank", "command"])
def test_taking_a_gpu_turns_off_the_attention_that_makes_a_plan_for_each_shape(monkeypatch, take):
    monkeypatch.setattr(distributed, "best_device", lambda ranks: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    torch.backends.cuda.enable_cudnn_sdp(True)
    take()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_every_pass_without_gradient_is_exact_whatever_stands_outside(tmp_path: Path):
    shard_set = build_small_shards(tmp_path, {"Train": 3, "Test1": 4})
    folder = save_small_teacher(tmp_path / "teacher", with_text=False)
    loaded, rows, cpu = load_model(folder), shard_set.rows(next(iter(shard_set.shards_of(("Train",)))).name), "cpu"
    student = load_student(folder, device=cpu)
    encoders = FrozenEncoders(loaded.model, None)
    ((_, (batch,)),) = shard_batches(shard_set, rows, [None], 60.0)
    cases: dict[str, Callable[[], object]] = {
        "predict": lambda: student.predict([np.ones(4_000, np.float32)]),
        "probe": lambda: encoders.vectors(batch),
        "teacher": lambda: teacher_outputs(
            load_ensemble([folder], torch.device(cpu)),
            shard_set,
            rows,
            device=torch.device(cpu),
            batch_seconds=60.0,
            advance=lambda _: None,
        ),
        "evaluate": lambda: Evaluator(folder, tmp_path / "shards", ranks=Ranks(), workers=0).split("Test1").scores,
    }
    for name, run in cases.items():
        with tf32(), Seen() as seen:
            run()
        assert len(seen.flags) > 3, name
        assert not any(seen.flags), name
