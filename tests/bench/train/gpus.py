"""The cost model's table of a full run on many GPUs, for a corpus of MSP-like durations.

    python -m tests.bench.train.gpus --ranks 64
    python -m tests.bench.train.gpus --ranks 64 --assume device=a100 --assume host_gbit_s=1600

Needs no GPU, no shards and no weights: HuBERT-large is made of shapes, and a plan of durations drawn as in
MSP-Podcast, sorted in groups of 32 batches and cut as the loader does. ``launch/train.py --check --ranks N`` gives the
same for a run file and its shards.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import HubertConfig

from ccts_dist.config import read_run
from ccts_dist.loader.micro_batches import split_global_batch
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.model.emotion import EncoderConfigs, rebuild_model
from ccts_dist.train.speed.cost import read_assumptions
from ccts_dist.train.speed.flops import count_flops
from ccts_dist.train.speed.scaling import CostModel, Steps, StepsOf, visible_device
from ccts_dist.train.zero.ds_config import read_ds_config
from ccts_dist.train.zero.partitioning import read_partitioning, sizes_of
from tests.bench.loader.speech import SAMPLE_RATE_HZ, durations
from tests.helpers.models.large_student import LARGE

RUN = Path("launch/runs/full/speech.toml")
MOST_STEPS = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64, metavar="N", help="GPUs (%(default)s)")
    parser.add_argument("--assume", action="append", default=[], metavar="KEY=VALUE", help="as of launch/train.py")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="as of launch/train.py")
    parser.add_argument("--utterances", type=int, default=84_000, metavar="N", help="of the corpus (%(default)s)")
    options = parser.parse_args()
    run = read_run(RUN, options.set)
    encoders = EncoderConfigs(speech=HubertConfig(**LARGE | {"layerdrop": 0.0}), do_normalize=True)
    with torch.device("meta"):
        sizes = sizes_of(rebuild_model(run.model, encoders))
    flops = count_flops(run.model, encoders, samples=10 * SAMPLE_RATE_HZ, recomputation=True)
    assert flops is not None
    assumed = read_assumptions(options.assume, device=visible_device()).completed(run.train.precision)
    lengths = [int(seconds * SAMPLE_RATE_HZ) for seconds in durations(options.utterances)]
    partitioning = read_partitioning(read_ds_config(Path(run.train.deepspeed)))
    steps_of = planned(lengths, run.batch.micro_batch_size, run.data.bucket_batches)
    model = CostModel(run, sizes, flops, assumed, partitioning, steps_of)
    print("\n".join(model.lines(options.ranks, len(lengths))))


def planned(lengths: list[int], micro: int, group: int) -> StepsOf:
    """Steps of utterances in random order, sorted by duration within ``group`` batches."""
    order = random.Random(0).sample(range(len(lengths)), len(lengths))

    def steps_of(num_ranks: int, size: int) -> Steps:
        of_group = sorted(order[: size * group], key=lambda number: lengths[number])
        starts = range(0, len(of_group) - size + 1, size)
        batches = [of_group[start : start + size] for start in starts]
        chosen = random.Random(0).sample(batches, min(MOST_STEPS, len(batches)))
        num_micro_batches = -(-size // (micro * num_ranks))
        return Steps(
            parts=[
                split_global_batch([_row(number, lengths) for number in batch], num_ranks, num_micro_batches, micro)
                for batch in chosen
            ],
            per_epoch=-(-len(lengths) // size),
            global_batch_size=size,
            longest=lambda part: part.rows[0].num_samples,
        )

    return steps_of


def _row(number: int, lengths: list[int]) -> SampleRef:
    return SampleRef("shard", number, lengths[number], None)


if __name__ == "__main__":
    main()
