"""A part's place: device, size, packed material, and a folder to work in; every part starts here."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ccts_dist.errors import exit_without_teardown
from tests.gpu.outcome import NotApplicable, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that a part is reported."""

    device: torch.device
    small: bool
    """Sizes for a rehearsal on a CPU."""

    pack: Path
    """What ``tests.gpu.pack`` wrote."""

    work: Path
    """A folder of this part alone, which is removed afterwards."""

    @property
    def on_gpu(self) -> bool:
        """True where the device is CUDA's."""
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        """The device, for people."""
        if self.on_gpu:
            return torch.cuda.get_device_name()
        return f"CPU, {len(os.sched_getaffinity(0))} cores"

    def needs_gpu(self) -> None:
        """Raise ``NotApplicable`` on a CPU."""
        if not self.on_gpu:
            raise NotApplicable("cpu: not applicable")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


def run_part(name: str, body: Callable[[Outcome, Situation], None]) -> None:
    """Run a part in this process, by the command line that the supervisor gives; does not return."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--small", action="store_true")
    for path in ("--pack", "--work", "--json"):
        parser.add_argument(path, type=Path, required=True)
    options, _ = parser.parse_known_args()
    situation = Situation(
        device=torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu"),
        small=options.small,
        pack=options.pack,
        work=options.work,
    )
    outcome = Outcome(options.json, name)
    with outcome.item("everything between the items") as figures:
        figures["device"] = situation.device_name
        body(outcome, situation)
    outcome.write(finished=True)
    exit_without_teardown(0)  # a process group in this process may not let go: see ``exit_without_teardown``
