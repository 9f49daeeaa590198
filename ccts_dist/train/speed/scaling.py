"""How long a run's steps and epochs take on many GPUs, by ``train.speed.cost``, and what keeps those GPUs busy.

The work of a step comes from the shard set: its durations, in the order of the plan and cut as the loader cuts them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

import torch

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.micro_batches import MicroBatch
from ccts_dist.train.devices import DEVICES, find_device
from ccts_dist.train.experiment import Experiment
from ccts_dist.train.inputs.loaders import open_loader
from ccts_dist.train.speed.cost import (
    Assumptions,
    StepCost,
    Work,
    gradient_traffic,
    read_assumptions,
    scaled_rates,
    step_cost,
)
from ccts_dist.train.speed.flops import ModelFlops, flops_of
from ccts_dist.train.zero.partitioning import ModelSizes, ZeroPartitioning, read_partitioning, sizes_of

_STEPS = 32
"""Steps of the first window that stand for all."""

_LARGER = 2
_MOST_LARGER = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The mean step of a run on so many GPUs."""

    num_ranks: int
    global_batch_size: int
    num_micro_batches: int
    """Most in a step."""

    steps_per_epoch: int
    cost: StepCost

    @property
    def utterances_per_s(self) -> float:
        """Throughput of all GPUs."""
        return self.global_batch_size / self.cost.seconds

    def efficiency(self, single: "Row") -> float:
        """Utterances per second and GPU, against those of one GPU."""
        return self.utterances_per_s / self.num_ranks / single.utterances_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Some steps of a run on some ranks, by micro-batch and rank, that stand for all."""

    parts: Sequence[Sequence[Sequence[MicroBatch]]]
    per_epoch: int
    global_batch_size: int
    longest: Callable[[MicroBatch], int]
    """Samples to which a part is padded."""


StepsOf = Callable[[int, int], Steps]
"""The steps with that number of ranks and that global batch."""


def scaling_lines(experiment: Experiment, pairs: Sequence[str], num_ranks: int) -> list[str]:
    """The cost model's table and its suggestion, for people.

    Args:
        pairs: as after ``--assume``.

    Raises:
        ConfigError: an assumption that cannot be.
    """
    run = experiment.run
    assumed = read_assumptions(pairs, device=visible_device()).completed(run.train.precision)
    flops = flops_of(experiment, recomputation=True)
    if flops is None:
        return ["cost model: operations of this encoder cannot be counted on shapes alone"]
    model = CostModel(
        run, sizes_of(experiment.model), flops, assumed, read_partitioning(experiment.ds_config), _steps_of(experiment)
    )
    return model.lines(num_ranks, experiment.loader.num_utterances)


def _steps_of(experiment: Experiment) -> StepsOf:
    def steps_of(num_ranks: int, global_batch_size: int) -> Steps:
        run = replace(experiment.run, batch=replace(experiment.run.batch, global_batch_size=global_batch_size))
        ranks, splits = Ranks(num_ranks=num_ranks), run.data.train_splits
        loader = open_loader(run, experiment.shard_set, splits, ranks, shuffle=True)
        steps = range(min(_STEPS, loader.plan.window_steps, loader.steps_per_epoch))
        return Steps(
            parts=[loader.parts(0, step) for step in steps],
            per_epoch=loader.steps_per_epoch,
            global_batch_size=loader.plan.largest_batch,
            longest=loader.longest,
        )

    return steps_of


def visible_device() -> str:
    """The name of this machine's GPU in ``DEVICES``; "h100" where there is none, or another one."""
    if torch.cuda.is_available():
        found = find_device(torch.cuda.get_device_name(0))
        return next((name for name, device in DEVICES.items() if device is found), "h100")
    return "h100"


