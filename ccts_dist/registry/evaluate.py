"""Scores of a saved model on splits of a shard set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ccts_dist.config import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks, best_device, together
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.model import load_model
from ccts_dist.records import Batch
from ccts_dist.shards.read import open_shard_set
from ccts_dist.train.evaluate import Extras, Scores, bin_edges, evaluate


def evaluate_split(
    model_folder: Path,
    shards: str | Path,
    split: str,
    *,
    ranks: Ranks,
    micro_utterances: int = 16,
    workers: int = 1,
    bins: Sequence[float] = (),
) -> Scores:
    """Each utterance of a split predicted once, over all ranks; the same scores on every rank.

    Every rank must call it. Float32, on a GPU if this rank has one.

    Args:
        model_folder: made by ``model.save_model``; may have a text branch.
        shards: folder or address of the shard set.
        split: which of its splits.
        ranks: where this process stands.
        micro_utterances: utterances of one forward pass on one rank.
        workers: threads per rank that read and decode.
        bins: as ``evaluation.bins`` of a run file, on the corpus's scale.

    Raises:
        ConfigError: no such model folder or split, the shards lack one of the model's targets, or bins that do not rise
            within the scale.
        ShardError: shards that are absent or damaged.
        CheckpointError: no sound model in the folder.
    """
    if micro_utterances < 1:
        raise ConfigError(f"{micro_utterances} utterances per forward pass: must be at least 1. Give more.")
    loaded = together(lambda: load_model(model_folder))
    targets, tokenizer = loaded.config.targets, loaded.tokenizer
    device = best_device(ranks)
    model = loaded.model.eval().to(device)
    shard_set = together(lambda: open_shard_set(shards))
    edges = together(lambda: bin_edges(bins, shard_set.manifest.scale, source="--bins"))
    known = set(loaded.config.categories) <= set(shard_set.manifest.categories)
    categories = loaded.config.categories if known else ()
    loader = together(
        lambda: Loader(
            shard_set,
            (split,),
            batch=BatchConfig(global_utterances=micro_utterances * ranks.num_ranks, micro_utterances=micro_utterances),
            data=DataConfig(shards=str(shards), workers=workers),
            targets=targets,
            seed=0,
            ranks=ranks,
            categories=categories,
            encode_text=None if tokenizer is None else tokenizer.encode,
            shuffle=False,
        )
    )

    def forward(batch: Batch) -> Any:
        return model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

    weights = (1 / len(targets),) * len(targets)
    try:
        with torch.inference_mode():
            extras = Extras(categories=categories, bins=edges, spearman=True)
            return evaluate(forward, loader, targets, weights, device, extras=extras)
    finally:
        loader.close()
