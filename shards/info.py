"""Say what a shard set holds: hours, counts, speakers and labels of each split."""

import argparse
import sys
from pathlib import Path

from ccts_dist.errors import run_main
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.statistics import split_statistics

EPILOG = """Reads the index alone, no audio. Exit codes: 0 done; 1 a damaged set; 2 no shard set there."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument("shards", type=Path, metavar="OUT", help="folder of the shard set")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print one block per split."""
    shard_set = open_shard_set(parse_args(argv).shards)
    manifest = shard_set.manifest
    low, high = manifest.scale
    print(f"{manifest.corpus} {manifest.release}, rated {low:g} to {high:g}, digest {shard_set.digest[:12]}")
    if manifest.teacher is not None:
        print(f"carries the outputs of teacher {manifest.teacher.name} ({manifest.teacher.weight_digest[:12]})")
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(manifest.counts.items())))
    for split in manifest.split_names:
        figures = split_statistics(shard_set, split)
        print(
            f"{split}: {figures.num_utterances} utterances, {figures.hours:.2f} h in {figures.num_shards} shards, "
            f"{figures.num_speakers} speakers, {figures.shortest_s:.2f} to {figures.longest_s:.2f} s"
        )
        for target, label in figures.labels.items():
            moments = f"mean {label.mean:.3f}, deviation {label.deviation:.3f}" if label.num_labelled else "no labels"
            print(f"  {target:<12} {moments} on 0..1, {label.num_labelled} labelled")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
