"""Score a model: ``deepspeed launch/evaluate.py --model MODEL --shards OUT --split S --out DIR``. See ``--help``."""

import argparse
import json
from pathlib import Path

from ccts_dist.distributed import leave, process_group, rank_facts
from ccts_dist.errors import run_main
from ccts_dist.model import weights_digest
from ccts_dist.registry.evaluate import evaluate_split
from ccts_dist.registry.pull import pull_model_on_ranks
from ccts_dist.report.score_tables import scores_to_text
from ccts_dist.shards.read import open_shard_set
from ccts_dist.train.evaluate import scores_to_tree


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--local_rank`` comes from the launcher."""
    parser = argparse.ArgumentParser(
        description="Predict every utterance of a split once and compare with the raters: CCC, Pearson, Spearman, mean "
        "absolute error on 0..1, mean recall of classes between edges (--bins); of categories accuracies and F1.",
        epilog="examples:\n"
        "  python launch/evaluate.py --model runs/student/best --shards data/msp --split Test1 --out runs/student\n"
        "  deepspeed --num_gpus 2 launch/evaluate.py --model models:/emotion@candidate --shards data/msp \\\n"
        "      --split Test1 --split Test2 --out scores\n"
        "exit codes: 0 done, 1 damaged shards or a failing registry, 2 a mistake in what was asked for",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--shards", required=True, metavar="OUT", help="folder or address of the shard set")
    parser.add_argument("--split", action="append", required=True, help="which split; may be repeated")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="metrics.json is written there")
    parser.add_argument("--uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    parser.add_argument("--bins", type=float, nargs="+", default=[], metavar="EDGE", help="also recall: --bins 2 4")
    parser.add_argument("--micro", type=int, default=16, help="utterances per forward pass and rank (%(default)s)")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args, ranks = parse_args(argv), rank_facts()
    with process_group(ranks):
        pulled = pull_model_on_ranks(args.model, ranks, tracking_uri=args.uri)
        folder, micro, splits = pulled.folder, args.micro, {}
        for split in args.split:
            scores = evaluate_split(folder, args.shards, split, ranks=ranks, micro_utterances=micro, bins=args.bins)
            splits[split] = scores_to_tree(scores)
            if ranks.is_first:
                print(f"{split}\n\n{scores_to_text(scores)}\n", flush=True)
    if ranks.is_first:
        args.out.mkdir(parents=True, exist_ok=True)
        shards = open_shard_set(args.shards).digest
        metrics = {"model": pulled.version, "weights": weights_digest(folder), "shards": shards, "splits": splits}
        (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    leave(run_main(main))
