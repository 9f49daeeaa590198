"""Part F: HuBERT-large's throughput, share of the GPU's peak, memory against the forecast, and where time goes."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ccts_dist.batches import Batch
from ccts_dist.train.experiment import Experiment
from ccts_dist.train.memory.forecast import Forecast
from ccts_dist.train.memory.parts import Estimate, Phase
from tests.gpu.large import first_batch, make_seconds, size_for, step, twice_as_long, varied, with_rows, write_large_run
from tests.gpu.material import ROOT
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import Training, training

VARIANTS: dict[str, dict[str, Any]] = {
    "zero2": {},
    **{stage: {"stage": stage} for stage in ("zero2_gpu", "zero1") if (ROOT / "ds_configs" / f"{stage}.json").exists()},
    "zero2 recomputed": {"recomputed": True},
    "zero2 mean": {"pooling": "mean"},
}
MATRIX = 8192
FORWARD_AND_BACKWARD = 3
"""Times the operations of a forward pass."""

MOST_S = 15.0
"""Of a run of varied lengths: one that builds a plan for each takes a second a step."""

STEP_PHASES: tuple[Phase, ...] = ("start", "forward and backward", "optimizer step")
"""Nothing is saved or scored here."""

NO_TENSORS = ("CUDA, NCCL", "CUDA context", "NCCL")
"""Parts of a forecast that torch's allocator does not hold."""

NEAR = 0.25
"""How far the forecast of memory may be off."""


def speed(outcome: Outcome, situation: Situation) -> None:
    """The variants in order of value; everything but throughput and memory with the first one alone."""
    peak = 0.0
    with outcome.item("matrix product in bf16") as figures:
        situation.needs_gpu()
        peak = figures["TFLOP/s"] = _matrix_tflops()
        outcome.show("peak TFLOP/s", peak)
    make_seconds(situation)
    for name, changes in VARIANTS.items():
        forecast: list[int] = []
        config = write_large_run(situation, name.replace(" ", "-"), **changes)
        with (
            outcome.item(f"{name}: everything"),
            training(config, before_engine=lambda s, f=forecast: _foresee(outcome, situation, s, f)) as ready,
        ):
            batch = first_batch(ready)
            held = _throughput(outcome, situation, ready, batch, name, peak)
            if forecast:
                _against_forecast(outcome, situation, name, held, forecast[0])
            if name == "zero2":
                _where_time_goes(outcome, situation, ready, batch)
                _lengths(outcome, situation, ready, batch)
                _timer(outcome, situation, ready, batch)


def _matrix_tflops() -> float:
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * MATRIX**3 / (time.perf_counter() - began) / 1e12


def _foresee(outcome: Outcome, situation: Situation, session: Experiment, found: list[int]) -> None:
    """The forecast of tensors, which must be asked before the engine takes the model apart."""
    with outcome.item("forecast of memory") as figures:
        found.append(tensor_bytes(Forecast(session, on_gpu=situation.on_gpu).estimate))
        figures["GB of tensors"] = found[0] / 1e9
    if situation.on_gpu:
        torch.cuda.reset_peak_memory_stats()


def tensor_bytes(estimate: Estimate) -> int:
    """Most that tensors of the device that trains hold during steps, as foreseen; without margins."""
    there = [part for part in estimate.parts if part.what not in NO_TENSORS and not (part.on_host and estimate.on_gpu)]
    return max(sum(part.size_bytes for part in there if phase in part.phases) for phase in STEP_PHASES)


def _throughput(outcome: Outcome, situation: Situation, ready: Training, batch: Batch, name: str, peak: float) -> float:
    """The rising sizes of the first variant, the largest of the others; GB of tensors with the largest."""
    size, held = size_for(situation), 0.0
    batches = {f"{rows} x {size.seconds} s": with_rows(batch, rows) for rows in size.rows}
    half = len(batch.keys) // 4
    batches[f"{half} x {2 * size.seconds} s"] = twice_as_long(batch, half)
    if name != "zero2":
        batches = {key: one for key, one in batches.items() if len(one.keys) == size.rows[-1]}
    for key, one in batches.items():
        with outcome.item(f"{name}: {key}") as figures:
            if situation.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = _time(situation, ready, [one] * size.steps, warm_up=size.warm_up)
            figures["ms a step"] = 1000 * seconds / size.steps
            figures["utterances/s"] = len(one.keys) * size.steps / seconds
            figures["audio s/s"] = float(one.num_samples.sum()) / 16_000 * size.steps / seconds
            flops = FORWARD_AND_BACKWARD * _forward_flops(ready, one)
            figures["TFLOP/s"] = flops * size.steps / seconds / 1e12
            figures["of peak"] = figures["TFLOP/s"] / peak if peak else None
            if situation.on_gpu:
                figures["allocated GB"] = torch.cuda.max_memory_allocated() / 1e9
                figures["reserved GB"] = torch.cuda.max_memory_reserved() / 1e9
                held = figures["allocated GB"] if len(one.keys) == size.rows[-1] else held
            share = f", {figures['of peak']:.0%}" if peak else ""
            outcome.show(f"{name} {key}", f"{figures['utterances/s']:.0f}/s{share}")
    return held


def _time(situation: Situation, ready: Training, batches: Sequence[Batch], *, warm_up: int) -> float:
    for number in range(warm_up):
        step(ready, batches[0], number)
    situation.synchronize()
    began = time.perf_counter()
    for number, batch in enumerate(batches):
        loss = step(ready, batch, warm_up + number)
        check(loss == loss, "the loss is not a number, and what was timed no training")
    situation.synchronize()
    return time.perf_counter() - began


