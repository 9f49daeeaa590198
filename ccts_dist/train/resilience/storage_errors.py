"""Storage failures in a training: an error that all ranks can share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ccts_dist.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a full, read-only or vanished storage raises into an error that all ranks can share.

    Raises:
        OutputError: names ``path`` and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"{path}: cannot be written or read back: {reason}. Training stops; checkpoints that are complete stay. "
            "Free space or make the folder writable again, and run the same command with --resume auto."
        ) from error
