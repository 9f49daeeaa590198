"""Forecasts that processes make of one model, made by the first of them and read by the others.

Memory and FLOPs of a model follow from its configuration alone. Each start of a training works them out anew, a second
of a core for the smallest model, and most trainings of the tests have one of a few models, or start again and again.
"""

import atexit
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig


def remember_forecasts() -> None:
    """In this process, until it ends, and in those forked from it."""
    from ccts_dist.train.memory import forecast
    from ccts_dist.train.speed import flops

    folder = Path(tempfile.mkdtemp(prefix="ccts-forecasts-"))
    atexit.register(_remove, folder, os.getpid())
    forecast.trace_peak = _remembered(forecast.trace_peak, folder)
    forecast.trace_pass = _remembered(forecast.trace_pass, folder)
    flops.count_flops = _remembered(flops.count_flops, folder)


def _remove(folder: Path, by: int) -> None:
    if os.getpid() == by:
        shutil.rmtree(folder, ignore_errors=True)


def _remembered(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    def read_or_work_out(*args: Any, **named: Any) -> Any:
        asked = repr((function.__qualname__, _plain(args), _plain(named)))
        file = folder / hashlib.sha256(asked.encode()).hexdigest()
        with suppress(OSError):
            return pickle.loads(file.read_bytes())
        answer = function(*args, **named)
        with suppress(OSError):
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(pickle.dumps(answer))
            unfinished.replace(file)
        return answer

    return read_or_work_out


def _plain(value: Any) -> Any:
    """Lists of what distinguishes arguments; where it tells equal ones apart, that costs time alone."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return sorted((repr(name), _plain(one)) for name, one in value.items())
    if isinstance(value, PreTrainedConfig):
        return [type(value).__qualname__, _plain(vars(value))]
    if is_dataclass(value) and not isinstance(value, type):
        return [
            type(value).__qualname__,
            *((field.name, _plain(getattr(value, field.name))) for field in fields(value)),
        ]
    return repr(value)
