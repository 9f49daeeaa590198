"""From a run file to everything a training needs, before DeepSpeed is there; also what ``--check`` does."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccts_dist.audio.augment import Augmenter
from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks, derive_seed, gather_objects, run_on_all_ranks, seed_everything
from ccts_dist.errors import ConfigError, FetchError, ShardError, TeacherError
from ccts_dist.loader.decode import read_transcript
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.row_gate import KeysGate, RowGate
from ccts_dist.losses.category import CategoryTerm
from ccts_dist.model.emotion import EmotionModel, build_model, describe
from ccts_dist.model.text.tokenizer import PIECES, Tokenizer, load_tokenizer, train_tokenizer
from ccts_dist.records import Condition
from ccts_dist.scoring.predict_split import Extras, bin_edges
from ccts_dist.shards.feature_cache import FrameCache
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.stores.remote import check_cache_holds
from ccts_dist.shards.teacher_cache import TeacherCache, open_merged_teacher, open_teacher_cache
from ccts_dist.tracking.uri import resolve_tracking_uri
from ccts_dist.train.checkpoints.checkpoint import checkpoints_folder
from ccts_dist.train.distilling import check_fit, distill_terms
from ccts_dist.train.feature_cache import keep_frames, needs_no_audio
from ccts_dist.train.optim import check_warmup
from ccts_dist.train.resilience.storage_errors import writing
from ccts_dist.train.resolved import resolved_on_ranks, target_weights
from ccts_dist.train.row_gates import open_row_gate
from ccts_dist.train.steps.rounds import describe_micro_batches, warn_of_sorted_batches
from ccts_dist.train.steps.step import Objective
from ccts_dist.train.steps.trainable_loss import check_batches, check_labels
from ccts_dist.train.zero.ds_config import check_calls, check_compiled, check_ds_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One training on one rank, ready for the engine."""

    run: RunConfig
    ranks: Ranks
    shard_set: ShardSet
    teacher: TeacherCache | None
    tokenizer: Tokenizer | None
    model: EmotionModel
    loader: Loader
    valid_loader: Loader
    objective: Objective
    augmenter: Augmenter | None
    """Of the training utterances."""

    gate: RowGate | None = None
    """The gate that decides by keys or transcripts who is distilled; None where residuals do."""

    gate_words: str = ""
    """What it does, for people."""

    @property
    def condition(self) -> Condition | None:
        """What a gate compares residuals with; None without a teacher."""
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
        """What is scored beside the targets' CCC."""
        return Extras(
            categories=self.run.model.categories,
            category_weight=self.run.loss.category_weight if self.run.model.categories else 0.0,
            bins=_bins(self.run, self.shard_set),
        )

    def test_loader(self, split: str) -> Loader:
        """One of the test splits, in evaluation order."""
        return open_loader(self.run, self.shard_set, (split,), self.tokenizer, None, self.ranks, training=False)

    def close(self) -> None:
        """Let threads go that read or fetch, also those that wait for a store."""
        self.loader.close()
        self.valid_loader.close()
        self.shard_set.store.close()
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


def open_experiment(run: RunConfig, ranks: Ranks) -> Experiment:
    """Everything the run needs; fails on all ranks alike. Every rank must call it.

    Raises:
        CctsError: whatever is wrong with run file, shards, cache, encoders or ds_config; see design of each.
    """
    shard_set = run_on_all_ranks(lambda: _open_shards(run))
    run_on_all_ranks(lambda: _train_tokenizer(run, shard_set, Path(run.output_dir)) if ranks.is_first else None)
    session = run_on_all_ranks(lambda: _build(run, shard_set, ranks, Path(run.output_dir)))
    _agree_on_sounds(session)
    return _with_frames(_with_resolved_run(session, ranks))


@contextmanager
def check_experiment(run: RunConfig, num_ranks: int) -> Iterator[Experiment]:
    """Everything as ``num_ranks`` ranks would open it, without a process group and without touching the run folder."""
    if num_ranks < 1:
        raise ConfigError(f"--ranks {num_ranks}: must be at least 1. Give how many ranks the run shall have.")
    if run.tracking.backend == "mlflow":
        resolve_tracking_uri(run.tracking.tracking_uri)
    shard_set = _open_shards(run)
    ranks = Ranks(num_ranks=num_ranks)
    with tempfile.TemporaryDirectory() as folder:
        _train_tokenizer(run, shard_set, Path(folder))
        session = _build(run, shard_set, ranks, Path(folder))
        try:
            yield _with_resolved_run(session, Ranks())
        finally:
            session.close()