def _forward_flops(ready: Training, batch: Batch) -> float:
    """Of the products and convolutions that torch counts; a GRU in cuDNN is not among them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ready.engine.forward(batch.to(ready.engine.device))
    return float(counter.get_total_flops())


def _against_forecast(outcome: Outcome, situation: Situation, name: str, held: float, forecast: int) -> None:
    """The largest micro-batch, which the run file names: what tensors held."""
    with outcome.item(f"{name}: memory against the forecast") as figures:
        situation.needs_gpu()
        foreseen = forecast / 1e9
        figures |= {"tensors GB": held, "foreseen GB": foreseen}
        outcome.show(f"{name} GB of foreseen", f"{held:.1f} of {foreseen:.1f}")
        check(abs(foreseen / held - 1) <= NEAR, f"foreseen {foreseen:.2f} GB, held {held:.2f} GB")


def _where_time_goes(outcome: Outcome, situation: Situation, ready: Training, batch: Batch) -> None:
    """Three steps in the profiler, then three with every wait of the host counted."""
    one = with_rows(batch, max(1, len(batch.keys) // 2))
    with outcome.item("profile of three steps") as figures:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if situation.on_gpu else [])]
        began = time.perf_counter()
        with profile(activities=kinds) as trace:
            for number in range(3):
                step(ready, one, number)
            situation.synchronize()
        wall_us = 1e6 * (time.perf_counter() - began)
        events = trace.key_averages()
        used = "self_device_time_total" if situation.on_gpu else "self_cpu_time_total"
        slowest = sorted(events, key=lambda event: -getattr(event, used))
        if situation.on_gpu:
            slowest = [event for event in slowest if event.device_type == torch.autograd.DeviceType.CUDA]
        figures["busy"] = sum(getattr(event, used) for event in slowest) / wall_us
        figures["slowest"] = {event.key[:90]: round(getattr(event, used) / 3000, 3) for event in slowest[:15]}
        names = [event.key for event in slowest]
        figures["attention"] = [n[:90] for n in names if any(w in n.lower() for w in ("fmha", "attention", "flash"))][
            :4
        ]
        figures["recurrent"] = [n[:90] for n in names if any(w in n.lower() for w in ("rnn", "gru", "persist"))][:4]
        check(bool(slowest), "the profiler saw no kernel")
        if situation.on_gpu:
            outcome.show("GPU busy", f"{figures['busy']:.0%}")
    with outcome.item("host waits of a step") as figures:
        situation.needs_gpu()
        figures |= _host_waits(ready, one)
        outcome.show("host waits", figures["a step"])


def _host_waits(ready: Training, batch: Batch) -> dict[str, Any]:
    """As CUDA's own debug mode counts them: what waits for a stream, not the launch of a kernel into a full queue."""
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for number in range(3):
                step(ready, batch, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in reported if "synchroniz" in str(one.message)]
    places: dict[str, int] = {}
    for one in waits:
        place = f"{'/'.join(one.filename.split('/')[-3:])}:{one.lineno}"
        places[place] = places.get(place, 0) + 1
    return {"a step": round(len(waits) / 3, 1), "places": dict(sorted(places.items(), key=lambda pair: -pair[1])[:25])}


def _lengths(outcome: Outcome, situation: Situation, ready: Training, batch: Batch) -> None:
    """Varied lengths, padded exactly and rounded up, with cuDNN's attention and without: it builds a plan per shape."""
    rows = max(2, len(batch.keys) // 4)
    long = twice_as_long(batch, rows)
    count = 4 if situation.small else 40
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    for seed, (padded, by_cudnn) in enumerate(
        (("rounded", False), ("exact", False), ("rounded", True), ("exact", True))
    ):
        name = f"lengths {padded}, cuDNN attention {'on' if by_cudnn else 'off'}"
        with outcome.item(name) as figures:
            if by_cudnn:
                situation.needs_gpu()
            torch.backends.cuda.enable_cudnn_sdp(by_cudnn)
            began, taken = time.perf_counter(), 0
            slowest = 0.0
            for one in varied(long, count, seed=seed, multiple_s=0.5 if padded == "rounded" else 0.0):
                start = time.perf_counter()
                step(ready, one, taken)
                slowest, taken = max(slowest, time.perf_counter() - start), taken + 1
                if time.perf_counter() - began > MOST_S:
                    break
            situation.synchronize()
            seconds = time.perf_counter() - began
            figures |= {"steps": taken, "ms a step": 1000 * seconds / taken, "slowest ms": 1000 * slowest}
            outcome.show(name, f"{figures['ms a step']:.0f} ms")
    torch.backends.cuda.enable_cudnn_sdp(allowed)


def _timer(outcome: Outcome, situation: Situation, ready: Training, batch: Batch) -> None:
    """DeepSpeed's throughput timer, which waits for the device, as configured and the other way about."""
    config = ready.engine._engine.tput_timer.config
    usual, size = config.enabled, size_for(situation)
    for enabled in (False, True):
        with outcome.item(f"throughput timer {'on' if enabled else 'off'}") as figures:
            config.enabled = enabled
            batches = [with_rows(batch, size.rows[0])] * size.steps
            figures["ms a step"] = 1000 * _time(situation, ready, batches, warm_up=1) / size.steps
            figures["as configured"] = enabled == usual
    config.enabled = usual


if __name__ == "__main__":
    run_part("F", speed)
