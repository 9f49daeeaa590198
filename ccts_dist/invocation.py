"""How a command was started, for what it writes: by the program ``ccts`` or by its script."""

import argparse
import re
import sys
from pathlib import Path

PROGRAM = "ccts"

_SCRIPT = re.compile(
    r"(?P<launcher>\bdeepspeed (?:--\w+ (?:'[^']*' |[\w.:]+ )?)*)?"
    r"(?:\bpython )?\b(?:launch|shards)/(?P<name>[a-z_]+)\.py\b"
)


def is_program() -> bool:
    """True in a process that was started as ``ccts COMMAND``."""
    return Path(sys.argv[0]).name.startswith(f"{PROGRAM} ")


def as_started(text: str) -> str:
    """The text with commands named as this process was started: ``ccts check`` in place of ``shards/check.py``."""
    return _SCRIPT.sub(_by_program, text) if is_program() else text


def _by_program(script: re.Match[str]) -> str:
    name = script["name"].replace("_", "-")
    # A launcher starts a file, not a program.
    return f"{script['launcher']}$({PROGRAM} path {name})" if script["launcher"] else f"{PROGRAM} {name}"


class CommandParser(argparse.ArgumentParser):
    """A command's options; its help names commands as this process was started."""

    def format_help(self) -> str:
        """The help text."""
        return as_started(super().format_help())