class CostModel:
    """A run's steps on any number of ranks.

    Args:
        run: the resolved run file.
        sizes: of its model.
        flops: of its model, recomputed layers included.
        assumed: complete.
        partitioning: of ZeRO.
        steps_of: what the ranks are given.
    """

    def __init__(
        self,
        run: RunConfig,
        sizes: ModelSizes,
        flops: ModelFlops,
        assumed: Assumptions,
        partitioning: ZeroPartitioning,
        steps_of: StepsOf,
    ) -> None:
        self._run, self._sizes, self._flops, self._assumed, self._steps_of = run, sizes, flops, assumed, steps_of
        self._partitioning = partitioning
        self._tokens = 0 if run.model.text is None else run.model.text.max_tokens

    def lines(self, num_ranks: int, num_utterances: int) -> list[str]:
        """The table with its assumptions, and a suggestion.

        Args:
            num_utterances: of the training splits.
        """
        run, assumed = self._run, self._assumed
        single = self.row(1, run.batch.global_batch_size)
        within_host = min(num_ranks, int(assumed.gpus_per_host))
        rows = [self.row(ranks, run.batch.global_batch_size) for ranks in sorted({within_host, num_ranks} - {1})]
        lines = [
            f"cost model of {run.train.precision} on {assumed.device}, not measured but assumed (--assume KEY=VALUE):",
            *wrap(assumed.described(), 112, initial_indent="  ", subsequent_indent="  "),
            *_table([single, *rows], single),
        ]
        if run.model.text is not None:
            lines.append("  transcripts count as if each had model.text.max_tokens")
        if num_ranks > 1:
            lines += self._suggestion(rows[-1], single, num_utterances)
        return lines

    def row(self, num_ranks: int, global_batch_size: int) -> Row:
        """The mean step with that global batch.

        Raises:
            ConfigError: the ranks are more than the utterances.
        """
        steps = self._steps_of(num_ranks, global_batch_size)
        costs = [self._step(parts, steps.longest, num_ranks) for parts in steps.parts]
        return Row(
            num_ranks=num_ranks,
            global_batch_size=steps.global_batch_size,
            num_micro_batches=max(map(len, steps.parts)),
            steps_per_epoch=steps.per_epoch,
            cost=StepCost(
                compute_s=sum(cost.compute_s for cost in costs) / len(costs),
                reduction_s=sum(cost.reduction_s for cost in costs) / len(costs),
                waits_s=sum(cost.waits_s for cost in costs) / len(costs),
            ),
        )

    def _step(
        self, micro_batches: Sequence[Sequence[MicroBatch]], longest: Callable[[MicroBatch], int], num_ranks: int
    ) -> StepCost:
        """A step, by micro-batch and rank."""
        rounds = self._rounds(len(micro_batches))
        of_ranks = [
            sum(len(part.rows) * self._flops_of(longest(part), rounds) for part in parts)
            for parts in zip(*micro_batches, strict=True)
        ]
        kernels = self._flops.training_kernels + (rounds - 1) * self._flops.forward_kernels
        traffic = gradient_traffic(
            self._partitioning,
            parameters=self._sizes.parameters,
            trained=self._sizes.trained,
            precision=self._run.train.precision,
            num_micro_batches=len(micro_batches),
            rounds=rounds,
        )
        work = Work(flops=max(of_ranks), kernels=float(kernels * len(micro_batches)))
        return step_cost(work, traffic, self._assumed, num_ranks)

    def _flops_of(self, samples: int, rounds: int) -> float:
        """Operations of a row that is padded to so many samples: the device computes over padding."""
        once = self._flops.training.of_row(samples, self._tokens)
        return once + (rounds - 1) * self._flops.forward.of_row(samples, self._tokens)

    def _rounds(self, num_micro_batches: int) -> int:
        """Rounds of forward passes; where the forecast of memory decides about them, as if all graphs fit."""
        asked = self._run.batch.forward_rounds
        two = asked == "two" or self._partitioning.stage == 3
        return 2 if num_micro_batches > 1 and two and self._run.loss.scope == "global" else 1

    def _suggestion(self, now: Row, single: Row, num_utterances: int) -> list[str]:
        """The smallest global batch, by doubling, that keeps all GPUs busy, and learning rates to go with it.

        Where none does, the one that comes closest.
        """
        asked, rate = self._assumed.busy, self._run.optim.learning_rate
        if now.efficiency(single) >= asked:
            return [f"  {now.num_ranks} GPUs are busy: an efficiency of {asked:.0%} is reached"]
        larger: list[Row] = []
        factor = _LARGER
        while factor <= _MOST_LARGER and factor * now.global_batch_size <= num_utterances:
            try:
                larger.append(self.row(now.num_ranks, factor * now.global_batch_size))
            except ConfigError:  # more than there is to read at a time
                break
            if larger[-1].efficiency(single) >= asked:
                break
            factor *= _LARGER
        if not larger:
            return [f"  no larger global batch of this corpus keeps {now.num_ranks} GPUs busy; take fewer"]
        best = max(larger, key=lambda row: row.efficiency(single))
        linear, root = scaled_rates(rate, best.global_batch_size / now.global_batch_size)
        reached = best.efficiency(single)
        words = f"{asked:.0%}" if reached >= asked else f"{asked:.0%}, which none of these reaches"
        return [
            f"  larger global batches, for an efficiency of {words}:",
            *_table(larger, single)[1:],
            f"  suggestion, to be tried: batch.global_batch_size = {best.global_batch_size}, optim.learning_rate "
            f"between {root:.3g} (square root, for Adam)",
            f"  and {linear:.3g} (linear, for SGD) instead of {rate:g}; an epoch then has {best.steps_per_epoch} steps "
            f"instead of {now.steps_per_epoch}",
        ]


def _table(rows: Sequence[Row], single: Row) -> list[str]:
    """Rows of figures; milliseconds are those of the mean step."""
    heads = ("GPUs", "batch", "micro", "compute ms", "reduction ms", "waits ms", "step ms", "epoch s", "utt/s", "eff.")
    lines = ["  " + " ".join(f"{head:>{max(7, len(head))}}" for head in heads)]
    for row in rows:
        cost = row.cost
        milliseconds = (1e3 * value for value in (cost.compute_s, cost.reduction_s, cost.waits_s, cost.seconds))
        cells = [
            *(str(number) for number in (row.num_ranks, row.global_batch_size, row.num_micro_batches)),
            *(f"{value:.1f}" for value in milliseconds),
            f"{row.steps_per_epoch * cost.seconds:.1f}",
            f"{row.utterances_per_s:.0f}",
            f"{row.efficiency(single):.0%}",
        ]
        lines.append("  " + " ".join(f"{cell:>{max(7, len(head))}}" for cell, head in zip(cells, heads, strict=True)))
    return lines
