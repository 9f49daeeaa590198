"""The program ``ccts``: one command per program of ``launch/`` and ``shards/``, and two about shipped files."""

import difflib
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from ccts_dist import __version__
from ccts_dist.errors import exit_without_teardown, run_main
from ccts_dist.process.invocation import PROGRAM


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the program; ``ccts_dist.commands`` has the module of its name."""

    summary: str
    on_ranks: bool = False
    """Runs on all ranks that a launcher starts."""

    leaves: bool = False
    """Ends without taking the interpreter apart, as all that run on ranks do."""


GROUPS = {
    "shard sets": {
        "build": Command("build a shard set from a corpus"),
        "transcribe": Command("transcribe a corpus by a speech recognition model"),
        "check": Command("find damage in a shard set or a teacher cache"),
        "info": Command("print hours, counts and label histograms of a shard set"),
        "merge": Command("merge a shard set and its teacher cache"),
    },
    "training": {
        "init": Command("write a first run file for a shard set"),
        "train": Command("train the model of a run file: text, speech, teacher or student", on_ranks=True),
        "cache-teacher": Command("store a teacher's embeddings and predictions of a shard set", on_ranks=True),
        "sync": Command("send a run's metrics that its tracking server lacks"),
        "compare": Command("find the step at which two runs diverge"),
        "reproduce": Command("run every stage of the demo or of one of the paper's tables"),
    },
    "evaluation": {
        "evaluate": Command("score models on splits, clean or in noise", on_ranks=True),
        "probe": Command("measure the CCC of each encoder layer by linear probes", on_ranks=True),
    },
    "models": {
        "predict": Command("predict activation, valence and dominance of recordings"),
        "serve": Command("serve predictions over HTTP", leaves=True),
        "export": Command("write a student for transformers or ONNX"),
        "push": Command("put a model on Hugging Face's hub"),
        "register": Command("put a model into the MLflow registry, or promote one", on_ranks=True),
    },
    "files": {
        "path": Command("print where a command, run file or ds_config is installed"),
        "schema": Command("print the JSON schema of run files, for editors"),
    },
}
"""Commands under their headings in the help."""

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def module_of(name: str) -> str:
    """Name of a command's module; those of shard sets have a room of their own."""
    room = "shards." if name in GROUPS["shard sets"] else ""
    return f"ccts_dist.commands.{room}{name.replace('-', '_')}"


def start(name: str) -> NoReturn:
    """Run a command with this process's options, and end the process."""
    command = COMMANDS[name]
    module = import_module(module_of(name))
    code = run_main(module.main, on_ranks=command.on_ranks)
    if command.on_ranks or command.leaves:
        exit_without_teardown(code)
    raise SystemExit(code)


def main() -> NoReturn:
    """Run the command that the command line names."""
    # `deepspeed --module ccts_dist train` puts it first; ranks read LOCAL_RANK.
    words = [word for at, word in enumerate(sys.argv[1:]) if at or not word.startswith("--local_rank=")]
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"ccts-dist {__version__}")
        raise SystemExit(0)
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(COMMANDS)}."
        print(f"{PROGRAM}: error: {words[0]!r} is no command. {hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"{PROGRAM} {name}", *words[1:]]
    start(name)


def help_text() -> str:
    """The help of the program, a line per command."""
    lines = [
        f"usage: {PROGRAM} COMMAND [OPTIONS]",
        "",
        "Train speech emotion models by cross-modal conditional teacher-student learning, and use them.",
    ]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:<14}{command.summary}" for name, command in commands.items())]
    lines += [
        "",
        f"{PROGRAM} COMMAND --help describes a command. {PROGRAM} --version prints the version.",
        "On several ranks a launcher starts the command's file:",
        f"  deepspeed --num_gpus 2 $({PROGRAM} path train) RUN.toml",
        "exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped on request with a complete checkpoint",
    ]
    return "\n".join(lines)
