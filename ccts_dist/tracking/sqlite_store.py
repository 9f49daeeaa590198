"""MLflow's SQLite file, made whole or not at all: MLflow itself makes its tables in place, one migration after another.

Processes that do so at once ruin each other's file, and one that is killed meanwhile leaves a file that no later one
can open.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccts_dist.files.locking import lock
from ccts_dist.tracking.uri import artifact_root, sqlite_uri


def is_store(file: Path) -> bool:
    """True unless the file is absent or empty, as one is left by a process that was killed before its first table."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def make_store(file: Path) -> None:
    """Make MLflow's tables in a new SQLite file; nothing if there is one. Any number of processes may do so at once.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    if is_store(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(file.parent):
        if is_store(file):
            return
        unfinished = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
        try:
            _make_tables(unfinished, file)
            _give_name(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


def _make_tables(unfinished: Path, file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished.unlink(missing_ok=True)
    store = SqlAlchemyStore(sqlite_uri(unfinished), artifact_root(file).as_uri())
    store.engine.dispose()
    SqlAlchemyStore._engine_map.pop(store.db_uri, None)


def _give_name(unfinished: Path, file: Path) -> None:
    """Rename, unless another process was faster; such a file may hold runs already."""
    if not is_store(file):
        file.unlink(missing_ok=True)
    try:
        os.link(unfinished, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not is_store(file):
            unfinished.rename(file)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that make a store in the folder; a file system without locks lets each make one."""
    place = os.open(folder, os.O_RDONLY)
    try:
        lock(place, wait=True)
        yield
    finally:
        os.close(place)
