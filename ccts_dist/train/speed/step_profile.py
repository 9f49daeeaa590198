"""A profile of some steps of a training: the trace of torch.profiler, and a table of the step by part.

``timed`` marks the parts; outside of the steps that are profiled it does nothing.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ccts_dist.errors import ConfigError, OutputError
from ccts_dist.progress import log
from ccts_dist.train.resilience.storage_errors import writing

TRACE, TABLE = "trace.json.gz", "steps.md"

DATA_WAIT, FORWARD, LOSS, SUMS = "data wait", "forward", "loss", "all-reduce of the loss's sums"
BACKWARD, OPTIMIZER, REST = "backward", "optimizer step", "figures, tracking and the rest"
PARTS = (DATA_WAIT, FORWARD, LOSS, SUMS, BACKWARD, OPTIMIZER, REST)
"""In the order of the table. ``REST`` is a whole step without what the others take of it."""

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of a step."""

    part: str
    parent: int | None
    """Number of the span that it lies in, if any."""

    host_s: float
    device_s: float | None = None
    """Between its first and last kernel on the device's queue; None without a GPU."""


def check_profiled_steps(steps: Sequence[int], total_steps: int) -> None:
    """Raises: ConfigError, for steps to profile that the run does not have."""
    if steps and steps[-1] > total_steps:
        raise ConfigError(
            f"train.profile = {list(steps)}: training has {total_steps} steps in all, and step {steps[-1]} is beyond "
            "them. Lower it, or train longer."
        )


def own_seconds(spans: Sequence[Span]) -> dict[str, tuple[float, float | None, int]]:
    """For each part its seconds on the host and on the device without those of the spans within, and its calls."""
    host = [span.host_s for span in spans]
    device = [span.device_s for span in spans]
    for span in spans:
        if span.parent is not None:
            host[span.parent] -= span.host_s
            own, outer = span.device_s, device[span.parent]
            device[span.parent] = None if own is None or outer is None else outer - own
    found: dict[str, tuple[float, float | None, int]] = {}
    for span, on_host, on_device in zip(spans, host, device, strict=True):
        before, before_device, calls = found.get(span.part, (0.0, 0.0, 0))
        both = None if on_device is None or before_device is None else before_device + on_device
        found[span.part] = before + on_host, both, calls + 1
    return found


