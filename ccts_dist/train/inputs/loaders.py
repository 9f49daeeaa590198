"""The loaders of a run."""

from collections.abc import Sequence

from ccts_dist.audio.augment import Augmenter
from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks, gather_objects, run_on_all_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.row_gate import RowGate
from ccts_dist.model.text.tokenizer import Tokenizer
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.stores.remote import check_cache_holds
from ccts_dist.shards.teacher_cache import TeacherCache
from ccts_dist.train.steps.trainable_loss import check_batches


def open_augmenter(run: RunConfig) -> Augmenter | None:
    """The augmentation of the training audio, if the run has any. Every rank must call it.

    Raises:
        ConfigError: on all ranks alike: a folder cannot be read, or hosts have other files in it.
    """
    if run.augment is None:
        return None
    settings = run.augment
    augmenter = run_on_all_ranks(lambda: Augmenter(settings, run.seed))
    if len(set(gather_objects(augmenter.digest))) > 1:
        raise ConfigError(
            "augment.noises and augment.impulse_responses: ranks do not see the same files there. Name folders on "
            "storage that all ranks share, or equal copies of them."
        )
    return augmenter


def open_training_loader(
    run: RunConfig,
    shard_set: ShardSet,
    ranks: Ranks,
    *,
    tokenizer: Tokenizer | None,
    teacher: TeacherCache | None,
    gate: RowGate | None,
    augmenter: Augmenter | None,
) -> Loader:
    """The loader of the training splits, once its batches can be learnt from and a store's shards fit their cache.

    Raises:
        ConfigError: on this rank alone: what ``Loader`` and ``check_batches`` refuse, or a cache that is too small.
    """
    loader = open_loader(
        run, shard_set, run.data.train_splits, ranks, tokenizer=tokenizer, teacher=teacher, gate=gate,
        augmenter=augmenter, shuffle=True,
    )  # fmt: skip
    check_batches(run, loader)
    check_cache_holds(int(run.data.shard_cache_gb * 1e9), loader.bytes_at_once())
    return loader


def open_loader(
    run: RunConfig,
    shard_set: ShardSet,
    splits: Sequence[str],
    ranks: Ranks,
    *,
    tokenizer: Tokenizer | None = None,
    teacher: TeacherCache | None = None,
    gate: RowGate | None = None,
    augmenter: Augmenter | None = None,
    shuffle: bool = False,
) -> Loader:
    """A loader as the run file describes it; in evaluation order unless ``shuffle``."""
    return Loader(
        shard_set,
        splits,
        batch=run.batch,
        data=run.data,
        targets=run.model.targets,
        seed=run.seed,
        ranks=ranks,
        categories=run.model.categories,
        votes=run.loss.category_target == "votes",
        category_map=run.model.category_map,
        encode_text=None if tokenizer is None else tokenizer.encode,
        teacher=teacher,
        gate=gate,
        augmenter=augmenter,
        shuffle=shuffle,
    )
