"""Steps of ever other lengths, and the memory held half way and at the end; started by ``h_long.py``.

Arguments: RUN.toml STEPS OUT.json.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch

from ccts_dist.errors import exit_without_teardown
from tests.gpu.large import first_batch, step, varied
from tests.gpu.steps import training


def main() -> None:
    """Take the steps."""
    config, steps, answer = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    held: dict[str, list[float]] = {"reserved GB": [], "host GB": []}
    with training(config) as ready:
        for number, batch in enumerate(varied(first_batch(ready), steps, seed=5)):
            step(ready, batch, number)
            if number + 1 in (steps // 2, steps):
                gc.collect()
                held["reserved GB"].append(torch.cuda.memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0)
                held["host GB"].append(_resident_bytes() / 1e9)
    answer.write_text(json.dumps(held))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
    exit_without_teardown(0)