def step_table(spans: Sequence[Span], num_steps: int) -> list[str]:
    """The table of the mean step by part, in Markdown."""
    parts = own_seconds(spans)
    total = sum(host for host, _, _ in parts.values())
    on_gpu = any(device is not None for _, device, _ in parts.values())
    heads = ["part", "calls a step", "host, ms", "share", *(["GPU queue, ms"] if on_gpu else [])]
    rows = [f"| {' | '.join(heads)} |", f"|:--{'|--:' * (len(heads) - 1)}|"]
    for part in PARTS:
        host, device, calls = parts.get(part, (0.0, None, 0))
        cells = [part, f"{calls / num_steps:.4g}", f"{1e3 * host / num_steps:.2f}", f"{host / total:.1%}"]
        if on_gpu:
            cells.append("" if device is None else f"{1e3 * device / num_steps:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    whole = ["**step**", "1", f"{1e3 * total / num_steps:.2f}", "100.0%", *([""] if on_gpu else [])]
    return [*rows, f"| {' | '.join(whole)} |"]


class _Recorder:
    """Spans under way and done, with CUDA events around them where there is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._has_events = device.type == "cuda"
        self._done: list[tuple[str, int | None, float, tuple[torch.cuda.Event, torch.cuda.Event] | None]] = []
        self._open: list[int] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        parent = self._open[-1] if self._open else None
        number = len(self._done)
        self._done.append((name, parent, 0.0, None))
        self._open.append(number)
        first, began = self._event(), time.perf_counter()
        try:
            with record_function(name):
                yield
        finally:
            last, took = self._event(), time.perf_counter() - began
            events = None if first is None or last is None else (first, last)
            self._done[number] = (name, parent, took, events)
            self._open.pop()

    def spans(self) -> list[Span]:
        """All spans; the device has finished them."""
        return [
            Span(
                part=name,
                parent=parent,
                host_s=took,
                device_s=None if events is None else events[0].elapsed_time(events[1]) / 1e3,
            )
            for name, parent, took, events in self._done
        ]

    def _event(self) -> torch.cuda.Event | None:
        if not self._has_events:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


_recorder: _Recorder | None = None
"""Recorder of the step that is profiled, if one is."""


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Mark a part of the step, as a context or a decorator."""
    if _recorder is None:
        yield
        return
    with _recorder.part(part):
        yield


class StepProfiler:
    """Profiles the steps that a run file names, and writes what it found into the run folder.

    A run that goes on within them profiles those that are left; one that goes on beyond them, none. What cannot be
    written is reported and lost: training goes on.

    Args:
        steps: first and last, counted from 1; empty for none, and on every rank but the first.
        folder: of the run.
        device: this rank's.
        title: of the table.
    """

    def __init__(self, steps: Sequence[int], folder: Path, device: torch.device, *, title: str) -> None:
        self._steps = range(steps[0], steps[-1] + 1) if steps else range(0)
        self._folder, self._device, self._title = folder / "profile", device, title
        self._profile: profile | None = None
        self._whole: ExitStack | None = None
        self._first = 0

    def begin(self, step: int) -> None:
        """To be called before a step, counted from 1."""
        global _recorder
        if step not in self._steps:
            return
        if self._profile is None:
            self._first = step
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.synchronize(self._device)
            self._profile = profile(activities=activities, acc_events=True)
            _recorder = _Recorder(self._device)
            self._profile.start()
        assert _recorder is not None
        self._whole = ExitStack()
        self._whole.enter_context(_recorder.part(REST))

    def end(self, step: int) -> None:
        """To be called after a step, before any validation or checkpoint."""
        global _recorder
        if self._whole is None:
            return
        self._whole.close()
        self._whole = None
        if step != self._steps[-1]:
            return
        assert self._profile is not None
        assert _recorder is not None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profile.stop()
        recorder, done = _recorder, self._profile
        _recorder = self._profile = None
        try:
            self._write(done, recorder.spans(), step)
        except OutputError as error:
            log(f"the profile of steps {self._first} to {step} is lost: {error}")

    def close(self) -> None:
        """Stop; steps that were not all taken are not written."""
        global _recorder
        if self._profile is not None:
            if self._whole is not None:
                self._whole.close()
            self._profile.stop()
            log(f"training ended before step {self._steps[-1]}: no profile is written")
        _recorder = self._profile = self._whole = None

    def _write(self, done: profile, spans: Sequence[Span], last: int) -> None:
        num_steps = last - self._first + 1
        averages = done.key_averages()
        lines = [f"# {self._title}, steps {self._first} to {last}", "", *step_table(spans, num_steps), ""]
        sort_by = "self_cpu_time_total"
        if self._device.type == "cuda":
            sort_by = "self_device_time_total"
            wall = sum(span.host_s for span in spans if span.parent is None)
            busy = sum(
                one.self_device_time_total
                for one in averages
                if one.device_type == DeviceType.CUDA and not one.is_user_annotation
            )
            waits = sum(one.count for one in averages if one.key in _WAITS)
            lines += [
                f"Kernels ran for {busy / 1e6 / wall:.1%} of the time; the host waited for the GPU "
                f"{waits / num_steps:.4g} times a step.",
                "",
            ]
        table = averages.table(sort_by=sort_by, row_limit=20, max_name_column_width=60)
        lines += ["The profiler itself slows each operator a little. Its trace is for https://ui.perfetto.dev", ""]
        lines += ["```", table.strip(), "```", ""]
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            done.export_chrome_trace(str(self._folder / TRACE))
            (self._folder / TABLE).write_text("\n".join(lines), encoding="utf-8")
        log(f"profile of steps {self._first} to {last}: {self._folder / TABLE}, {TRACE}")
