"""Print the JSON schema of run files."""

import argparse
import sys

from ccts_dist.cli import start
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line: no options."""
    parser = CommandParser(
        description="Print the JSON schema of run files. Editors check keys, types and ranges by it.",
        epilog='example: ccts schema > run.schema.json, and as first line of a run file "#:schema ./run.schema.json":\n'
        "taplo and the editors that use it (Even Better TOML) then complete keys and mark mistakes.\n"
        "exit codes: 0 done, 2 wrong options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print it."""
    parse_args(argv)
    from ccts_dist.config.json_schema import schema_text

    sys.stdout.write(schema_text())
    return 0


if __name__ == "__main__":
    start("schema")
