"""How random the batches of a windowed plan are, against a full shuffle of the same corpus.

A made corpus in the worst order there is: speakers one after the other, labels drifting along the corpus. Measured per
batch, mean over an epoch: different speakers, different shards, the variance of the labels as a share of the corpus's
(what a CCC loss lives on), and how alike neighbouring batches are (correlation of their mean label). A full shuffle is
a window as large as the corpus without sorting by duration.
"""

import argparse

import numpy as np

from ccts_dist.loader.cut import cut
from ccts_dist.loader.plan import Plan
from ccts_dist.shards.index import IndexPlace, ShardRows
from ccts_dist.shards.schema import ShardEntry


class DriftingCorpus:
    """Index rows without files: 50 utterances a speaker, the label's mean moving along the corpus; durations related
    to the label, as they are in speech (r about .3)."""

    digest = "d" * 64

    def __init__(self, num_shards: int, per_shard: int) -> None:
        count = num_shards * per_shard
        draws = np.random.default_rng(0)
        place = np.arange(count) / count
        self.label = 0.5 + 0.15 * np.sin(8 * np.pi * place) + 0.15 * draws.standard_normal(count)
        self.speaker = np.arange(count) // 50
        stretch = np.exp(0.5 * (0.3 * (self.label - 0.5) / self.label.std() + 0.95 * draws.standard_normal(count)))
        self.num_samples = (16_000 * np.clip(4.5 * stretch, 2.0, 11.0)).astype(np.int64)
        self._num_shards, self._per_shard = num_shards, per_shard

    def shards_of(self, _splits: object) -> list[ShardEntry]:
        """All shards."""
        nowhere = IndexPlace(offset=0, size=0, sha256="")
        facts = {"split": "Train", "num_samples": 0, "size_bytes": 0, "sha256": "", "index": nowhere}
        return [
            ShardEntry(name=f"Train-{number:06d}.tar", num_utterances=self._per_shard, **facts)
            for number in range(self._num_shards)
        ]

    def rows(self, shard: str) -> ShardRows:
        """One shard's rows."""
        own = self.own(shard)
        blank = (None,) * self._per_shard
        return ShardRows(
            shard=shard,
            keys=[str(number) for number in range(own.start, own.stop)],
            num_samples=self.num_samples[own],
            labels={},
            speakers=blank,
            genders=blank,
            categories=blank,
            members={},
        )

    def own(self, shard: str) -> slice:
        """The utterances of a shard."""
        first = int(shard[6:12]) * self._per_shard
        return slice(first, first + self._per_shard)


def mixing(corpus: DriftingCorpus, window: int, group: int, batch: int) -> dict[str, float]:
    """The figures of one epoch."""
    plan = Plan(
        corpus, ("Train",), global_utterances=batch, seed=1, window_utterances=window, duration_group=group, streams=1
    )
    speakers, shards, variances, means, padded, real = [], [], [], [], 0, 0
    for step in range(plan.steps_per_epoch):
        rows = plan.global_batch(0, step)
        numbers = np.array([corpus.own(row.shard).start + row.row for row in rows])
        speakers.append(len(set(corpus.speaker[numbers].tolist())) / len(rows))
        shards.append(len({row.shard for row in rows}))
        variances.append(corpus.label[numbers].var(ddof=1))
        means.append(corpus.label[numbers].mean())
        part = cut(rows, 1, 1, batch)[0][0]
        padded, real = padded + part.padded_samples, real + part.real_samples
    return {
        "speakers": float(np.mean(speakers)),
        "shards": float(np.mean(shards)),
        "variance": float(np.mean(variances) / corpus.label.var()),
        "neighbours": float(np.corrcoef(means[:-1], means[1:])[0, 1]),
        "padding": 1 - real / padded,
    }


def main() -> None:
    """One line per window and duration group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--per-shard", type=int, default=3_500, help="utterances (default: 3500, 256 MB of speech)")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    corpus = DriftingCorpus(args.shards, args.per_shard)
    count = args.shards * args.per_shard
    print(f"{count:,} utterances in {args.shards} shards, batches of {args.batch}\n")
    print("| window | duration group | speakers / utterance | shards | label variance | neighbours | padding |")
    print("|-------:|---------------:|---------------------:|-------:|---------------:|-----------:|--------:|")
    plans = [
        (count, 1, "full shuffle, "),
        (count, 32, ""),
        (65_536, 32, "default, "),
        (65_536, 8, ""),
        (16_384, 32, ""),
    ]
    plans += [(4_096, 32, ""), (65_536, count // args.batch, "sorted windows, ")]
    for window, group, name in plans:
        figures = mixing(corpus, window, group, args.batch)
        print(
            f"| {name}{window:,} | {group} | {figures['speakers']:.3f} | {figures['shards']:.1f} "
            f"| {figures['variance']:.3f} | {figures['neighbours']:+.2f} | {figures['padding']:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
