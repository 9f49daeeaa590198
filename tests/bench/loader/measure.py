"""One measurement of one system, in a process of its own. Started by ``loader.py``.

    measure.py SYSTEM FOLDER prepare CORPUS     write the corpus in the system's format
    measure.py SYSTEM FOLDER check WORKERS      one epoch: peak memory; another one: is each utterance there once,
                                                sample by sample as in the corpus?
    measure.py SYSTEM FOLDER time WORKERS       one epoch: seconds, CPU seconds, padding

The last line on stdout is the result as JSON.
"""

import importlib
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from material import Corpus, Padded, System

_SAMPLE_S = 0.02


def main() -> None:
    """Do one of the three."""
    name, folder, action, argument = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    system = cast(System, importlib.import_module(f"peers.{name}"))
    result: dict[str, Any] = {}
    if action == "prepare":
        system.prepare(Corpus(Path(argument)), folder)
    elif action == "time":
        result = _time(system, folder, int(argument))
    else:
        with _peak_memory() as result:
            for batch in system.batches(folder, int(argument)):
                _receive(batch)
        result |= _verify(system, folder, int(argument))
    print(json.dumps(result), flush=True)


def _receive(batch: Padded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch as a training step takes it: tensors."""
    audio, num_samples, labels = batch.audio, torch.as_tensor(batch.num_samples), torch.as_tensor(batch.labels)
    assert audio.dtype == labels.dtype == torch.float32
    assert labels.shape == (len(audio), 3)
    assert len(num_samples) == len(batch.keys) == len(audio)
    return audio, num_samples, labels


def _time(system: System, folder: Path, workers: int) -> dict[str, Any]:
    utterances = padded = real = 0
    first = 0.0
    cpu = _cpu_s()
    start = time.perf_counter()
    for batch in system.batches(folder, workers):
        audio, num_samples, _ = _receive(batch)
        if not utterances:
            first = time.perf_counter() - start
        utterances += len(audio)
        padded += audio.numel()
        real += int(num_samples.sum())
    wall = time.perf_counter() - start
    return {
        "utterances": utterances,
        "first_s": first,
        "wall_s": wall,
        "cpu_s": _cpu_s() - cpu,
        "padding": 1 - real / padded,
    }


def _verify(system: System, folder: Path, workers: int) -> dict[str, Any]:
    rows = {row.key: row for row in Corpus(folder.parent / "corpus").rows}
    seen: dict[str, int] = {}
    order, wrong = [], 0
    for batch in system.batches(folder, workers):
        for key, audio, length, labels in zip(batch.keys, *_receive(batch), strict=True):
            whole = (audio[:length] * 32768).to(torch.int16).numpy()
            right = (
                int(length) == rows[key].num_samples
                and zlib.crc32(whole.tobytes()) == rows[key].crc32
                and torch.equal(audio[:length], torch.from_numpy(whole).float() / 32768)
                and not audio[length:].any()
                and torch.allclose(labels, torch.tensor(rows[key].labels), atol=1e-6)
            )
            wrong += not right
            seen[key] = seen.get(key, 0) + 1
            order.append(key)
    return {
        "missing": len(rows) - len(seen),
        "repeated": sum(count - 1 for count in seen.values()),
        "wrong": wrong,
        "order": zlib.crc32("\n".join(order).encode()),
    }


def _processes() -> list[int]:
    """This process and all that come from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat(int(entry))[1])
            except OSError:
                continue  # it has just ended
    own = [os.getpid()]
    for process in own:
        own += [child for child, parent in parents.items() if parent == process]
    return own


def _stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _cpu_s() -> float:
    """User and system seconds of this process, its children, and those that have ended."""
    ticks = 0
    for process in _processes():
        try:
            ticks += sum(map(int, _stat(process)[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def _peak_memory() -> Iterator[dict[str, Any]]:
    """Peak of this process's and its children's own and shared memory, beyond what importing took; no page cache."""
    result: dict[str, Any] = {}
    before, peak, done = _memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_S):
            peak = max(peak, _memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield result
    finally:
        done.set()
        watcher.join()
    result["peak_mb"] = (peak - before) / 1e6


def _memory() -> int:
    """Bytes, each shared page counted once in all."""
    total = 0
    for process in _processes():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total * 1024


if __name__ == "__main__":
    main()
