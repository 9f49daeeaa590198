"""How a command was started, for what it writes: by the program ``ccts`` or by its script."""

import argparse
import re
import sys
from collections.abc import Sequence
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


_RENAMED = {
    "--uri": "--tracking-uri", "--picture": "--plot", "--micro": "--batch-size", "--players": "--embed-audio",
    "--track": "--log-to-mlflow", "--collect": "--report-only", "--rows": "--only", "--starter": "--launcher",
    "--wrong": "--corrupt-transcripts", "--normalise": "--normalize",
}  # fmt: skip
"""Old options to new ones, for scripts written before 0.2.0; ``--split`` and the like are read as abbreviations."""


class CommandParser(argparse.ArgumentParser):
    """A command's options; its help names commands as this process was started."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse under today's names of options."""
        return super().parse_known_args(
            [*map(self._present, sys.argv[1:] if args is None else args)], namespace or argparse.Namespace()
        )

    def _present(self, word: str) -> str:
        option, equals, value = word.partition("=")
        known, new = self._option_string_actions, _RENAMED.get(option)
        return new + equals + value if new in known and option not in known else word

    def format_help(self) -> str:
        """The help text."""
        return as_started(super().format_help())
