"""From a run file to everything a training needs, before DeepSpeed is there; also what ``--check`` does."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccts_dist.audio.augment import Augmenter
from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks, run_on_all_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.joined_shards import JoinedShards
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.row_gate import KeysGate, RowGate
from ccts_dist.loader.sampler import BatchSampler
from ccts_dist.losses.category import CategoryTerm
from ccts_dist.model.emotion import EmotionModel, build_model, describe
from ccts_dist.model.text.tokenizer import Tokenizer
from ccts_dist.process.seeds import derive_seed, seed_everything
from ccts_dist.records import Condition
from ccts_dist.scoring.predict_split import Extras
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache
from ccts_dist.tracking.uri import resolve_tracking_uri
from ccts_dist.train.inputs.feature_cache import cache_features
from ccts_dist.train.inputs.loaders import open_augmenter, open_loader, open_training_loader
from ccts_dist.train.inputs.row_gates import open_row_gate
from ccts_dist.train.inputs.shards import evaluation_bins, open_shards, with_extra_shards
from ccts_dist.train.inputs.teacher import distill_terms, open_teacher
from ccts_dist.train.inputs.tokenizer import open_tokenizer
from ccts_dist.train.optim import check_warmup
from ccts_dist.train.resolved import resolved_on_ranks, target_weights
from ccts_dist.train.steps.rounds import describe_micro_batches, warn_of_sorted_batches
from ccts_dist.train.steps.step import Objective
from ccts_dist.train.zero.ds_config import check_calls, open_ds_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One training on one rank, ready for the engine."""

    run: RunConfig
    """With every value that it uses: see ``resolved``."""

    ds_config: Mapping[str, Any]
    """Settings from ``train.deepspeed``."""

    ranks: Ranks
    shard_set: ShardSet
    teacher: TeacherCache | None
    tokenizer: Tokenizer | None
    model: EmotionModel
    loader: Loader
    valid_loader: Loader
    objective: Objective
    augmenter: Augmenter | None
    """Augmenter of the training utterances."""

    extra_shards: tuple[ShardSet, ...] = ()
    """That are trained on as well."""

    gate: RowGate | None = None
    """The gate that decides by keys or transcripts who is distilled; None where residuals do."""

    gate_words: str = ""
    """Effect, for people."""

    @property
    def condition(self) -> Condition | None:
        """Condition that a gate compares residuals with; None without a teacher."""
        return None if self.objective.distill is None else self.objective.distill.condition

    @property
    def plan_digest(self) -> str:
        """Equal digests mean equal batches: of the training plan, of the sounds that are mixed in, if any, and of the
        keys that are distilled, if a file names them."""
        plan, sounds = self.loader.plan.digest, self.augmenter.digest if self.augmenter is not None else ""
        keys = f" {self.gate.digest}" if isinstance(self.gate, KeysGate) else ""
        return hashlib.sha256(f"{plan} {sounds}{keys}".encode()).hexdigest() if sounds or keys else plan

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        steps = self.run.train.epochs * self.loader.steps_per_epoch
        return min(steps, self.run.train.max_steps) if self.run.train.max_steps else steps

    @property
    def extras(self) -> Extras:
        """Scores beside the targets' CCC."""
        return Extras(
            categories=self.run.model.categories,
            category_weight=self.run.loss.category_weight if self.run.model.categories else 0.0,
            votes=self.run.loss.category_target == "votes",
            bins=evaluation_bins(self.run, self.shard_set),
        )

    def test_loader(self, split: str) -> Loader:
        """One of the test splits, in evaluation order."""
        return open_loader(self.run, self.shard_set, (split,), self.ranks, tokenizer=self.tokenizer)

    def close(self) -> None:
        """Let threads go that read or fetch, also those that wait for a store."""
        self.loader.close()
        self.valid_loader.close()
        for one in (self.shard_set, *self.extra_shards):
            one.store.close()
        if self.teacher is not None:
            self.teacher.store.close()

    def derived(self) -> dict[str, str]:
        """Every number that follows from the run file, for people."""
        size = describe(self.model)["model"]
        batch, distill, cuts = self.run.batch, self.objective.distill, self.loader.cuts()
        numbers = {
            "parameters": f"{size.parameters:,}",
            "trained parameters": f"{size.trained:,}",
            "training utterances": f"{self.loader.num_utterances:,}",
            "validation utterances": f"{self.valid_loader.num_utterances:,}",
            **self._sets_in_words(),
            "utterances per step": f"{self.loader.plan.largest_batch}",
            "ranks x micro-batches": f"{self.ranks.num_ranks} x {describe_micro_batches(batch, cuts)}",
            "steps per epoch": f"{self.loader.steps_per_epoch:,}",
            "steps in all": f"{self.total_steps:,}",
            "padding": f"{cuts.padding:.1%}",
            **warn_of_sorted_batches(self.run),
        }
        if distill is not None and self.run.distill is not None and self.run.distill.threshold is not None:
            share = self.run.distill.reject_fraction
            why = f", to leave out {share:.1%}" if share else ""
            kind = "robust " if self.run.distill.residual_scale == "robust" else ""
            of = f" of {', '.join(self.run.distill.gate_targets)}" if self.run.distill.gate_targets else ""
            numbers["threshold"] = f"{distill.threshold:.4f} {kind}standard deviations{of} ({distill.gate}){why}"
        if self.gate_words:
            numbers["gate"] = self.gate_words
        return numbers

    def _sets_in_words(self) -> dict[str, str]:
        """The share of each step that comes from further shard sets."""
        plan = self.loader.plan
        if not self.extra_shards or isinstance(plan, BatchSampler):
            return {}
        pairs = zip(self.run.data.extra_shards, plan.plans[1:], strict=True)
        words = (f"{one.num_utterances:,} of {table.shards}, {one.largest_batch} a step" for table, one in pairs)
        return {"of further shard sets": "; ".join(words)}


