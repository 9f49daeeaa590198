"""The table of a split's utterances, from what each rank has predicted of it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.batches import Batch
from ccts_dist.distributed import gather_objects, run_on_all_ranks
from ccts_dist.loader.decode import read_raters
from ccts_dist.records import SAMPLE_RATE_HZ, mapped_category
from ccts_dist.scoring.prediction_table import PredictionTable, RaterColumns
from ccts_dist.shards.shard_set import ShardSet


class PredictionCollector:
    """Collector of this rank's predictions over a split, row by row.

    Args:
        targets: names of the predictions' columns.
        categories: names of the model's categories; none are kept without.
        category_map: names that categories of the shards have among these, as in ``model.category_map``.
    """

    def __init__(
        self, targets: Sequence[str], categories: Sequence[str] = (), category_map: Mapping[str, str] | None = None
    ) -> None:
        self._targets, self._categories, self._category_map = tuple(targets), tuple(categories), category_map or {}
        self._keys: list[str] = []
        self._numbers: list[np.ndarray] = []
        self._likeliest: list[int] = []

    def add(self, batch: Batch, prediction: Tensor, num_words: Tensor, categories: Tensor | None = None) -> None:
        """One batch: predictions on 0..1, how many words each transcript has, and each category's log-odds."""
        counts = (batch.weight > 0).cpu()
        self._keys += [key for key, keep in zip(batch.keys, counts.tolist(), strict=True) if keep]
        columns = [one.detach().double().cpu()[counts] for one in (prediction, batch.labels, num_words[:, None])]
        self._numbers.append(torch.cat(columns, dim=1).numpy())
        if categories is not None and self._categories:
            self._likeliest += categories.argmax(dim=1).cpu()[counts].tolist()

    def table(self, shard_set: ShardSet, split: str, *, raters: bool = False) -> PredictionTable:
        """All ranks' rows in the order of the shards, the same on every rank. Every rank must call it.

        Args:
            shard_set: that the batches come from.
            split: theirs.
            raters: whether each rank also reads the raters of what it predicted.

        Raises:
            ShardError: the index cannot be read, or an utterance's raters.
        """
        width = 2 * len(self._targets) + 1
        own = np.concatenate([np.zeros((0, width)), *self._numbers])
        if raters:
            own = np.concatenate([own, run_on_all_ranks(lambda: self._raters(shard_set, split))], axis=1)
        theirs = gather_objects((self._keys, own, self._likeliest))
        numbers = np.concatenate([rows for _, rows, _ in theirs])
        likeliest = [number for _, _, category in theirs for number in category]
        places = {key: place for place, key in enumerate(key for keys, _, _ in theirs for key in keys)}
        known = run_on_all_ranks(lambda: _index_of(shard_set, split))
        order = [place for place, row in enumerate(known) if row[0] in places]
        taken = [places[known[place][0]] for place in order]
        keys, speakers, genders, categories, num_samples = zip(*(known[place] for place in order), strict=True)
        predictions, labels, num_words, spread = np.split(numbers[taken].T, [len(self._targets), width - 1, width])
        return PredictionTable(
            targets=self._targets,
            keys=keys,
            speakers=speakers,
            genders=genders,
            duration_s=np.array(num_samples, np.float64) / SAMPLE_RATE_HZ,
            num_words=num_words[0].astype(np.int64),
            labels=labels.T,
            predictions=predictions.T,
            categories=tuple(mapped_category(one, self._category_map) for one in categories) if likeliest else (),
            predicted_categories=tuple(self._categories[likeliest[place]] for place in taken) if likeliest else (),
            known_categories=self._categories if likeliest else (),
            raters=_known_raters(spread),
        )

    def _raters(self, shard_set: ShardSet, split: str) -> Float64[np.ndarray, "rows more"]:
        """Variance of each target's raters, and their number, of this rank's rows."""
        places = {key: place for place, key in enumerate(self._keys)}
        spread = np.full((len(places), len(self._targets) + 1), np.nan)
        for shard in shard_set.shards_of((split,)):
            rows = shard_set.rows(shard.name)
            for row, key in enumerate(rows.keys):
                if key in places:
                    variance, count = read_raters(shard_set, rows, row)
                    spread[places[key]] = [*(variance.get(target, np.nan) for target in self._targets), count]
        return spread


def _known_raters(spread: Float64[np.ndarray, "more rows"]) -> RaterColumns | None:
    """Variances of the rows of ``PredictionCollector._raters``, turned; None where no variance is known."""
    if not np.isfinite(spread[:-1]).any():
        return None
    return RaterColumns(variance=spread[:-1].T, count=spread[-1].astype(np.int64))


def _index_of(shard_set: ShardSet, split: str) -> list[tuple[str, str | None, str | None, str | None, int]]:
    """Key, speaker, gender, category and number of samples of each utterance of a split."""
    found = []
    for shard in shard_set.shards_of((split,)):
        rows = shard_set.rows(shard.name)
        found += zip(rows.keys, rows.speakers, rows.genders, rows.categories, rows.num_samples.tolist(), strict=True)
    return found
