"""Processes that read files of a store, as the ranks of a machine do: one for each JSON argument, a line from each."""

import hashlib
import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec.config

from ccts_dist.errors import run_main
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.retry import RetryPolicy


@dataclass(frozen=True)
class Listed:
    """A file as a manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


def list_files(folder: Path) -> list[Listed]:
    """What a manifest would state of a folder's files."""
    return [
        Listed(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    ]


def read_all(
    root: str,
    files: list[dict[str, Any]],
    *,
    cache: str,
    cache_bytes: int | None = None,
    rounds: int = 1,
    seed: int | None = None,
    ahead: bool = False,
    retry_policy: dict[str, Any] | None = None,
    env: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """Read every file so many times, checking every byte; the statistics."""
    for name, value in (env or {}).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    fsspec.config.set_conf_env(fsspec.config.conf)  # as when it was imported
    listed = [Listed(**file) for file in files]
    store = open_store(
        root, cache=Path(cache), cache_bytes=cache_bytes, retry_policy=RetryPolicy(**(retry_policy or {}))
    )
    for number in range(rounds):
        if seed is not None:
            random.Random(f"{seed} {number}").shuffle(listed)
        if ahead:
            store.prefetch(listed)
        for file in listed:
            with store.opened(file) as descriptor:
                data = os.pread(descriptor, file.size_bytes + 1, 0)
            assert hashlib.sha256(data).hexdigest() == file.sha256, file.name
    store.close()
    return asdict(store.statistics)


def main(argv: list[str] | None = None) -> int:
    """One reader in this process; of several, each in a process of its own."""
    readers = [json.loads(text) for text in argv or sys.argv[1:]]
    if len(readers) == 1:
        sys.stdout.write(json.dumps(read_all(**readers[0])) + "\n")  # whole, beside others' lines
        sys.stdout.flush()
        return 0
    import s3fs  # noqa: F401  # once for all

    children = []
    for reader in readers:
        if (child := os.fork()) == 0:
            os._exit(run_main(lambda _, reader=reader: main([json.dumps(reader)])))
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
