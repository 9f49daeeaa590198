"""Files that grow row by row under a name of their own, and take their place when they are whole."""

import ctypes
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from ccts_dist.errors import ConfigError, OutputError
from ccts_dist.files.atomic import sync_folder
from ccts_dist.redaction import RedactedStream


class GrowingFile:
    """A file that is written as ``NAME.partial`` and renamed when it is complete; what stood there is replaced then.

    Left before, it stays as ``NAME.partial``, with what was written.

    Args:
        path: where it goes in the end.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        with writing(path):
            self.file: BinaryIO = open(self.partial, "w+b")  # noqa: SIM115 - closed by complete or abandon

    def complete(self) -> None:
        """Give it its name.

        Raises:
            OutputError: it cannot be written to its end.
        """
        with writing(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Close it as it is.

        Raises:
            OutputError: the rest cannot be written.
        """
        with writing(self.path):
            self.file.close()


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Raise a system error on a file that cannot be written as an error of ours; a reader who has gone is no error.

    Raises:
        OutputError: disk full, rights, a folder that has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be written ({error.strerror}). Make room or name another file, then run it again."
        ) from error


@contextmanager
def only_our_stdout() -> Iterator[None]:
    """Within, stdout is ours alone: what C libraries print to descriptor 1 goes to stderr.

    libsndfile and what it is built on print remarks on damaged files, which would stand amidst the answers.
    """
    before = sys.stdout
    try:
        is_process_stdout = before.fileno() == 1
    except (AttributeError, OSError, ValueError):  # replaced by what is no file, or closed
        is_process_stdout = False
    if not is_process_stdout:
        yield
        return
    before.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    ours = io.TextIOWrapper(os.fdopen(stdout, "wb"), encoding=before.encoding, errors=before.errors)
    sys.stdout = cast(TextIO, RedactedStream(ours)) if isinstance(before, RedactedStream) else ours
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C holds back would come out at the end, behind our answers
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(stdout, 1)
        with suppress(OSError):
            sys.stdout.close()
        sys.stdout = before


def check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path]) -> None:
    """Refuse places that nothing can be written to, before anything is processed.

    Args:
        outputs: by option.
        inputs: recordings, which are never written to.

    Raises:
        ConfigError: a folder that is not there, a folder in place of a file, a recording, or one file for two things.
    """
    taken = {os.path.abspath(path): "a recording to be processed" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        place = os.path.abspath(path)
        if place in taken:
            raise ConfigError(f"{option} {path}: is {taken[place]}. Name another file.")
        taken[place] = f"what {option} writes"
        if os.path.isdir(place):
            raise ConfigError(f"{option} {path}: is a folder. Name a file in it.")
        if not os.path.isdir(os.path.dirname(place)):
            raise ConfigError(f"{option} {path}: there is no folder {os.path.dirname(path) or '.'}. Make it first.")
