"""How fast loaders make padded batches of speech: this one and others, on the same audio, against a floor.

    python tests/bench/loader/loader.py                      all systems, 3,000 utterances, 5 repeats: about 20 minutes
    python tests/bench/loader/loader.py --quick              600 utterances, 3 repeats
    python tests/bench/loader/loader.py --peers none         this project's loader and the floor only
    python tests/bench/loader/loader.py --peers lhotse,litdata --json figures.json

Every system reads the same FLAC utterances in its own format, shuffles them, and hands over float32 batches of 16 with
lengths, keys and three labels. Each measurement is an epoch in a fresh process; the systems take turns, and a figure is
the median of the turns. The floor reads, decodes with libsndfile and pads in one loop, sorted by duration; "of the
floor" compares with the floor of the same turn and the same number of workers. Before anything is timed, each system's
epoch is compared with the corpus, sample by sample. README.md beside this file describes how each peer is set up.

Prints a Markdown table. Nothing here passes or fails on a time.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from environments import NotInstalledError, python_of
from material import make_corpus

_HERE = Path(__file__).resolve().parent
_WORKERS = (0, 1)
_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class System:
    """One line of the table."""

    module: str
    """In ``peers``."""

    title: str
    requirements: tuple[str, ...] = ()
    """Beyond this project's environment."""


FLOOR = System("floor", "floor: libsndfile, one loop")
OURS = System("ours", "**ccts_dist**")
OTHER_FLOOR = System("floor_miniaudio", "the same loop, dr_flac")
PEERS = {
    "webdataset": System("webdataset_tars", "webdataset"),
    "lhotse": System("lhotse_shar", "lhotse Shar, bucketed", ("lhotse==1.33.0",)),
    "datasets": System("datasets_arrow", "HF datasets, grouped by length"),
    # It imports torchvision, whose version must fit this project's torch.
    "streaming": System(
        "mosaic_streaming", "MosaicML streaming", ("mosaicml-streaming==0.13.0", "torchvision==0.26.*")
    ),
    "litdata": System("litdata_chunks", "litdata", ("litdata==0.2.76",)),
    "energon": System("energon_tars", "megatron-energon, grouped", ("megatron-energon==7.4.1",)),
}


class FailedError(Exception):
    """A measurement that did not come to an end, and its last words."""


@dataclass(slots=True)
class Entrant:
    """A system that is being measured."""

    system: System
    python: Path
    folder: Path
    turns: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: {workers: [] for workers in _WORKERS})
    peak_mb: dict[int, float] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    def run(self, action: str, argument: str) -> dict[str, Any]:
        """One process of ``measure.py``."""
        command = [str(self.python), str(_HERE / "measure.py"), self.system.module, str(self.folder), action, argument]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_HERE.parents[2]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment)
        except subprocess.TimeoutExpired as error:
            raise FailedError(f"not done after {_TIMEOUT_S} s") from error
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode or not lines:
            words = [line for line in done.stderr.splitlines() if line.strip()]
            raise FailedError((words or [f"exit code {done.returncode}"])[-1].strip()[:200])
        return json.loads(lines[-1])


def main() -> None:
    """Measure and print."""
    options = _options()
    work = options.work / str(options.utterances)
    work.mkdir(parents=True, exist_ok=True)
    lock = open(work / "lock", "wb")  # noqa: SIM115 - held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{work}: another run is using it, and would spoil the times. Wait for it.")
    make_corpus(work / "corpus", options.utterances)
    peers = {"all": list(PEERS), "none": []}.get(options.peers, options.peers.split(","))
    entrants: list[Entrant] = []
    absent: dict[str, str] = {}
    for system in (FLOOR, OURS, OTHER_FLOOR, *(PEERS[name] for name in peers)):
        _say(f"preparing {system.title}")
        try:
            entrants.append(_enter(system, options.envs, work))
        except (NotInstalledError, FailedError) as error:
            absent[system.title] = str(error)
    facts = {"cores": len(os.sched_getaffinity(0)), "utterances": options.utterances, "load": []}
    for turn in range(options.repeats):
        _take_turn(turn, entrants, absent)
        facts["turns"] = turn + 1
        facts["load"].append(round(os.getloadavg()[0], 1))
        if options.json:
            _save(options.json, entrants, absent, facts)
    print(_table(entrants, absent, facts))


