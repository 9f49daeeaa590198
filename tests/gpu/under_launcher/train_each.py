"""On one rank: each of these run files to its end, in order; started by ``e_ranks.py`` under the launcher."""

import sys
from pathlib import Path

from ccts_dist.distributed import process_group, rank_facts
from ccts_dist.errors import leave
from tests.ranks.trainings import Job, run_trainings


def main() -> None:
    """Train."""
    configs = [Path(argument) for argument in sys.argv[1:] if argument.endswith(".toml")]
    with process_group(rank_facts(), timeout_s=60.0):
        run_trainings([Job(config=config) for config in configs])


if __name__ == "__main__":
    main()
    leave(0)