def open_experiment(run: RunConfig, ranks: Ranks) -> Experiment:
    """Everything the run needs; fails on all ranks alike. Every rank must call it.

    Raises:
        CctsError: whatever is wrong with run file, shards, cache, encoders or ds_config; see each module of ``inputs``.
    """
    experiment = _open(run, ranks, Path(run.output_dir), here=ranks)
    if run.data.feature_cache:
        cache_features(experiment.run, experiment.model, experiment.tokenizer, experiment.shard_set, ranks).use_in(
            experiment.loader, experiment.valid_loader
        )
    return experiment


@contextmanager
def check_experiment(run: RunConfig, num_ranks: int) -> Iterator[Experiment]:
    """Everything as ``num_ranks`` ranks would open it, without a process group and without touching the run folder."""
    if num_ranks < 1:
        raise ConfigError(f"--ranks {num_ranks}: must be at least 1. Give the number of ranks the run shall have.")
    if "mlflow" in run.tracking.backend:
        resolve_tracking_uri(run.tracking.tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        experiment = _open(run, Ranks(num_ranks=num_ranks), Path(folder), here=Ranks())
        try:
            yield experiment
        finally:
            experiment.close()


def _open(run: RunConfig, ranks: Ranks, folder: Path, *, here: Ranks) -> Experiment:
    """The experiment, its encoders not yet run.

    Args:
        ranks: those that the run is for.
        folder: where a tokenizer that is trained is written.
        here: those that open it, all of which must call this.
    """
    ds_config = run_on_all_ranks(lambda: open_ds_config(run))
    shard_set = run_on_all_ranks(lambda: open_shards(run))
    tokenizer = open_tokenizer(run, shard_set, folder, here)
    teacher = run_on_all_ranks(lambda: open_teacher(run, shard_set, ranks))
    run, condition = resolved_on_ranks(run, teacher, shard_set, here)
    gate, gate_words = open_row_gate(run, shard_set, here)
    augmenter = open_augmenter(run)
    trained = run_on_all_ranks(lambda: with_extra_shards(run, shard_set))
    loader = run_on_all_ranks(
        lambda: open_training_loader(
            run, trained, ranks, tokenizer=tokenizer, teacher=teacher, gate=gate, augmenter=augmenter
        )
    )
    valid_loader = run_on_all_ranks(
        lambda: open_loader(run, shard_set, run.data.valid_splits, ranks, tokenizer=tokenizer)
    )
    experiment = Experiment(
        run=run,
        ds_config=ds_config,
        ranks=ranks,
        shard_set=shard_set,
        teacher=teacher,
        tokenizer=tokenizer,
        model=run_on_all_ranks(lambda: _build_model(run, ds_config, tokenizer)),
        loader=loader,
        valid_loader=valid_loader,
        objective=Objective(
            target_weights=target_weights(run),
            category_weight=run.loss.category_weight,
            category=CategoryTerm(class_weights=run.loss.class_weights, focal_gamma=run.loss.focal_gamma),
            distill=distill_terms(run, teacher, condition),
            scope=run.loss.scope,
        ),
        augmenter=augmenter,
        extra_shards=tuple(one.extra.shard_set for one in trained.extras) if isinstance(trained, JoinedShards) else (),
        gate=gate,
        gate_words=gate_words,
    )
    run_on_all_ranks(lambda: check_warmup(run.optim, experiment.total_steps))
    return experiment


def _build_model(run: RunConfig, ds_config: Mapping[str, Any], tokenizer: Tokenizer | None) -> EmotionModel:
    seed_everything(derive_seed("model", run.seed))
    model = build_model(run.model, vocabulary_size=tokenizer.vocabulary_size if tokenizer else None)
    check_calls(run.train.deepspeed, ds_config, model)
    return model
