"""The errors of the package, as one small tree.

Every message names what value was met, which rule it breaks and what to do, and names the file, shard or key.
``run_main`` turns a ``CctsError`` into one line on stderr and ``exit_code``; anything else is a bug and keeps its
traceback.
"""

import atexit
import errno
import gc
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ccts_dist.extras import words_for_missing
from ccts_dist.process.account import complete_account
from ccts_dist.process.invocation import as_started
from ccts_dist.process.launched import adopt_launcher
from ccts_dist.process.standard_streams import complete_streams
from ccts_dist.redaction import guard_output

STOPPED = 75
"""Exit code of a run that stopped on request with a complete checkpoint: run it again to go on (EX_TEMPFAIL)."""


CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that turn the direction of text, and bytes that were no UTF-8."""


_SPEAK_S = 10.0
"""Longest time that rank 0 may come later than its peers to what it has to report."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A full file system, a quota, a read-only one: no mistake in what was asked for, so that the exit code is 1."""


class CctsError(Exception):
    """Base of all errors that this library raises on purpose."""

    exit_code = 1


class ConfigError(CctsError):
    """The user's mistake in a run file, an option or a ds_config."""

    exit_code = 2


class LauncherError(ConfigError):
    """Variables of a launcher that cannot be right. Not agreed on: each rank knows its own, and there may be no other
    where variables are left over from a launcher that has gone."""


class PortTakenError(LauncherError):
    """Two jobs that are to meet at the same port. Not agreed on: the ranks have not met."""


class CorpusError(CctsError):
    """A corpus folder that lacks what its layout needs, or too many rejected utterances."""

    exit_code = 2


class ShardError(CctsError):
    """A shard set that is missing, damaged, or of another format version."""


class MissingShardsError(ShardError):
    """No shard set at the place that the user named."""

    exit_code = 2


class FetchError(ShardError):
    """A store that would not give what was asked of it: no damage, so it is never skipped."""


class TeacherError(CctsError):
    """A teacher cache that is missing, incomplete or made for other shards."""

    exit_code = 2


class CheckpointError(CctsError):
    """A checkpoint that is incomplete, altered, or of another run."""


class RegistryError(CctsError):
    """A registered model that cannot be found or is not what its tags state."""


class ExportError(CctsError):
    """An exported model that does not predict what the model itself predicts."""


class RequestError(CctsError):
    """A request to a served model that asks for what it does not give: the fault of whoever sent it."""


class TrackingError(CctsError):
    """A tracking server that does not take what waits for it."""


class TrainingError(CctsError):
    """Training that cannot go on: the loss is not finite step after step."""


class OutputError(CctsError):
    """A run folder that cannot be written any more: full, read-only, or gone."""


class BuildError(CctsError):
    """A library that DeepSpeed compiles at its first start on a host cannot be compiled."""


class PeerLostError(CctsError):
    """Another rank has gone, or does not come. Not agreed on: there is nobody to agree with."""


class OutOfMemoryError(CctsError):
    """A micro-batch that does not fit the memory of a rank. Not agreed on: its peers may wait within the same pass."""


class StopRequested(CctsError):  # noqa: N818 - no fault, but it ends all ranks by the same way
    """Somebody asked for an end; every rank stops at the same step and leaves with ``STOPPED``."""

    exit_code = STOPPED


class StageError(CctsError):
    """A command of a pipeline that failed."""