def _agree_on_sounds(session: Experiment) -> None:
    """Raises: ConfigError, on all ranks alike, when hosts have other files in the folders of [augment]."""
    if session.augmenter is None:
        return
    if len(set(gather_objects(session.augmenter.digest))) > 1:
        session.close()
        raise ConfigError(
            "augment.noises and augment.impulse_responses: ranks do not see the same files there. Name folders on "
            "storage that all ranks share, or equal copies of them."
        )


def _open_shards(run: RunConfig) -> ShardSet:
    """The shard set, once its splits and labels can carry the run; also the checks that need nothing more."""
    check_compiled(run)
    check_ds_config(run)
    shard_set = open_shard_set(run.data.shards, **_cache_of(run))
    shard_set.shards_of(run.data.test_splits)
    _bins(run, shard_set)
    check_labels(run, shard_set)
    return shard_set


def _bins(run: RunConfig, shard_set: ShardSet) -> tuple[float, ...]:
    return bin_edges(run.evaluation.bins, shard_set.manifest.scale, source="evaluation.bins")


def _cache_of(run: RunConfig) -> dict[str, Any]:
    """Where shards of a store are kept on this node."""
    data = run.data
    return {
        "cache": Path(data.shard_cache) if data.shard_cache else None,
        "cache_bytes": int(data.shard_cache_gb * 1e9),
    }


def _build(run: RunConfig, shard_set: ShardSet, ranks: Ranks, output: Path) -> Experiment:
    teacher = _open_teacher(run, shard_set, ranks)
    tokenizer = _open_tokenizer(run, output)
    seed_everything(derive_seed("model", run.seed))
    augmenter = Augmenter(run.augment, run.seed) if run.augment is not None else None
    loader = open_loader(run, shard_set, run.data.train_splits, tokenizer, teacher, ranks, augmenter, training=True)
    check_batches(run, loader)
    check_cache_holds(int(run.data.shard_cache_gb * 1e9), loader.bytes_at_once())
    model = build_model(run.model, vocabulary_size=tokenizer.vocabulary_size if tokenizer else None)
    check_calls(Path(run.train.deepspeed), model)
    session = Experiment(
        run=run,
        ranks=ranks,
        shard_set=shard_set,
        teacher=teacher,
        tokenizer=tokenizer,
        model=model,
        loader=loader,
        valid_loader=open_loader(run, shard_set, run.data.valid_splits, tokenizer, None, ranks, training=False),
        augmenter=augmenter,
        objective=Objective(
            target_weights=target_weights(run),
            category_weight=run.loss.category_weight,
            category=CategoryTerm(class_weights=run.loss.class_weights, focal_gamma=run.loss.focal_gamma),
            distill=distill_terms(run, teacher),
            scope=run.loss.scope,
        ),
    )
    check_warmup(run.optim, session.total_steps)
    return session


def open_loader(
    run: RunConfig,
    shard_set: ShardSet,
    splits: Sequence[str],
    tokenizer: Tokenizer | None,
    teacher: TeacherCache | None,
    ranks: Ranks,
    augmenter: Augmenter | None = None,
    *,
    gate: RowGate | None = None,
    frames: Mapping[str, FrameCache] | None = None,
    training: bool,
) -> Loader:
    """A loader as the run file describes it."""
    reads_text = tokenizer is not None and "text" not in (frames or {})
    return Loader(
        shard_set,
        splits,
        batch=run.batch,
        data=run.data,
        targets=run.model.targets,
        seed=run.seed,
        ranks=ranks,
        categories=run.model.categories,
        encode_text=tokenizer.encode if tokenizer is not None and reads_text else None,
        teacher=teacher,
        gate=gate,
        frames=frames,
        has_audio=not (frames and needs_no_audio(run)),
        augmenter=augmenter,
        shuffle=training,
    )


