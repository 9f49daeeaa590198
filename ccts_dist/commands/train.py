"""Train one run: ``deepspeed launch/train.py RUN.toml``. See ``--help``."""

import argparse
import os
import re
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import ConfigError, gc_paused
from ccts_dist.extras import missing_for_training
from ccts_dist.process.invocation import CommandParser
from ccts_dist.train.memory.allocator import prefer_expandable_segments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Train the model that a run file describes: text, speech, teacher or student.",
        epilog="examples:\n  deepspeed --num_gpus 2 launch/train.py launch/runs/demo/teacher.toml\n"
        "  deepspeed launch/train.py RUN.toml optim.learning_rate=1e-4 --resume auto\n"
        "  python launch/train.py RUN.toml --check --ranks 64 --gpu-memory 80 --assume device=a100\n"
        "to stop: SIGTERM or SIGUSR1 to a rank (a launcher passes none on), Ctrl-C, or a file STOP in the run folder\n"
        "exit codes: 0 done; 1 failed; 2 a mistake in the input (named in one line on stderr);\n"
        "  75 stopped on request, with a complete checkpoint: run again with --resume auto to go on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="RUN.toml | a.b=VALUE", help="the run file, and keys to change")
    parser.add_argument("--config", type=Path, metavar="RUN.toml", help="the run file, in place of the first word")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="as a word of this form")
    parser.add_argument("--resume", default="", metavar="auto|PATH", help="go on from the newest checkpoint or this")
    parser.add_argument("--check", action="store_true", help="open everything the run needs, train nothing")
    parser.add_argument("--ranks", type=int, metavar="N", help="with --check: as N ranks would see it")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="with --check: must suffice on each GPU")
    parser.add_argument("--assume", action="append", default=[], metavar="K=V", help="with --ranks: figures of GPUs")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(argv)
    places = [word for word in args.words if not is_setting(word)]
    args.set += (word for word in args.words if is_setting(word))
    if len(places) + (args.config is not None) != 1:
        found = ", ".join([*([f"--config {args.config}"] if args.config else []), *places]) or "none"
        parser.error(f"give one run file, as RUN.toml or --config RUN.toml, not {found}; a key is set by a.b=VALUE")
    args.config = args.config or Path(places[0])
    return args


def is_setting(word: str) -> bool:
    """True for ``a.b=VALUE``; false for the name of a run file, which may have an equals sign in it too."""
    return re.match(r"[\w.\[\]-]+\s*=", word) is not None and not os.path.exists(word)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    prefer_expandable_segments(os.environ)
    with gc_paused():
        from ccts_dist.config import read_run

    run = read_run(args.config, args.set)
    missing = "" if args.check else missing_for_training(backend=run.tracking.backend)
    if missing:
        raise ConfigError(missing)
    with gc_paused():
        from ccts_dist.distributed import process_group, rank_facts
        from ccts_dist.train.resilience.heartbeat import heartbeats_folder
        from ccts_dist.train.run import check, train

    if args.check:
        return check(run, num_ranks=args.ranks, gpu_memory_gb=args.gpu_memory, assume=args.assume)
    records = heartbeats_folder(Path(run.output_dir))
    with process_group(rank_facts(), timeout_s=run.train.comm_timeout_s, nccl_records=records) as ranks:
        train(run, ranks, resume=args.resume)
    if run.tracking.registered_model_name and ranks.is_first:
        from ccts_dist.registry import register  # it takes seconds, and every rank would wait for it

        version = register(
            Path(run.output_dir),
            run.tracking.registered_model_name,
            alias="candidate",
            tracking_uri=run.tracking.tracking_uri,
        )
        print(f"registered models:/{run.tracking.registered_model_name}/{version}, alias candidate")
    return 0


if __name__ == "__main__":
    start("train")
