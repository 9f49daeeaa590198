"""This rank's padded micro-batches, step by step, from any position of the plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ccts_dist.audio.augment import Augmenter
from ccts_dist.batches import Batch, StepBatches
from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.files.read_ahead import read_ahead
from ccts_dist.loader.collate import (
    EncodeText,
    FrameSource,
    ReadSpec,
    TeacherSource,
    read_batch,
    rounded_up,
    vote_labels,
)
from ccts_dist.loader.joined_shards import JoinedShards
from ccts_dist.loader.micro_batches import (
    Cuts,
    MicroBatch,
    SecondsLimit,
    check_length,
    choose_num_micro_batches,
    split_global_batch,
    sum_up,
)
from ccts_dist.loader.mixed_plan import MixedPlan, PlansSideBySide, balanced_plan, plan_of_sets
from ccts_dist.loader.row_gate import RowGate
from ccts_dist.loader.sampler import BatchSampler, SampleRef
from ccts_dist.loader.waveform_reader import WaveformReader
from ccts_dist.records import SAMPLE_RATE_HZ, mapped_category, varied_target
from ccts_dist.shards.shard_set import ShardSet

_GPU_PAD_MULTIPLE_S = 0.5
"""About 4 % more padding, for some 20 lengths an epoch in place of thousands."""

_BATCHES_AHEAD = 2
"""Read or being read per thread, beyond the one that the trainer has."""


def _plan(
    shard_set: ShardSet,
    splits: Sequence[str],
    batch: BatchConfig,
    data: DataConfig,
    targets: Sequence[str],
    *,
    categories: Sequence[str],
    category_map: Mapping[str, str],
    seed: int,
    shuffle: bool,
    max_samples: int,
) -> BatchSampler | PlansSideBySide:
    order: dict[str, Any] = {
        "global_batch_size": batch.global_batch_size,
        "seed": seed,
        "shuffle_buffer_size": data.shuffle_buffer_size,
        "bucket_batches": data.bucket_batches,
        "partitions": data.num_partitions if shuffle else 1,
        "shuffle": shuffle,
        "max_samples": max_samples,
    }
    if isinstance(shard_set, JoinedShards) and shuffle:
        return plan_of_sets(shard_set, splits, **order)
    if batch.balanced and shuffle:
        return balanced_plan(shard_set, splits, categories=categories, category_map=category_map, **order)
    if batch.labelled_share is None or not shuffle:
        return BatchSampler(shard_set, splits, **order)
    scored = [target for target in targets if varied_target(target) is None]
    return MixedPlan(shard_set, splits, targets=scored, labelled_share=batch.labelled_share, **order)


class Loader:
    """Reads what the plan states for one rank.

    Decoding lets go of the interpreter lock, so threads of the training process do what worker processes would, without
    a copy of the index each, shared memory, or the seconds that a process takes to start. The batches are the same for
    any number of threads.

    Args:
        shard_set: where the utterances lie.
        splits: which of its splits.
        batch: sizes of global and micro-batches.
        data: window, bucket_batches, partitions, number of threads, longest duration, and what to do about damage.
        targets: labels, in the order of a batch's columns; NAME.variance is the variance of NAME's raters.
        seed: of the order.
        ranks: whose part to read.
        categories: names of the categories, in the order of their numbers in a batch; none are read without.
        votes: read the labels named as the categories as the shares of votes for them.
        category_map: names that categories of the shards have among these, as in ``model.category_map``.
        encode_text: transcript to token numbers, for models with a text branch. Called by several threads.
        teacher: cached teacher outputs, for students.
        gate: decides by key or transcript who is distilled; None where residuals do.
        augmenter: changes the audio, epoch by epoch; None leaves it as it is.
        shuffle: False for evaluation and the teacher pass, which read utterances whole.

    Raises:
        ConfigError: an unknown split, target or category, splits without utterances, or fewer utterances than ranks or
            partitions in a batch.
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
        categories: Sequence[str] = (),
        votes: bool = False,
        category_map: Mapping[str, str] | None = None,
        encode_text: EncodeText | None = None,
        teacher: TeacherSource | None = None,
        gate: RowGate | None = None,
        augmenter: Augmenter | None = None,
        shuffle: bool = True,
    ) -> None:
        category_map = category_map or {}
        _check_labels(shard_set, targets, categories, category_map, votes=votes)
        max_samples = round(data.max_duration_s * SAMPLE_RATE_HZ) if shuffle else 0
        self.plan = _plan(
            shard_set, splits, batch, data, targets, categories=categories, category_map=category_map, seed=seed,
            shuffle=shuffle, max_samples=max_samples,
        )  # fmt: skip
        # Refuses more ranks than utterances.
        batch.gradient_accumulation_steps(ranks.num_ranks, self.plan.largest_batch)
        skip_damaged = data.on_corrupt == "skip"
        waveform_reader = None
        if max_samples or augmenter is not None:
            waveform_reader = WaveformReader(
                shard_set, seed=seed, max_samples=max_samples, augmenter=augmenter, skip_damaged=skip_damaged
            )
        self._spec = ReadSpec(
            shards=shard_set,
            targets=tuple(targets),
            categories=tuple(categories),
            has_votes=votes,
            category_map=category_map,
            encode_text=encode_text,
            teacher=teacher,
            gate=gate,
            waveform_reader=waveform_reader,
            pad_multiple=pad_multiple(data),
            skip_damaged=skip_damaged,
        )
        self._batch, self._num_ranks, self._num_threads = batch, ranks.num_ranks, data.num_workers
        self._pool: ThreadPoolExecutor | None = None
        self._prefetched: tuple[int, int] | None = None
        self._take_partitions(ranks)
        self._cuts: dict[tuple[int, BatchConfig], Cuts] = {}
        self._shuffle = shuffle
        if shuffle and batch.micro_batch_seconds is not None:
            self._check_longest(shard_set, splits, max_samples)

    def _take_partitions(self, ranks: Ranks) -> None:
        # A node that has partitions of its own cuts what they give among its own ranks.
        nodes = ranks.num_nodes if self.plan.num_partitions % ranks.num_nodes == 0 else 1
        self._peers, self._place = ranks.num_ranks // nodes, ranks.rank % (ranks.num_ranks // nodes)
        per_node = self.plan.num_partitions // nodes
        first = per_node * (ranks.rank // self._peers)
        self.partitions = range(first, first + per_node)
        """The partitions that this rank reads from."""

        self._of_nodes = [range(start, start + per_node) for start in range(0, per_node * nodes, per_node)]

    def use_features(self, features: Mapping[str, FrameSource], *, needs_audio: bool) -> None:
        """Read the features of encoders that were run before, from the next epoch on.

        Args:
            features: by branch of the model; with "text" among them transcripts are not read.
            needs_audio: some other branch takes audio; without, it is not decoded.
        """
        encode_text = None if "text" in features else self._spec.encode_text
        self._spec = replace(self._spec, frames=features, has_audio=needs_audio, encode_text=encode_text)

    @property
    def num_utterances(self) -> int:
        """Utterances of an epoch, over all ranks."""
        return self.plan.num_utterances

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.plan.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[StepBatches]:
        """The steps of ``epoch`` from ``start_step`` on.

        A damaged member raises here, at the step it belongs to; on this rank only, so the caller must make all agree.

        Raises:
            ConfigError: the epoch has no such step.
            ShardError: a member is damaged, and damage stops the run.
            TeacherError: an utterance has no sound teacher output.
            FetchError: a shard cannot be fetched.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps_per_epoch:
            raise ConfigError(
                f"cannot start at epoch {epoch}, step {start_step}: epochs count from 0 and have "
                f"{self.steps_per_epoch} steps."
            )
        return self._steps(epoch, start_step)

    def _steps(self, epoch: int, start_step: int) -> Iterator[StepBatches]:
        """Each step once its micro-batches are read, by threads a few micro-batches ahead if there are any."""
        jobs = self._jobs(epoch, start_step)
        if self._num_threads == 0:
            batches = ((key, read()) for key, read in jobs)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="loader")
            batches = read_ahead(self._pool, jobs, (1 + _BATCHES_AHEAD) * self._num_threads - 1)
        micro_batches: list[Batch] = []
        for (step, is_last), batch in batches:
            micro_batches.append(batch)
            if is_last:
                yield StepBatches(epoch=epoch, step=step, micro_batches=tuple(micro_batches))
                micro_batches = []

    def _jobs(self, epoch: int, start_step: int) -> Iterator[tuple[tuple[int, bool], Callable[[], Batch]]]:
        """Reading jobs of this rank's micro-batches, with the step of each and whether it is the last of that."""
        for step in range(start_step, self.steps_per_epoch):
            self._fetch_ahead(epoch, step // self.plan.window_steps)
            micro_batches = self._micro_batches_of(epoch, step)
            for number, parts in enumerate(micro_batches, 1):
                read = partial(read_batch, parts[self._place], self._spec, epoch)
                yield (step, number == len(micro_batches)), read

    def _micro_batches_of(self, epoch: int, step: int, batch: BatchConfig | None = None) -> list[list[MicroBatch]]:
        """This node's part of one step, by micro-batch and rank; ``batch`` in place of the run's sizes."""
        batch = self._batch if batch is None else batch
        rows = self.plan.global_batch(epoch, step, self.partitions)
        if batch.micro_batch_seconds is None:
            num_micro_batches = batch.gradient_accumulation_steps(self._num_ranks, self.plan.largest_batch)
            return split_global_batch(rows, self._peers, num_micro_batches, batch.micro_batch_size)
        # Micro-batches are as many on all nodes: one that reads its own partitions looks at the others' durations too.
        shares = [
            rows if partitions == self.partitions else self.plan.global_batch(epoch, step, partitions)
            for partitions in self._of_nodes
        ]
        num_micro_batches = choose_num_micro_batches(shares, self._peers, self._limit(shares, batch))
        return split_global_batch(rows, self._peers, num_micro_batches, batch.micro_batch_size, self.longest_of)

    def _limit(self, shares: Sequence[Sequence[SampleRef]], batch: BatchConfig) -> SecondsLimit:
        assert batch.micro_batch_seconds is not None
        max_samples = round(batch.micro_batch_seconds * SAMPLE_RATE_HZ)
        if not self._shuffle:  # an utterance that is scored may be longer, and is then alone
            max_samples = max(max_samples, *(self.longest_of(row.num_samples) for rows in shares for row in rows))
        return SecondsLimit(
            micro=batch.micro_batch_size,
            max_samples=max_samples,
            overhead_samples=max(1, round(batch.micro_batch_overhead_seconds * SAMPLE_RATE_HZ)),
            padded=self.longest_of,
        )

    def _check_longest(self, shard_set: ShardSet, splits: Sequence[str], cap: int) -> None:
        """Raises: ConfigError: an utterance, whose first ``cap`` samples count if not 0, is longer than the limit."""
        max_samples = self._limit((), self._batch).max_samples
        if cap and self.longest_of(cap) <= max_samples:
            return  # the index need not be read
        rows = (shard_set.rows(entry.name) for entry in shard_set.shards_of(splits))
        longest = max(int(of_shard.num_samples.max(initial=0)) for of_shard in rows)
        check_length(self.longest_of(longest), max_samples)

    def _fetch_ahead(self, epoch: int, number: int) -> None:
        """On entering a window, ask for its shards and for those of the next one."""
        if self._prefetched == (epoch, number):
            return
        self._prefetched = (epoch, number)
        names = self._shards_from(epoch, number)
        self._spec.shards.prefetch(names)
        if self._spec.teacher is not None:
            self._spec.teacher.prefetch(names)

    def bytes_at_once(self) -> int:
        """Most bytes that this rank's node needs of a store's shards at a time: those of a window and of the next one.

        Over the first epoch, teacher cache included; 0 when all of it is here. Reads nothing.
        """
        shards, teacher, most = self._spec.shards, self._spec.teacher, 0
        for number in range(self.plan.windows_per_epoch):
            names = self._shards_from(0, number)
            of_teacher = 0 if teacher is None else teacher.bytes_to_fetch(names)
            most = max(most, shards.bytes_to_fetch(names) + of_teacher)
        return most

    def _shards_from(self, epoch: int, number: int) -> list[str]:
        """Names of a window's shards and of the next one's, in the order they are needed."""
        following = (epoch, number + 1) if number + 1 < self.plan.windows_per_epoch else (epoch + 1, 0)
        windows = [self.plan.shards_of_window(*place, self.partitions) for place in ((epoch, number), following)]
        return list(dict.fromkeys(name for window in windows for name in window))

    def cuts(self, epoch: int = 0, *, micro_batch_size: int | None = None) -> Cuts:
        """Micro-batches of an epoch's first window, over all ranks of this node; reads no audio.

        An epoch up to ``data.shuffle_buffer_size`` is one window. Changes of speed are not in it.

        Args:
            micro_batch_size: as if ``batch.micro_batch_size`` were this.
        """
        batch = self._batch
        if micro_batch_size is not None:
            batch = replace(batch, micro_batch_size=micro_batch_size)
        if (epoch, batch) not in self._cuts:
            steps = range(min(self.plan.window_steps, self.steps_per_epoch))
            self._cuts[epoch, batch] = sum_up(self._micro_batches_of(epoch, step, batch) for step in steps)
        return self._cuts[epoch, batch]

    def padding(self, epoch: int) -> float:
        """Share of padding in the audio of all ranks of this node, over the epoch's first window: see ``cuts``."""
        return self.cuts(epoch).padding

    def largest_part(self, micro_batch_size: int) -> MicroBatch:
        """The part with the most padded audio over all ranks of this node and the first window: see ``cuts``."""
        return self.cuts(micro_batch_size=micro_batch_size).largest

    def read_largest(self) -> Batch:
        """The batch of ``largest_part``, as epoch 0 has it.

        Raises:
            ShardError: a member is damaged, and damage stops the run.
            TeacherError: an utterance has no sound teacher output.
            FetchError: a shard cannot be fetched.
        """
        return read_batch(self.largest_part(self._batch.micro_batch_size), self._spec, 0)

    def parts(self, epoch: int, step: int) -> list[list[MicroBatch]]:
        """Micro-batches of a step on this node, by micro-batch and rank; reads no audio."""
        return self._micro_batches_of(epoch, step)

    def longest(self, part: MicroBatch) -> int:
        """Samples to which a part may be padded in any epoch: some utterances are played more slowly."""
        return self.longest_of(part.rows[0].num_samples)

    def longest_of(self, num_samples: int) -> int:
        """Samples that an utterance of so many may take in any epoch, its padding to a multiple included."""
        waveform_reader = self._spec.waveform_reader
        num_samples = num_samples if waveform_reader is None else waveform_reader.longest(num_samples)
        return rounded_up(num_samples, self._spec.pad_multiple)

    def close(self) -> None:
        """Let the threads go. Reading again starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def pad_multiple(data: DataConfig) -> int:
    """Samples of which a padded length is a multiple on this machine; 1 for lengths as they are."""
    return max(1, round(pad_multiple_s(data) * SAMPLE_RATE_HZ))


def pad_multiple_s(data: DataConfig) -> float:
    """``data.pad_multiple_s``, or where it is absent the value for this machine."""
    if data.pad_multiple_s is not None:
        return data.pad_multiple_s
    return _GPU_PAD_MULTIPLE_S if torch.cuda.is_available() else 0.0


def _check_labels(
    shard_set: ShardSet,
    targets: Sequence[str],
    categories: Sequence[str],
    category_map: Mapping[str, str],
    *,
    votes: bool,
) -> None:
    rated = [varied_target(target) or target for target in targets]
    _check_names("target", "a label", rated, shard_set.manifest.targets, shard_set)
    known = shard_set.manifest.categories
    _check_names("model.category_map:", "a category", tuple(category_map), known, shard_set)
    mapped = dict.fromkeys(mapped_category(name, category_map) or "" for name in known)
    known_labels = shard_set.manifest.targets
    if not votes:
        _check_names("category", "a category", categories, tuple(mapped), shard_set)
        return
    kind = 'loss.category_target = "votes" reads labels named as model.categories, with ".share" or without:'
    _check_names(kind, "a label", vote_labels(categories, known_labels), known_labels, shard_set)


def _check_names(kind: str, what: str, names: Sequence[str], known: Sequence[str], shard_set: ShardSet) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{kind} {name!r} is not {what} of the shard set {shard_set.root}. It has: {', '.join(known)}."
            )
