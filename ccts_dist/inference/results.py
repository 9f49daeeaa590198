"""Output of a command: text on stdout or in a file, and embeddings in another file."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from ccts_dist.errors import OutputError
from ccts_dist.inference.embeddings import embedding_file
from ccts_dist.inference.output import GrowingFile, writing
from ccts_dist.inference.rows import RowText


class Results:
    """Takes rows as they come. Use as a context manager: when the block ends well, the files get their names; when it
    does not, they stay as ``NAME.partial``, well-formed, with what came before.

    Args:
        text: the format.
        out: file for it; None for stdout.
        embeddings: file for those, if they are wanted.
        size: numbers in an embedding.
        key_columns: of a row, that name whose embedding it is.

    Raises:
        OutputError: a file cannot be written.
        BrokenPipeError: nobody reads stdout any more.
    """

    def __init__(
        self, text: RowText, out: Path | None, *, embeddings: Path | None, size: int, key_columns: Sequence[str]
    ) -> None:
        self._text = text
        self._out = None if out is None else GrowingFile(out)
        self._key_columns = key_columns
        self._embeddings = None
        if embeddings is not None:
            self._embeddings = embedding_file(embeddings, size=size, columns=key_columns)
        self._write(text.begin())

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for file in self._ended():
                file.complete()
            return
        with suppress(OSError, OutputError):  # what went wrong first is what is reported
            for file in self._ended():
                file.abandon()

    def add(self, row: Mapping[str, Any], embedding: Float32[np.ndarray, " hidden"] | None = None) -> None:
        """One more row, and the embedding that belongs to it."""
        self._write(self._text.row(row))
        if self._embeddings is not None and embedding is not None:
            self._embeddings.add({name: row[name] for name in self._key_columns}, embedding)

    def flush(self) -> None:
        """Let readers see what has come so far."""
        if self._out is None:
            with writing("stdout"):
                sys.stdout.flush()
        else:
            with writing(self._out.path):
                self._out.file.flush()

    def _ended(self) -> list[GrowingFile]:
        self._write(self._text.end())
        self.flush()
        embeddings = [] if self._embeddings is None else self._embeddings.end()
        return [*embeddings, *([] if self._out is None else [self._out])]

    def _write(self, text: str) -> None:
        if self._out is None:
            with writing("stdout"):
                sys.stdout.write(text)
        else:
            with writing(self._out.path):
                self._out.file.write(text.encode())
