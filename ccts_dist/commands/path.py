"""Print where a command, run file or ds_config is installed."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from ccts_dist.cli import COMMANDS, module_of, start
from ccts_dist.errors import ConfigError
from ccts_dist.process.invocation import CommandParser
from ccts_dist.shipped import FOLDER, find_shipped


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Print where a command, run file or ds_config is installed; without NAME the folder of all "
        "shipped run files and ds_configs.",
        epilog="examples:\n"
        "  deepspeed --num_gpus 2 $(ccts path train) --config demo/teacher.toml\n"
        "  torchrun --nproc_per_node 2 $(ccts path evaluate) --model MODEL --shards SHARDS --splits Test1 --out DIR\n"
        "  cp $(ccts path demo/cts.toml) mine.toml\n"
        "exit codes: 0 done, 2 no such name",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as train, demo/cts.toml or zero3.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print it."""
    name = parse_args(argv).name
    print(FOLDER if name is None else installed_path(name))
    return 0


def installed_path(name: str) -> Path:
    """The file of a command, run file or ds_config.

    Raises:
        ConfigError: there is none of that name.
    """
    if name.replace("_", "-") in COMMANDS:
        spec = find_spec(module_of(name.replace("_", "-")))
        assert spec is not None, "each command has a module"
        return Path(str(spec.origin))
    found = find_shipped(Path(name))
    if found is None:
        raise ConfigError(f"{name!r}: no command, and no shipped file. ls -R $(ccts path) lists those.")
    return found


if __name__ == "__main__":
    start("path")
