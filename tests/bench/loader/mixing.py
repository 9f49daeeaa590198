"""How random the batches of a windowed plan are, against a full shuffle of the same corpus.

A made corpus in the worst order there is: speakers one after the other, labels drifting along the corpus. Measured per
batch, mean over an epoch: different speakers, different shards, the variance of the labels as a share of the corpus's
(what a CCC loss lives on), how alike neighbouring batches are (correlation of their mean label), and the correlation of
label and number of letters, which is 0 in the corpus. A full shuffle is a window as large as the corpus, unsorted.
The second table is the padding of random batches, by how many micro-batches on how many ranks they are cut into.
"""

import argparse

import numpy as np

from ccts_dist.loader.micro_batches import split_global_batch, sum_up
from ccts_dist.loader.sampler import BatchSampler
from ccts_dist.shards.format.index import IndexPlace, ShardRows
from ccts_dist.shards.format.schema import ShardEntry


class DriftingCorpus:
    """Index rows without files: 50 utterances a speaker, the label's mean moving along the corpus.

    The log of the duration correlates by .6 with the number of letters and by -.3 with the label, which makes people
    speak faster. Letters and label are independent.
    """

    digest = "d" * 64

    def __init__(self, num_shards: int, per_shard: int) -> None:
        count = num_shards * per_shard
        draws = np.random.default_rng(0)
        place = np.arange(count) / count
        self.label = 0.5 + 0.15 * np.sin(8 * np.pi * place) + 0.15 * draws.standard_normal(count)
        self.speaker = np.arange(count) // 50
        self.letters = draws.standard_normal(count)
        label = (self.label - self.label.mean()) / self.label.std()
        rest = np.sqrt(1 - 0.6**2 - 0.3**2) * draws.standard_normal(count)
        stretch = np.exp(0.5 * (0.6 * self.letters - 0.3 * label + rest))
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


CUTS = [
    (32, 1, 1), (32, 1, 2), (32, 1, 4), (32, 1, 8), (32, 4, 1), (32, 4, 2),
    (256, 1, 16), (256, 8, 1), (256, 8, 2), (256, 8, 4),
]  # fmt: skip
"""Global batch, ranks, and micro-batches on each rank."""


def mixing(corpus: DriftingCorpus, window: int, group: int, batch: int) -> dict[str, float]:
    """The figures of one epoch."""
    plan = BatchSampler(
        corpus,
        ("Train",),
        global_batch_size=batch,
        seed=1,
        shuffle_buffer_size=window,
        bucket_batches=group,
        partitions=1,
    )
    speakers, shards, variances, means, shortcut, padded, real = [], [], [], [], [], 0, 0
    for step in range(plan.steps_per_epoch):
        rows = plan.global_batch(0, step)
        numbers = np.array([corpus.own(row.shard).start + row.row for row in rows])
        speakers.append(len(set(corpus.speaker[numbers].tolist())) / len(rows))
        shards.append(len({row.shard for row in rows}))
        variances.append(corpus.label[numbers].var(ddof=1))
        means.append(corpus.label[numbers].mean())
        shortcut.append(np.corrcoef(corpus.letters[numbers], corpus.label[numbers])[0, 1])
        part = split_global_batch(rows, 1, 1, batch)[0][0]
        padded, real = padded + part.padded_samples, real + part.real_samples
    return {
        "speakers": float(np.mean(speakers)),
        "shards": float(np.mean(shards)),
        "variance": float(np.mean(variances) / corpus.label.var()),
        "neighbours": float(np.corrcoef(means[:-1], means[1:])[0, 1]),
        "shortcut": float(np.mean(shortcut)),
        "padding": 1 - real / padded,
    }


def padding(corpus: DriftingCorpus, batch: int, ranks: int, num_micro_batches: int) -> float:
    """Share of padding in random batches that are cut into so many micro-batches on each rank."""
    plan = BatchSampler(
        corpus, ("Train",), global_batch_size=batch, seed=1, shuffle_buffer_size=65_536, bucket_batches=1, partitions=1
    )
    micro = -(-batch // (ranks * num_micro_batches)) * 4
    steps = (
        split_global_batch(plan.global_batch(0, step), ranks, num_micro_batches, micro)
        for step in range(plan.steps_per_epoch)
    )
    return sum_up(steps).padding


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
    print(
        "| window | duration group | speakers / utterance | shards | label variance | neighbours "
        "| r(letters, label) | padding |"
    )
    print(
        "|-------:|---------------:|---------------------:|-------:|---------------:|-----------:|------------------:|--------:|"
    )
    plans = [
        (count, 1, "full shuffle, "),
        (65_536, 1, "default, "),
        (16_384, 1, ""),
        (4_096, 1, ""),
        (65_536, 2, ""),
        (65_536, 4, ""),
        (65_536, 32, ""),
        (65_536, count // args.batch, "sorted windows, "),
    ]
    for window, group, name in plans:
        figures = mixing(corpus, window, group, args.batch)
        print(
            f"| {name}{window:,} | {group} | {figures['speakers']:.3f} | {figures['shards']:.1f} "
            f"| {figures['variance']:.3f} | {figures['neighbours']:+.2f} | {figures['shortcut']:+.2f} "
            f"| {figures['padding']:.1%} |",
            flush=True,
        )
    print("\n| global batch | ranks | micro-batches on each | utterances in one | padding |")
    print("|-------------:|------:|----------------------:|------------------:|--------:|")
    for batch, ranks, num_micro_batches in CUTS:
        share = padding(corpus, batch, ranks, num_micro_batches)
        print(
            f"| {batch} | {ranks} | {num_micro_batches} | about {batch // (ranks * num_micro_batches)} | {share:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
