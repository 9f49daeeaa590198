"""A run's need of memory before it runs: the largest micro-batch of its plan, its parts, and what would help."""

from dataclasses import dataclass, replace
from functools import cache
from math import inf

from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.micro_batches import MicroBatch as Cut
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.train.experiment import Experiment
from ccts_dist.train.memory.activations import BatchShape, trace_pass, trace_peak
from ccts_dist.train.memory.estimate import estimate_memory
from ccts_dist.train.memory.parts import Activations, Estimate, Part, describe_peak
from ccts_dist.train.steps.rounds import NO_ROUNDS, GraphMemory, decide_rounds
from ccts_dist.train.zero.partitioning import ZeroPartitioning, read_partitioning, sizes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Settings of a run that decide about its memory and can be changed."""

    partitioning: ZeroPartitioning
    precision: str
    checkpointing: bool
    micro: int


class Forecast:
    """Memory forecast of an experiment's ranks. Build it before an engine has taken the model apart."""

    def __init__(self, experiment: Experiment, *, on_gpu: bool) -> None:
        self._experiment, self._run, self._on_gpu = experiment, experiment.run, on_gpu
        model, tables = experiment.model, self._run.model
        branches = (
            (model.speech, tables.speech),
            (model.text, tables.text),
            *zip(model.extra_speech, tables.extra_speech, strict=True),
        )
        made_here = ("scratch", "filterbank")
        self._sizes = sizes_of(
            model,
            pretrained=[branch for branch, table in branches if branch and table and table.encoder not in made_here],
        )
        self._encoders = experiment.model.encoder_configs
        self._as_is = _Choice(
            partitioning=read_partitioning(experiment.ds_config),
            precision="bf16" if self._run.train.precision == "bf16" else "fp32",
            checkpointing=self._run.model.gradient_checkpointing,
            micro=self._run.batch.micro_batch_size,
        )
        self._trace, self._micro_batches_of = cache(self._trace_once), cache(self._largest_micro_batches)
        self.estimate = self._estimate(self._as_is)
        self.rounds = NO_ROUNDS

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the device that trains."""
        return self.estimate.peak()[1]

    def lines(self) -> list[str]:
        """The table of parts, for people."""
        rounds = [f"{'forward passes':24} {self.rounds.words}"] if self.rounds.words else []
        lines = [*rounds, *self.estimate.table()]
        if self._activations(self._as_is) is None:
            lines.append("  activations of this encoder cannot be foreseen, and are not in it")
        return lines

    def decide_rounds(self, rank_bytes: int, recorded: int | None = None) -> None:
        """Decide whether graphs are kept beside that of the micro-batch whose backward pass is taken, and count them.

        Args:
            rank_bytes: memory that each rank may use.
            recorded: see ``train.steps.rounds.decide_rounds``.
        """
        batch, cuts = self._run.batch, self._experiment.loader.cuts()
        always_one = batch.micro_batch_seconds is None and cuts.most_micro_batches == 1
        if always_one or self._run.loss.scope == "micro-batch":
            return
        self.rounds = decide_rounds(
            batch.forward_rounds,
            cuts,
            stage=self._as_is.partitioning.stage,
            memory=self._graph_memory(),
            rank_bytes=rank_bytes,
            recorded=recorded,
        )
        graphs = Part(
            what="graphs of other micro-batches",
            size_bytes=self.rounds.extra_bytes,
            why="one round (batch.forward_rounds)",
            phases=("forward and backward",),
        )
        self.estimate = replace(self.estimate, parts=(*self.estimate.parts, graphs))

    def _graph_memory(self) -> GraphMemory | None:
        """None for an encoder whose activations cannot be foreseen.

        A second of a longer utterance takes more, as attention does: so all are taken for as long as the longest.
        """
        loader = self._experiment.loader
        largest, samples = self._shape(loader.cuts().largest, loader), loader.longest_of(loader.cuts().longest_samples)
        shape = replace(largest, rows=max(1, largest.rows * largest.samples // samples), samples=samples)
        precision = self._as_is.precision
        traced = trace_pass(
            self._run.model, self._encoders, shape, precision=precision, training=True, on_gpu=self._on_gpu
        )
        if traced is None:
            return None
        here = [part for part in self.estimate.parts if not (self._on_gpu and part.on_host)]
        return GraphMemory(
            graph_bytes=traced.retained,
            graph_samples=shape.rows * shape.samples,
            other_bytes=sum(part.size_bytes for part in here if "forward and backward" in part.phases),
            on_gpu=self._on_gpu,
        )

    def check_fits(self, gpu_memory_gb: float) -> str:
        """One line on how well the run fits a GPU of so many GB (10^9 bytes), and on what would fit and be faster.

        Raises:
            ConfigError: it does not: what is needed, what there is, and which three keys would help most.
        """
        limit = memory_of_a_gpu(gpu_memory_gb)
        most = self._largest_micro(self._as_is, limit)
        if self.peak_bytes <= limit:
            largest = f"the largest batch.micro_batch_size that does is {most}"
            return "; ".join(filter(None, (f"fits {gpu_memory_gb:g} GB", largest, self._faster(limit))))
        helpful = "; ".join(f"{words} ({size / 1e9:.2f} GB)" for size, words in self._alternatives(limit)[:3])
        micro = (
            f"batch.micro_batch_size = {most} is the largest that fits"
            if most
            else "no batch.micro_batch_size fits by itself"
        )
        raise ConfigError(
            f"--gpu-memory {gpu_memory_gb:g}: does not fit: a rank needs {describe_peak(self.estimate)}. {micro}. "
            f"What helps most: {helpful or 'more ranks, or larger GPUs'}."
        )

    def _faster(self, limit: int) -> str:
        """Settings with which layers are not recomputed or micro-batches are fewer, and that fit too; "" for none."""
        now, num_micro_batches = self._as_is, self._num_micro_batches(self._as_is.micro)
        for checkpointing in (False, True) if now.checkpointing else (False,):
            choice = replace(now, checkpointing=checkpointing)
            # Another cut of the batch is another loss where each micro-batch has its own.
            largest = self._largest_micro(choice, limit) if self._run.loss.scope == "global" else now.micro
            if largest == 0:
                continue
            fewest = min(num_micro_batches, self._num_micro_batches(largest))
            if fewest < num_micro_batches or largest < now.micro:
                choice = replace(choice, micro=-(-self._batch_size // (fewest * self._experiment.ranks.num_ranks)))
            size = self._estimate(choice).peak()[1]
            if choice == now or size > limit:
                continue
            changes, saved = [], []
            if choice.micro != now.micro:
                changes.append(f"batch.micro_batch_size = {choice.micro}")
            if fewest < num_micro_batches:
                saved.append(f"{fewest} micro-batch{'es' * (fewest > 1)} a step in place of {num_micro_batches}")
            if checkpointing != now.checkpointing:
                changes.append("model.gradient_checkpointing = false")
                saved.append("no recomputation of layers")
            if saved:
                return f"{' and '.join(changes)} would fit too ({size / 1e9:.2f} GB): {', '.join(saved)}"
        return ""

    @property
    def _batch_size(self) -> int:
        return self._experiment.loader.plan.largest_batch

    def _num_micro_batches(self, micro: int) -> int:
        """Most micro-batches of a step on each rank."""
        return self._experiment.loader.cuts(micro_batch_size=micro).most_micro_batches

    def _alternatives(self, limit: int) -> list[tuple[int, str]]:
        """Single changes of the run file and what a rank then needs, the most helpful first."""
        now, options = self._as_is, []
        if now.micro > 1:
            fewer = max(1, self._largest_micro(now, limit))
            options.append((replace(now, micro=fewer), f"batch.micro_batch_size = {fewer}"))
        if not now.checkpointing:
            options.append((replace(now, checkpointing=True), "model.gradient_checkpointing = true"))
        if now.precision == "fp32":
            options.append((replace(now, precision="bf16"), 'train.precision = "bf16"'))
        stage = self._stage_that_helps(limit)
        if stage is not None:
            options.append(stage)
        needs = [(self._estimate(choice).peak()[1], words) for choice, words in options]
        return sorted(need for need in needs if need[0] < self.peak_bytes)

    def _stage_that_helps(self, limit: int) -> tuple[_Choice, str] | None:
        """The lowest higher stage that fits, else the highest there is."""
        now = self._as_is
        higher = [
            (replace(now.partitioning, stage=stage), f"zero{stage}.json")
            for stage in (1, 2, 3)
            if stage > now.partitioning.stage
        ]
        if not (now.partitioning.offload_optimizer and now.partitioning.offload_parameters):
            offloaded = replace(now.partitioning, stage=3, offload_optimizer=True, offload_parameters=True)
            higher.append((offloaded, "zero3_offload.json"))
        choices = [
            (replace(now, partitioning=partitioning), f'train.deepspeed = "ds_configs/{name}"')
            for partitioning, name in higher
        ]
        fitting = [choice for choice in choices if self._estimate(choice[0]).peak()[1] <= limit]
        return next(iter(fitting or choices[-1:]), None)

    def _largest_micro(self, choice: _Choice, limit: int) -> int:
        """The largest ``batch.micro_batch_size`` that fits ``limit``; 0 when none does."""
        ranks = self._experiment.ranks.num_ranks
        low, high = 0, -(-self._batch_size // ranks)
        while low < high:
            micro = (low + high + 1) // 2
            if self._estimate(replace(choice, micro=micro)).peak()[1] <= limit:
                low = micro
            else:
                high = micro - 1
        return low

    def _estimate(self, choice: _Choice) -> Estimate:
        return estimate_memory(
            self._sizes,
            choice.partitioning,
            self._run.optim,
            precision=choice.precision,
            num_ranks=self._experiment.ranks.num_ranks,
            num_micro_batches=self._num_micro_batches(choice.micro),
            activations=self._activations(choice) or Activations(training=0, scoring=0, shape="unknown"),
            on_gpu=self._on_gpu,
            tests=bool(self._run.data.test_splits),
            async_save=self._run.train.async_save,
            keeps_average=self._run.train.ema_decay > 0,
        )

    def _activations(self, choice: _Choice) -> Activations | None:
        train, test = self._micro_batches_of(choice.micro)
        settings = (choice.precision, choice.checkpointing)
        trained, tested = self._shape(train, self._experiment.loader), self._shape(test, self._experiment.valid_loader)
        training = self._trace(trained, *settings, True)
        validating = self._trace(tested, *settings, False)
        scoring = self._trace(tested, "fp32", choice.checkpointing, False)
        if training is None or validating is None or scoring is None:
            return None
        seconds = trained.samples / SAMPLE_RATE_HZ
        recomputed = ", layers recomputed" if choice.checkpointing else ""
        return Activations(
            training=max(training, validating),
            scoring=scoring,
            shape=f"{trained.rows} x {seconds:.1f} s{recomputed}",
        )

    def _largest_micro_batches(self, micro: int) -> tuple[Cut, Cut]:
        loaders = (self._experiment.loader, self._experiment.valid_loader)
        train, validation = (loader.largest_part(micro) for loader in loaders)
        return train, validation

    def _shape(self, part: Cut, loader: Loader) -> BatchShape:
        text = self._run.model.text
        tokens = 0 if text is None else text.max_tokens
        return BatchShape(rows=len(part.rows), samples=loader.longest(part), tokens=tokens)

    def _trace_once(self, shape: BatchShape, precision: str, checkpointing: bool, training: bool) -> int | None:
        config = replace(self._run.model, gradient_checkpointing=checkpointing)
        return trace_peak(config, self._encoders, shape, precision=precision, training=training, on_gpu=self._on_gpu)


def memory_of_a_gpu(gb: float) -> int:
    """Bytes of a GPU of so many GB (10^9 bytes).

    Raises:
        ConfigError: that is no number above 0.
    """
    if not 0 < gb < inf:
        raise ConfigError(f"--gpu-memory {gb}: must be a number above 0. Give how many GB each GPU has.")
    return int(gb * 1e9)
