"""Score models: ``deepspeed launch/evaluate.py --model MODEL --shards OUT --splits S --out DIR``. See ``--help``."""

import argparse

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.evaluation.options import asked_of, build_parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``ccts_dist/evaluation/options.py`` has the options."""
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    asked = asked_of(parse_args(argv))
    with gc_paused():
        from ccts_dist.distributed import process_group, rank_facts, run_on_all_ranks
        from ccts_dist.evaluation.results import PAGE, beside_of, make_folders, result_in_words, write_results
        from ccts_dist.evaluation.run import run_evaluation
        from ccts_dist.evaluation.submission import write_submission
        from ccts_dist.registry.attach import attach

    with process_group(rank_facts()) as ranks:
        run_on_all_ranks(lambda: make_folders(asked) if ranks.is_first else None)
        result = run_evaluation(asked, ranks)
    if ranks.is_first:
        write_results(asked.out, result, beside_of(asked, result))
        print(result_in_words(result))
        if asked.submission is not None:
            files = write_submission(asked.submission, result.models[0].splits[0].table, result.scale)
            print("submission: " + ", ".join(map(str, files)))
        if asked.log_to_mlflow:
            attach(asked.out / PAGE, result.models[0].pulled, tracking_uri=asked.tracking_uri)
    return 0


if __name__ == "__main__":
    start("evaluate")
