"""Two ranks that leave right after a collective, whose threads have not yet been let to give back its tensors.

    python tests/ranks/distributed/leave_at_once.py ROUNDS

Prints every rank's exit code. Each round forks from one process that has imported torch, so that it takes little time.
"""

import os
import sys

import torch
import torch.distributed as dist

from ccts_dist.distributed import process_group, rank_facts, sum_over_ranks
from ccts_dist.errors import exit_without_teardown
from tests.helpers.processes.launching import free_port

kept = []
"""As DeepSpeed does, keeps the group, and so its threads, beyond the end of ``process_group``."""


def run_rank(rank: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with process_group(rank_facts(), timeout_s=60.0):
        kept.append(dist.group.WORLD)
        sum_over_ranks(torch.ones(10, dtype=torch.float64))
        # From here on no other thread gets the interpreter before this one waits or ends.
        sys.setswitchinterval(100.0)
        sum_over_ranks(torch.ones(10, dtype=torch.float64))
    exit_without_teardown(0)


def main() -> None:
    codes = []
    for _ in range(int(sys.argv[1])):
        port = free_port()
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                run_rank(rank, port)
            children.append(child)
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(*codes)


if __name__ == "__main__":
    main()