def run_main(main: Callable[[list[str] | None], int], argv: list[str] | None = None, *, on_ranks: bool = False) -> int:
    """The exit code of a command: what ``main`` returns, or that of the ``CctsError`` it raises.

    The error becomes one line on stderr, of rank 0 alone: errors are agreed on by all ranks, and reported once. Ctrl-C
    becomes one as well; the process then ends by it, so that a shell's loop around the command ends too. A full disk is
    one, with one exit code, whatever met it. Where nobody reads stdout any more (``| head``) the command ends silently.

    Commands import what computes within ``main``, after they have read their options: help and mistakes in options are
    answered at once, and Ctrl-C in the seconds of imports is handled here. From here on no credentials are written to
    stdout or stderr, by whomever.

    Args:
        main: the command.
        argv: its options; None for the process's.
        on_ranks: the command computes on all ranks that a launcher has started, whichever launcher it was.
    """
    complete_streams()
    guard_output()
    complete_account()
    if on_ranks:
        adopt_launcher()
    try:
        _check_working_folder()
        code = _main_with_extras(main, argv)
        sys.stdout.flush()
        return code
    except CctsError as error:
        if isinstance(error, LauncherError) and not is_first_rank():
            _let_rank_0_speak()  # whose launcher then ends this one, unless rank 0 still waits for it
        if is_first_rank() or isinstance(error, PeerLostError | LauncherError):  # rank 0 may be lost
            kind = "" if isinstance(error, StopRequested) else "error: "
            _print(kind + " ".join(str(error).split()))
        elif not isinstance(error, StopRequested):
            _let_rank_0_speak()
        return OutputError.exit_code if is_full(error.__cause__) else error.exit_code
    except BrokenPipeError:
        if not _has_no_reader():
            raise
        end_of_stdout()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            if is_first_rank():
                name = str(error.filename or "a path")
                _print(f"error: {name[:80]}...: is longer than a name or a path may be. Give a shorter one.")
            return ConfigError.exit_code
        if not is_full(error):
            raise
        if is_first_rank():
            _print(_full_in_words(error))
        return OutputError.exit_code
    except KeyboardInterrupt:
        if is_first_rank():
            _print("stopped by Ctrl-C; what was finished is kept")
        sys.excepthook = lambda *_: None  # no traceback, but Python's way of ending by the signal
        raise


def _check_working_folder() -> None:
    """Refuse one that was removed: libraries fail there in words of their own."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working folder is gone or cannot be entered ({error.strerror}). Change to another one."
        ) from error


def end_of_stdout() -> None:
    """Let the process end without a word of its own where stdout takes nothing more (a note on SIGPIPE in Python's
    documentation of ``signal``)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_no_reader() -> bool:
    """True where stdout is a pipe or a socket whose other end is closed."""
    with suppress(OSError):  # one without a number, of a test, is no pipe
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return False


def _main_with_extras(main: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    try:
        return main(argv)
    except ModuleNotFoundError as error:
        if (named := missing_extra(error)) is None:
            raise
        raise named from error


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """The error for a package that an extra installs; None for all others, whose absence is a bug."""
    words = words_for_missing(error.name or "")
    return ConfigError(words) if words else None


def is_full(error: BaseException | None) -> bool:
    """True for what a full or read-only file system raises, by whichever library it is passed on."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return isinstance(error, Exception) and any(words in str(error) for words in map(os.strerror, _FULL))


def _full_in_words(error: Exception) -> str:
    place = getattr(error, "filename", None)
    where = f"{place}: " if place else ""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:300]
    return f"error: {where}cannot be written ({reason}). Make room, or write elsewhere, and run the same command again."


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import a tenth sooner: the garbage collector rests within, since imports leave no garbage.

    It passes over what is there by the end for good, which keeps its passes short while the command works.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def exit_without_teardown(code: int) -> NoReturn:
    """End this process with ``code`` after its exit handlers, without taking the interpreter apart.

    For commands that were in a process group. Threads of gloo may still hold tensors of the last collective; one that
    lets go of them while the interpreter is taken apart makes the process abort, whatever its exit code was to be
    (pytorch issue 190489).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def without_controls(text: str, keep: str = "") -> str:
    r"""The text with control characters written out, as ``\x1b``: a terminal does not act on them.

    Args:
        keep: characters that stay as they are, such as line breaks.
    """
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else escaped(found[0]), text)


def escaped(character: str) -> str:
    r"""A character as ``\x1b`` or ``\u2028``."""
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def is_first_rank() -> bool:
    """True if this process speaks for all: launchers give each its rank."""
    return os.environ.get("RANK", "0") == "0"


def _print(line: str) -> None:
    with suppress(OSError):  # whoever read it has gone; the exit code still reports
        print(without_controls(as_started(line)), file=sys.stderr, flush=True)


def _let_rank_0_speak() -> None:
    """Stay until the launcher ends this rank, or for a while: it ends all as soon as one has left with an error.

    A mistake that is found before the ranks have met may be found by rank 0 last.
    """
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_SPEAK_S)
