"""Files that grow row by row under a name of their own, and take their place when they are whole."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ccts_dist.errors import ConfigError, OutputError
from ccts_dist.shards.durable import sync_folder


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
            self.file: BinaryIO = open(self.partial, "w+b")  # noqa: SIM115 - closed by complete or leave

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

    def leave(self) -> None:
        """Close it as it is.

        Raises:
            OutputError: the rest cannot be written.
        """
        with writing(self.path):
            self.file.close()


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """What the system says of a file that cannot be written, as an error of ours; a reader who has gone is no error.

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


def check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path]) -> None:
    """Refuse places that nothing can be written to, before anything is heard.

    Args:
        outputs: by option.
        inputs: recordings, which are never written to.

    Raises:
        ConfigError: a folder that is not there, a folder in place of a file, a recording, or one file for two things.
    """
    taken = {os.path.abspath(path): "a recording to be heard" for path in inputs}
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
