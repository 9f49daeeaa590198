"""One round of forward passes in a step, or two: whether the graphs of all its micro-batches fit in memory.

The exact loss of a global batch needs the sums of all predictions before any backward pass. With one round the graph of
every forward pass waits for that; with two, the first goes without, and each pass is repeated for its backward pass.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from ccts_dist.config import BatchConfig, RunConfig
from ccts_dist.distributed import Ranks, ranks_of_this_host
from ccts_dist.loader.micro_batches import Cuts
from ccts_dist.records import SAMPLE_RATE_HZ

MARGIN = 0.1
"""Share of a rank's memory that graphs leave free, for what the forecast does not see."""

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphMemory:
    """Memory that graphs take of a rank, by the forecast."""

    graph_bytes: int
    """Memory of one micro-batch of ``graph_samples``, between its forward and its backward pass."""

    graph_samples: int
    """Samples of padded audio."""

    other_bytes: int
    """Most of a rank while it trains with one graph at a time, that of the largest micro-batch included."""

    on_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """A decision, the same on all ranks."""

    graph_samples: int
    """Most samples of padded audio, over a rank's micro-batches of a step, whose graphs are kept at a time."""

    words: str
    """The decision and its reason, for people."""

    extra_bytes: int = 0
    """Most that graphs take beside the largest one."""

    recorded: int | None = None
    """``graph_samples`` for a checkpoint, where they follow from what memory happened to be free."""


NO_ROUNDS = Rounds(graph_samples=0, words="")
"""No decision: for a run whose steps have one micro-batch, or whose micro-batches have a loss each."""


def most_graph_samples(memory: GraphMemory, rank_bytes: int) -> int:
    """Samples of padded audio whose graphs fit into a rank's memory beside all else; 0 where one alone hardly does.

    Args:
        rank_bytes: memory that the rank may use.
    """
    spare = int((1 - MARGIN) * rank_bytes) - memory.other_bytes
    if spare < 0:
        return 0
    if memory.graph_bytes == 0:
        return sys.maxsize
    return memory.graph_samples + spare * memory.graph_samples // memory.graph_bytes


def decide_rounds(
    asked: Literal["auto", "one", "two"],
    cuts: Cuts,
    *,
    stage: int,
    memory: GraphMemory | None,
    rank_bytes: int,
    recorded: int | None = None,
) -> Rounds:
    """How many rounds the steps of a run take.

    Args:
        asked: ``batch.forward_rounds``.
        cuts: of the steps.
        stage: of ZeRO.
        memory: None where it cannot be foreseen.
        rank_bytes: memory that each rank may use.
        recorded: ``graph_samples`` of the checkpoint that is gone on from, which holds as it is.
    """
    if stage == 3:  # a backward pass finds the weights where its forward pass has left them
        return Rounds(graph_samples=0, words="two rounds, as ZeRO-3 needs them")
    if asked == "two":
        return Rounds(graph_samples=0, words="two rounds, as batch.forward_rounds asks")
    samples = sum(part.padded_samples for part in cuts.largest_step)
    extra = _extra_bytes(memory, samples, cuts)
    graphs = f"graphs of {len(cuts.largest_step)} micro-batches" + (f", {extra / 1e9:.2f} GB more" if extra else "")
    if asked == "one":
        return Rounds(graph_samples=sys.maxsize, words=f"one round, as asked: {graphs}", extra_bytes=extra)
    if memory is None:
        return Rounds(graph_samples=0, words="two rounds: the memory of graphs of this encoder cannot be foreseen")
    fitting = most_graph_samples(memory, rank_bytes) if recorded is None else recorded
    why = f"{rank_bytes / 1e9:.1f} GB a rank" if recorded is None else "as the checkpoint has it"
    if samples <= fitting:
        words = f"one round: {graphs} ({why})"
    elif fitting <= cuts.largest.padded_samples:
        words = f"two rounds: {graphs} do not fit ({why})"
    else:
        words = f"one round, and two in steps of more than {fitting / SAMPLE_RATE_HZ:.0f} s of audio on a rank ({why})"
    extra = _extra_bytes(memory, min(samples, fitting), cuts)
    return Rounds(graph_samples=fitting, words=words, extra_bytes=extra, recorded=None if memory.on_gpu else fitting)


def _extra_bytes(memory: GraphMemory | None, samples: int, cuts: Cuts) -> int:
    if memory is None or memory.graph_samples == 0:
        return 0
    return max(0, samples - cuts.largest.padded_samples) * memory.graph_bytes // memory.graph_samples


def warn_of_sorted_batches(run: RunConfig) -> dict[str, str]:
    """A line for a run whose batches have one duration each, under a loss that compares the utterances of a batch."""
    if run.data.bucket_batches == 1 or not run.model.targets:
        return {}
    harm = "the CCC of a batch of one duration rewards whatever predicts duration"
    if run.model.text is not None:
        harm += ", and a model that reads transcripts finds it in the number of letters: expect a worse model"
    rest = "Set it to 1; batch.micro_batch_seconds saves padding without this."
    return {"warning": f"data.bucket_batches = {run.data.bucket_batches}: {harm}. {rest}"}


def describe_micro_batches(batch: BatchConfig, cuts: Cuts) -> str:
    """How many micro-batches a step has on a rank, and how large they may be."""
    fewest, most = cuts.fewest_micro_batches, cuts.most_micro_batches
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    seconds = "" if batch.micro_batch_seconds is None else f" and {batch.micro_batch_seconds:g} s"
    return f"{number} of at most {batch.micro_batch_size} utterances{seconds}"


def memory_of_a_rank(ranks: Ranks, *, on_gpu: bool) -> int:
    """Bytes that this process may use of the devices that train; ranks share what is free on their host."""
    if on_gpu:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return _free_bytes() // ranks_of_this_host(ranks) + psutil.Process().memory_info().rss


def _free_bytes() -> int:
    """Free memory of this host, or of the container that this process is in."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
