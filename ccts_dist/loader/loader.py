"""This rank's padded micro-batches, step by step, from any position of the plan."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Generator
from torch.utils.data import DataLoader

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.loader.collate import EncodeText, TeacherSource
from ccts_dist.loader.plan import Plan
from ccts_dist.loader.worker import Failure, Parcel, PartReader, Positions, end_with_trainer, worker_context
from ccts_dist.records import Batch, StepBatches
from ccts_dist.shards.read import ShardSet


class Loader:
    """Reads what the plan says for one rank.

    Workers start with the first epoch that is read and live until ``close``. The batches are the same for any number
    of workers.

    Args:
        shard_set: where the utterances lie.
        splits: which of its splits.
        batch: sizes of global and micro-batches.
        data: window, duration groups and number of workers.
        targets: labels, in the order of a batch's columns.
        seed: of the order.
        ranks: whose part to read.
        encode_text: transcript to token numbers, for models with a text branch. Must be picklable.
        teacher: cached teacher outputs, for students.
        shuffle: False for evaluation and the teacher pass.

    Raises:
        ConfigError: an unknown split or target, splits without utterances, or fewer utterances than ranks in a batch.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        splits: Sequence[str],
        *,
        batch: BatchConfig,
        data: DataConfig,
        targets: Sequence[str],
        seed: int,
        ranks: Ranks,
        encode_text: EncodeText | None = None,
        teacher: TeacherSource | None = None,
        shuffle: bool = True,
    ) -> None:
        known = shard_set.manifest.targets
        for target in targets:
            if target not in known:
                raise ConfigError(
                    f"target {target!r} is not a label of the shard set {shard_set.root}. It has: {', '.join(known)}."
                )
        self.plan = Plan(
            shard_set,
            splits,
            global_utterances=batch.global_utterances,
            seed=seed,
            window_utterances=data.window_utterances,
            duration_group=data.duration_group,
            shuffle=shuffle,
        )
        self.passes = batch.passes(ranks.num_ranks, self.plan.largest_batch)
        """Forward passes of every step on every rank."""

        self._reader = PartReader(
            plan=self.plan,
            shards=shard_set,
            ranks=ranks,
            passes=self.passes,
            micro=batch.micro_utterances,
            targets=tuple(targets),
            encode_text=encode_text,
            teacher=teacher,
        )
        self._positions = Positions(self.steps_per_epoch, self.passes)
        self._num_workers = data.workers
        self._workers: DataLoader[Batch | Parcel | Failure] | None = None
        self._results: Iterator[Batch | Parcel | Failure] = iter(())
        self._turn = 0

    @property
    def num_utterances(self) -> int:
        """Utterances of an epoch, over all ranks."""
        return self.plan.num_utterances

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.plan.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[StepBatches]:
        """The steps of ``epoch`` from ``start_step`` on. One epoch can be read at a time.

        A damaged member raises here, at the step it belongs to; on this rank only, so the caller must make all agree.

        Raises:
            ConfigError: the epoch has no such step.
            ShardError: a member is damaged, or a worker has died.
            TeacherError: an utterance has no sound teacher output.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps_per_epoch:
            raise ConfigError(
                f"cannot start at epoch {epoch}, step {start_step}: epochs count from 0 and have "
                f"{self.steps_per_epoch} steps."
            )
        return self._read(epoch, start_step)

    def _read(self, epoch: int, start_step: int) -> Iterator[StepBatches]:
        self._turn += 1
        turn = self._turn
        self._positions.epoch, self._positions.start_step = epoch, start_step
        with _worker_deaths_named(start_step):
            self._results = self._start_results()
        for step in range(start_step, self.steps_per_epoch):
            passes = []
            for _ in range(self.passes):
                assert turn == self._turn, "one epoch can be read at a time"
                passes.append(self._next_batch(step))
            yield StepBatches(epoch=epoch, step=step, passes=tuple(passes))

    def _start_results(self) -> Iterator[Batch | Parcel | Failure]:
        if self._num_workers == 0:
            return map(self._reader.__getitem__, self._positions)
        if self._workers is None:
            self._workers = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._positions,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                worker_init_fn=end_with_trainer,
                multiprocessing_context=worker_context(),
                persistent_workers=True,
                generator=Generator(),  # else every epoch draws from the global one, and resuming would differ
            )
        return iter(self._workers)

    def _next_batch(self, step: int) -> Batch:
        with _worker_deaths_named(step) if self._num_workers else nullcontext():
            result = next(self._results)
        if isinstance(result, Failure):
            raise result.error
        return result.unpack() if isinstance(result, Parcel) else result

    def padding(self, epoch: int) -> float:
        """Share of padding in the audio of all ranks, over the epoch's first window; reads no audio.

        An epoch up to ``data.window_utterances`` is one window.
        """
        padded = real = 0
        for step in range(min(self.plan.window_steps, self.steps_per_epoch)):
            for parts in self._reader.parts(epoch, step):
                padded += sum(part.padded_samples for part in parts)
                real += sum(part.real_samples for part in parts)
        return 1.0 - real / padded

    def close(self) -> None:
        """Let the workers go. Reading again starts new ones."""
        self._turn += 1
        self._results = iter(())
        self._workers = None


@contextmanager
def _worker_deaths_named(step: int) -> Iterator[None]:
    """Turn what DataLoader raises when a worker is gone into a ShardError; leave what a worker has raised itself."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        # The last two: it died after it had announced a batch, and the connection to fetch it fails.
        raised_in_worker = str(error).startswith("Caught ")
        if raised_in_worker or (isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error)):
            raise
        raise ShardError(
            f"a loader worker died while reading for step {step} ({error!r}). If memory or /dev/shm ran out, lower "
            f"data.workers or batch.micro_utterances."
        ) from error


def _as_it_is(result: Any) -> Any:
    return result