def _open_teacher(run: RunConfig, shard_set: ShardSet, ranks: Ranks) -> TeacherCache | None:
    if run.distill is None:
        return None
    if run.data.teacher_cache == "merged":
        teacher = open_merged_teacher(shard_set)
    else:
        teacher = open_teacher_cache(run.data.teacher_cache, shard_set, **_cache_of(run))
    if tuple(teacher.targets) != run.model.targets:
        raise TeacherError(
            f"data.teacher_cache = {run.data.teacher_cache!r} predicts {list(teacher.targets)}, model.targets is "
            f"{list(run.model.targets)}: must be the same, in this order. Change model.targets or the teacher."
        )
    if teacher.embedding_size != run.model.embedding_dim:
        raise TeacherError(
            f"data.teacher_cache = {run.data.teacher_cache!r} has embeddings of {teacher.embedding_size}, "
            f"model.embedding_dim is {run.model.embedding_dim}: must be equal. Set model.embedding_dim = "
            f"{teacher.embedding_size}."
        )
    check_fit(run, teacher, shard_set)
    shards = shard_set.shards_of(run.data.train_splits)
    teacher.check_outputs([shard.name for shard in shards][ranks.rank :: ranks.num_ranks])
    return teacher


def _with_resolved_run(session: Experiment, ranks: Ranks) -> Experiment:
    """The session whose run, objective and loader have the gate that is used; every rank must call it."""
    run, condition = resolved_on_ranks(session.run, session.teacher, session.shard_set, ranks)
    distill = session.objective.distill
    if distill is None or run.distill is None or condition is None:
        return replace(session, run=run)
    threshold = distill.threshold if run.distill.threshold is None else run.distill.threshold
    objective = replace(session.objective, distill=replace(distill, condition=condition, threshold=threshold))
    session = replace(session, run=run, objective=objective)
    gate, words = open_row_gate(run, session.shard_set, ranks)
    if gate is None:
        return session
    loader = run_on_all_ranks(lambda: _training_loader(replace(session, gate=gate), None))
    session.loader.close()
    return replace(session, gate=gate, gate_words=words, loader=loader)


def _training_loader(session: Experiment, frames: Mapping[str, FrameCache] | None) -> Loader:
    splits, of = session.run.data.train_splits, (session.tokenizer, session.teacher, session.ranks, session.augmenter)
    return open_loader(session.run, session.shard_set, splits, *of, gate=session.gate, frames=frames, training=True)


def _with_frames(session: Experiment) -> Experiment:
    """The session whose loaders give the frames of frozen encoders, if its run keeps them; every rank must call it."""
    run, shard_set, ranks = session.run, session.shard_set, session.ranks
    if not run.data.feature_cache:
        return session
    cached = keep_frames(run, session.model, session.tokenizer, shard_set, ranks)

    splits = run.data.valid_splits
    train = run_on_all_ranks(lambda: _training_loader(session, cached))
    valid = run_on_all_ranks(
        lambda: open_loader(run, shard_set, splits, session.tokenizer, None, ranks, frames=cached, training=False)
    )
    return replace(session, loader=train, valid_loader=valid)


def _train_tokenizer(run: RunConfig, shard_set: ShardSet, output: Path) -> None:
    """Train the small text encoder's SentencePiece model on the training transcripts; on rank 0.

    One that is there is kept once the run has a checkpoint; before, it may be of a start that failed.
    """
    text = run.model.text
    folder = output / "tokenizer"
    if text is None or text.encoder != "scratch":
        return
    if (folder / PIECES).is_file() and any(checkpoints_folder(output).glob("step-*")):
        return
    transcripts = list(_transcripts(run, shard_set))
    if not any(transcripts):
        raise ConfigError(
            f"{shard_set.root}: no utterance of {list(run.data.train_splits)} has a transcript, and [model.text] needs "
            "them. Build the shards with transcripts, or leave [model.text] out."
        )
    with writing(folder):
        train_tokenizer(transcripts, text, folder)


def _transcripts(run: RunConfig, shard_set: ShardSet) -> Iterator[str]:
    """Of the training splits; those that are damaged are left out if the run skips them, and counted by its loader."""
    for shard in shard_set.shards_of(run.data.train_splits):
        rows = shard_set.rows(shard.name)
        for row in range(len(rows)):
            try:
                yield read_transcript(shard_set, rows, row)
            except ShardError as error:
                if run.data.on_corrupt != "skip" or isinstance(error, FetchError):
                    raise


def _open_tokenizer(run: RunConfig, output: Path) -> Tokenizer | None:
    text = run.model.text
    if text is None:
        return None
    folder = str(output / "tokenizer") if text.encoder == "scratch" else text.encoder
    return load_tokenizer(folder, max_tokens=text.max_tokens)
