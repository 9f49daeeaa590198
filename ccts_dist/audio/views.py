"""Reading parts of an opened file: at an offset, and as a decoder is to see it."""

import io
import os
from collections.abc import Mapping


class View:
    """A file from an offset on, a few of its bytes replaced. Nothing is copied; it is read by one thread at a time.

    Does not raise where a damaged header sends libsndfile: a callback's exception would be printed and lost.

    Args:
        file: what is read.
        start: offset in it where the view begins.
        patches: bytes that are read in place of the file's own, by offset in the view.
    """

    def __init__(
        self, file: io.BufferedReader | io.BytesIO, *, start: int = 0, patches: Mapping[int, bytes] | None = None
    ) -> None:
        self._file, self._start, self._patches = file, start, dict(patches or {})
        self._size = max(0, file.seek(0, os.SEEK_END) - start)
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; a place before the beginning becomes the beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._size)
        self._at = min(max(0, base + offset), 1 << 62)
        return self._at

    def tell(self) -> int:
        """The place that is read next."""
        return self._at

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer at the end."""
        at = self._at
        if size <= 0 or at >= self._size:
            return b""
        self._file.seek(self._start + at)
        data = self._file.read(min(size, self._size - at))
        self._at += len(data)
        for place, patch in self._patches.items():
            first, last = max(place, at), min(place + len(patch), at + len(data))
            if first < last:
                data = data[: first - at] + patch[first - place : last - place] + data[last - at :]
        return data


Opened = io.BufferedReader | io.BytesIO | View


def read_at(file: Opened, at: int, size: int) -> bytes:
    """So many bytes from an offset on, fewer at the end."""
    if at >= 1 << 62:
        return b""
    file.seek(at)
    return file.read(size)
