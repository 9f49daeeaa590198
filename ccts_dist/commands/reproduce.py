"""Make a table of results from nothing: ``python launch/reproduce.py --table demo``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.process.invocation import as_started
from ccts_dist.report.command import NUM_UTTERANCES, build_parser, gate_study_of, is_study, reproduction_of, study_of
from ccts_dist.report.demo import run_demo
from ccts_dist.report.gate_study.files import write_results as report_gates
from ccts_dist.report.gate_study.study import run_gate_study
from ccts_dist.report.paper import reproduce
from ccts_dist.report.study.files import write_results
from ccts_dist.report.study.study import run_study


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``ccts_dist/report/command.py`` has the options."""
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    if is_study(args):
        study = study_of(args)
        print("\n" + (write_results(study) if args.report_only else run_study(study)))
    elif args.table == "gate":
        gates = gate_study_of(args)
        print("\n" + (report_gates(gates) if args.report_only else run_gate_study(gates)))
    elif args.table == "demo":  # its run files name this folder
        text = run_demo(Path("demo"), num_utterances=args.utterances or NUM_UTTERANCES, runs=Path("launch/runs/demo"))
        print("\n" + as_started(text))
    else:
        print("\n" + reproduce(reproduction_of(args)))
    return 0


if __name__ == "__main__":
    start("reproduce")
