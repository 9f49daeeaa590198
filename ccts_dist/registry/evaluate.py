"""Scores of a saved model on splits of a shard set."""

from dataclasses import asdict
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
from ccts_dist.train.evaluate import Scores, evaluate


def evaluate_split(
    model_folder: Path,
    shards: str | Path,
    split: str,
    *,
    ranks: Ranks,
    micro_utterances: int = 16,
    workers: int = 1,
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

    Raises:
        ConfigError: no such model folder or split, or the shards lack one of the model's targets.
        ShardError: shards that are absent or damaged.
        CheckpointError: no sound model in the folder.
    """
    if micro_utterances < 1:
        raise ConfigError(f"{micro_utterances} utterances per forward pass: must be at least 1. Give more.")
    loaded = together(lambda: load_model(model_folder))
    targets, tokenizer = loaded.config.targets, loaded.tokenizer
    device = best_device(ranks)
    model = loaded.model.eval().to(device)
    loader = together(
        lambda: Loader(
            open_shard_set(shards),
            (split,),
            batch=BatchConfig(global_utterances=micro_utterances * ranks.num_ranks, micro_utterances=micro_utterances),
            data=DataConfig(shards=str(shards), workers=workers),
            targets=targets,
            seed=0,
            ranks=ranks,
            encode_text=None if tokenizer is None else tokenizer.encode,
            shuffle=False,
        )
    )

    def forward(batch: Batch) -> Any:
        return model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

    weights = (1 / len(targets),) * len(targets)
    try:
        with torch.inference_mode():
            return evaluate(forward, loader, targets, weights, device)
    finally:
        loader.close()


def scores_to_tree(scores: Scores) -> dict[str, Any]:
    """Scores as ``metrics.json`` holds them: figure -> target -> value; null where there is none."""
    return {
        figure: {target: None if one != one else one for target, one in value.items()}
        for figure, value in asdict(scores).items()
        if isinstance(value, dict)
    }


HEADER = ("target", "CCC", "Pearson", "MAE", "labels")
"""Of the rows that ``scores_to_rows`` gives."""


def scores_to_rows(scores: Scores) -> list[tuple[str, str, str, str, int]]:
    """One row per target: name, CCC, Pearson, MAE on 0..1, number of labels."""
    return [
        (
            target,
            f"{scores.ccc[target]:.4f}",
            f"{scores.pearson[target]:.4f}",
            f"{scores.mae[target]:.4f}",
            count,
        )
        for target, count in scores.num_labels.items()
    ]