def _take_turn(turn: int, entrants: list[Entrant], absent: dict[str, str]) -> None:
    """Measure each system once; one that fails leaves the table, with the reason."""
    # Every other turn backwards, and each begins elsewhere: a slow minute of the machine meets all alike.
    order = entrants[turn % len(entrants) :] + entrants[: turn % len(entrants)]
    for entrant in order if turn % 2 == 0 else order[::-1]:
        try:
            for workers in entrant.turns:
                result = entrant.run("time", str(workers))
                entrant.turns[workers].append(result)
                _say(f"turn {turn + 1}: {entrant.system.title}, {workers} workers: {result}")
        except FailedError as error:
            if entrant.system is FLOOR:
                raise
            absent[entrant.system.title] = str(error)
            entrants.remove(entrant)


def _save(path: Path, entrants: list[Entrant], absent: dict[str, str], facts: dict[str, Any]) -> None:
    figures = {
        one.system.module: {"turns": one.turns, "peak_mb": one.peak_mb, "faults": one.faults} for one in entrants
    }
    path.write_text(json.dumps({"facts": facts, "absent": absent, "systems": figures}, indent=1))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccts_dist" / "bench"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 utterances, 3 repeats")
    parser.add_argument("--peers", default="all", metavar="NAMES", help=f"all, none, or of: {','.join(PEERS)}")
    parser.add_argument("--utterances", type=int, metavar="N", help="default 3000")
    parser.add_argument("--repeats", type=int, metavar="N", help="turns of each system; default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single figure")
    parser.add_argument("--envs", type=Path, default=cache / "envs", metavar="DIR", help="environments of the peers")
    parser.add_argument("--work", type=Path, default=cache / "data", metavar="DIR", help="the audio, in every format")
    options = parser.parse_args()
    options.utterances = options.utterances or (600 if options.quick else 3000)
    options.repeats = options.repeats or (3 if options.quick else 5)
    unknown = set(options.peers.split(",")) - {"all", "none", *PEERS}
    if unknown:
        parser.error(f"--peers: no peer {sorted(unknown)[0]!r}; known: all, none, {', '.join(PEERS)}")
    return options


def _enter(system: System, envs: Path, work: Path) -> Entrant:
    """Prepare a system's data, and compare what it makes of it with the corpus."""
    entrant = Entrant(system, python_of(envs / system.module, system.requirements), work / system.module)
    ready = entrant.folder / "prepared"
    if system is OURS or not ready.exists():  # our own format may have changed since
        shutil.rmtree(entrant.folder, ignore_errors=True)
        entrant.folder.mkdir()
        entrant.run("prepare", str(work / "corpus"))
        ready.touch()
    for workers in _WORKERS:
        found = entrant.run("check", str(workers))
        if faults := ", ".join(f"{found[name]} {name}" for name in ("missing", "repeated", "wrong") if found[name]):
            entrant.faults[workers] = faults
        entrant.peak_mb[workers] = found["peak_mb"]
    return entrant


def _table(entrants: list[Entrant], absent: dict[str, str], facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['utterances']} utterances, median of {facts['turns']} turns (range), {facts['cores']} cores, load "
        f"{min(facts['load'])} to {max(facts['load'])}.",
        "",
        "| system | workers | utterances/s | of the floor | CPU ms per utterance | first batch, s | peak memory, MB "
        "| padding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    floor = entrants[0]
    for workers in _WORKERS:
        floor_rates = [_rate(turn) for turn in floor.turns[workers]]
        for entrant in entrants:
            turns = entrant.turns[workers]
            rates = [_rate(turn) for turn in turns]
            ratios = [rate / other for rate, other in zip(rates, floor_rates, strict=True)]
            cells = [
                entrant.system.title + (f" ({entrant.faults[workers]})" if workers in entrant.faults else ""),
                str(workers),
                f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{median(1000 * turn['cpu_s'] / turn['utterances'] for turn in turns):.2f}",
                f"{median(turn['first_s'] for turn in turns):.2f}",
                f"{entrant.peak_mb[workers]:.0f}",
                f"{median(100 * turn['padding'] for turn in turns):.1f} %",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| {title} | | not measured: {reason} | | | | | |" for title, reason in absent.items()]
    return "\n".join(lines)


def _rate(turn: dict[str, Any]) -> float:
    """Utterances per second over the whole epoch, opening and the first batch included.

    Leaving the first batch out would flatter who reads far ahead before handing it over.
    """
    return turn["utterances"] / turn["wall_s"]


if __name__ == "__main__":
    main()
