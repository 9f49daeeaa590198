"""How many ranks a training on a machine without GPUs has, and how to start another number."""

import pytest

from ccts_dist.train.run import describe_cpu_ranks


@pytest.mark.parametrize(
    ("num_ranks", "words"),
    [
        (1, "1 on the CPU, since no GPU is found; for two: deepspeed --num_gpus 2 launch/train.py ..."),
        (2, "2 on the CPU, since no GPU is found; for N: deepspeed --num_gpus N launch/train.py ..."),
    ],
)
def test_number_of_cpu_ranks_is_given_with_the_option_that_changes_it(num_ranks: int, words: str):
    assert describe_cpu_ranks(num_ranks) == words
