"""On one rank: each of these run files to its end, in order; started by ``e_ranks.py`` under the launcher."""

import sys
from pathlib import Path

from ccts_dist.config import read_run
from ccts_dist.distributed import process_group, rank_facts
from ccts_dist.errors import exit_without_teardown
from ccts_dist.train.run import train
from tests.gpu.steps import forget_engines


def main() -> None:
    """Train."""
    configs = [Path(argument) for argument in sys.argv[1:] if argument.endswith(".toml")]
    ranks = rank_facts()
    with process_group(ranks, timeout_s=60.0) as settled:
        for config in configs:
            forget_engines()
            train(read_run(config, []), settled or ranks, resume="")


if __name__ == "__main__":
    main()
    exit_without_teardown(0)
