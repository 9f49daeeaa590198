"""The first minutes of this project on a GPU machine: what works, what agrees with the CPU, how fast it is.

    python -m tests.gpu.pack PACK                                            where there is a package index, once
    python tests/gpu/first_light.py --pack PACK --out OUT                    on the GPU machine, A to H
    python tests/gpu/first_light.py --pack PACK --out OUT --parts ABCDE      the first seven minutes of it
    python tests/gpu/first_light.py --device cpu --small --out OUT           the rehearsal

Needs nothing but Python 3.11 or later with torch, and the packed folder; whatever else is lacking is installed from
there into a folder of its own. Every part is a process with its own time limit. OUT gets a JSON of each part
(A.json ...), and all of them with the table in first_light.json and first_light.md. Exit code 0: no part failed.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this file's folder

from tests.gpu.outcome import FAILED  # noqa: E402 - only now can it be found
from tests.gpu.supervision import Part, python, run_part, skipped  # noqa: E402
from tests.gpu.table import table  # noqa: E402

PARTS = (
    Part(letter="A", title="starts", module="tests.gpu.parts.a_starts", limit_s=60),
    Part(letter="B", title="the CPU's losses", module="tests.gpu.parts.b_losses", limit_s=120),
    Part(letter="C", title="two rounds agree", module="tests.gpu.parts.c_rounds", limit_s=50),
    Part(letter="D", title="saves and stops", module="tests.gpu.parts.d_saves", limit_s=100),
    Part(letter="E", title="two ranks", module="tests.gpu.parts.e_ranks", limit_s=90),
    Part(letter="F", title="speed and memory", module="tests.gpu.parts.f_speed", limit_s=200),
    Part(letter="G", title="beside other loops", module="tests.gpu.parts.g_peers", limit_s=100),
    Part(letter="H", title="long runs", module="tests.gpu.parts.h_long", limit_s=150),
)
"""The most valuable first. A to E take at most 420 s, all of them at most 870 s."""

ON_CPU = 8.0
"""A rehearsal's limits, in those of a GPU machine: all parts share two cores with other work."""

WITHIN_S = 880.0
"""On a GPU machine, all parts together; a rehearsal has no such limit."""

LEAST_S = 15.0
"""With less time left than this no part is begun."""


def main(argv: list[str] | None = None) -> int:
    """Run the parts and print the table; the exit code."""
    options = _options(argv)
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="first-light-", ignore_cleanup_errors=True) as place:
        site = Path(place) / "site"
        installed = _install(options.pack, site)
        env = _environment(options.device, site)
        pack = options.pack or _pack_here(Path(place) / "pack", env, small=options.small)
        reported = []
        for part in PARTS:
            if part.letter not in options.parts:
                continue
            left = options.within - (time.monotonic() - began)
            if left < LEAST_S:
                reported.append(skipped(part, f"{left:.0f} s left of {options.within:.0f}", options.out))
            else:
                limit = min(left, part.limit_s * (ON_CPU if options.device == "cpu" else 1.0))
                command = python(part.module, "--device", options.device, "--pack", str(pack.resolve()))
                command += ["--small"] * options.small
                reported.append(run_part(part, limit, command, options.out, Path(place), env))
            print(f"{part.letter} {part.title}: {reported[-1]['status']}, {reported[-1]['seconds']} s", flush=True)
    device = _device_name(options.device, reported)
    (options.out / "first_light.json").write_text(
        json.dumps({"device": device, "installed": installed, "parts": reported})
    )
    (options.out / "first_light.md").write_text(table(device, reported) + "\n")
    print(table(device, reported))
    return 1 if any(part["status"] == FAILED for part in reported) else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    letters = "".join(part.letter for part in PARTS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the JSON files and the table")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="what tests.gpu.pack wrote; made here without it")
    parser.add_argument("--parts", default=letters, metavar="ABC", help="which, in their own order (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small models and few steps, for the rehearsal")
    parser.add_argument(
        "--within", type=float, metavar="S", help=f"seconds in all ({WITHIN_S:.0f}; on a CPU any number)"
    )
    options = parser.parse_args(argv)
    if not options.parts or set(options.parts) - set(letters):
        parser.error(f"--parts {options.parts}: must be some of {letters}")
    if options.pack is not None and not (options.pack / "references.json").is_file():
        parser.error(f"--pack {options.pack}: there is no references.json. Run python -m tests.gpu.pack first.")
    options.out = options.out.resolve()
    options.within = options.within or (WITHIN_S if options.device == "cuda" else math.inf)
    return options


def _install(pack: Path | None, site: Path) -> list[str]:
    """Install from the packed wheels what this machine lacks."""
    if pack is None or not (pack / "wheels").is_dir():
        return []
    from tests.gpu.wheels import install_lacking

    installed = install_lacking(pack / "wheels", site)
    print(f"installed: {', '.join(installed) or 'nothing'}", flush=True)
    return installed


def _environment(device: str, site: Path) -> dict[str, str]:
    """What every part runs in: this repository and the installed wheels first, no hub, no launcher's variables."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    own = [str(site), str(ROOT), *filter(None, [env.get("PYTHONPATH", "")])]
    env |= {"PYTHONPATH": os.pathsep.join(own), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def _pack_here(folder: Path, env: dict[str, str], *, small: bool) -> Path:
    """Shards and references, made on this machine's own CPU."""
    steps = ["--steps", "3", "--no-large"] if small else []
    done = subprocess.run(
        python("tests.gpu.pack", str(folder), "--no-wheels", *steps),
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"packing failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return folder


def _device_name(device: str, reported: list[dict[str, Any]]) -> str:
    """As the parts have seen it; else what the system states."""
    names = [item["figures"].get("device") for part in reported for item in part["items"]]
    found = next(filter(None, names), None)
    return found or f"{device} of {platform.node()}"


if __name__ == "__main__":
    sys.exit(main())
