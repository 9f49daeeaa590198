"""A saved model on splits of a shard set: its scores, and its prediction for each utterance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ccts_dist.audio.augment import Augmenter
from ccts_dist.batches import Batch
from ccts_dist.config import AugmentConfig, BatchConfig, DataConfig
from ccts_dist.distributed import Ranks, best_device, run_on_all_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.model import load_model
from ccts_dist.records import mapped_category
from ccts_dist.scoring import Gate, PredictionCollector, PredictionTable, gate_from
from ccts_dist.scoring.predict_split import Extras, Scores, bin_edges, evaluate
from ccts_dist.shards.shard_set import open_shard_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One split, predicted."""

    scores: Scores
    table: PredictionTable


class Evaluator:
    """A model that predicts each utterance of a split once, over all ranks. Every rank must make one and call it.

    Float32, on a GPU if this rank has one.

    Args:
        model_folder: made by ``model.save_model``; may have a text branch.
        shards: folder or address of the shard set.
        ranks: where this process stands.
        micro_batch_size: utterances of one forward pass on one rank.
        workers: threads per rank that read and decode.
        bins: as ``evaluation.bins`` of a run file, on the corpus's scale.

    Raises:
        ConfigError: no such model folder, or bins that do not rise within the scale.
        ShardError: shards that are absent or damaged.
        CheckpointError: no sound model in the folder.
    """

    def __init__(
        self,
        model_folder: Path,
        shards: str | Path,
        *,
        ranks: Ranks,
        micro_batch_size: int = 16,
        workers: int = 1,
        bins: Sequence[float] = (),
    ) -> None:
        if micro_batch_size < 1:
            raise ConfigError(f"{micro_batch_size} utterances per forward pass: must be at least 1. Give more.")
        loaded = run_on_all_ranks(lambda: load_model(model_folder))
        self.targets: tuple[str, ...] = loaded.config.targets
        self.weights_sha256: str = loaded.digest
        self.gate: Gate = gate_from(loaded.extra)
        self.is_text_only: bool = loaded.config.speech is None
        self._tokenizer, self._ranks = loaded.tokenizer, ranks
        self._device = best_device(ranks)
        self._model = loaded.model.eval().to(self._device)
        self.shard_set = run_on_all_ranks(lambda: open_shard_set(shards))
        self._edges = run_on_all_ranks(lambda: bin_edges(bins, self.shard_set.manifest.scale, source="--bins"))
        of_shards = self.shard_set.manifest.categories
        self._category_map = {name: to for name, to in loaded.config.category_map.items() if name in of_shards}
        known = set(loaded.config.categories) <= {mapped_category(name, self._category_map) for name in of_shards}
        self._categories = loaded.config.categories if known else ()
        if not (self.targets or known):
            raise ConfigError(
                f"{shards}: has utterances of {list(of_shards)}, and the model reports "
                f"{list(loaded.config.categories)} apart and predicts nothing else. Name shards with these categories."
            )
        self._micro, self._workers = micro_batch_size, workers

    def split(
        self, split: str, *, noise: str = "", snr_db: float = 0.0, impulse_responses: str = "", seed: int = 0
    ) -> Evaluation:
        """Scores and predictions, the same on every rank.

        Args:
            noise: mixed into each utterance: "white", "pink", "babble" or a folder of audio; "" for none.
            snr_db: its signal-to-noise ratio.
            impulse_responses: a folder of them, of which each utterance is reverberated by one; "" for none.
            seed: of noise and impulse response, which are drawn for each utterance by its key.

        Raises:
            ConfigError: no such split, the shards lack one of the model's targets, or a noise or an impulse response
                that cannot be used.
            ShardError: a shard is damaged.
        """
        loader = run_on_all_ranks(lambda: self._loader(split, noise, snr_db, impulse_responses, seed))
        predicted = PredictionCollector(self.targets, self._categories, self._category_map)

        def forward(batch: Batch) -> Any:
            assert batch.tokens is not None
            assert batch.num_tokens is not None
            own = (batch.tokens[:, 1:], batch.num_tokens - 1) if self._tokenizer is not None else (None, None)
            output = self._model(batch.audio, batch.num_samples, *own)
            predicted.add(batch, output.prediction, batch.tokens[:, 0], output.categories)
            return output

        weights = (1 / max(1, len(self.targets)),) * len(self.targets)
        extras = Extras(categories=self._categories, bins=self._edges, spearman=True)
        try:
            with torch.inference_mode():
                scores = evaluate(forward, loader, self.targets, weights, self._device, extras=extras)
        finally:
            loader.close()
        return Evaluation(scores=scores, table=predicted.table(self.shard_set, split, raters=not noise))

    def _loader(self, split: str, noise: str, snr_db: float, impulse_responses: str, seed: int) -> Loader:
        augmenter = None
        if noise or impulse_responses:
            noises, rooms = (tuple(filter(None, (one,))) for one in (noise, impulse_responses))
            augmenter = Augmenter(AugmentConfig(noises=noises, snr_db=(snr_db, snr_db), impulse_responses=rooms), seed)
        return Loader(
            self.shard_set,
            (split,),
            batch=BatchConfig(global_batch_size=self._micro * self._ranks.num_ranks, micro_batch_size=self._micro),
            data=DataConfig(shards=str(self.shard_set.root), num_workers=self._workers),
            targets=self.targets,
            seed=0,
            ranks=self._ranks,
            categories=self._categories,
            category_map=self._category_map,
            encode_text=self._counted,
            augmenter=augmenter,
            shuffle=False,
        )

    def _counted(self, transcript: str) -> list[int]:
        """A transcript's number of words, and then its tokens: so the words are counted where they are read."""
        tokens = [] if self._tokenizer is None else self._tokenizer.encode(transcript)
        return [len(transcript.split()), *tokens]
