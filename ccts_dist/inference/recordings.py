"""Which recordings a command is to process, and how they are called in what it writes."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.corpus.folders import OTHER_SUFFIXES
from ccts_dist.errors import ConfigError

SUFFIXES = frozenset(
    {
        ".16sv", ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".fap", ".flac", ".htk", ".iff",
        ".ircam", ".mat", ".mp1", ".mp2", ".mp3", ".mpc", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64",
        ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav", ".wave", ".wve", ".xi",
    }
)  # fmt: skip
"""How files that libsndfile reads are named, in lower case; raw samples are not among them, for they state no rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A recording that is omitted."""

    name: str
    reason: str
    number: int = -1
    """Number of the recording in the order of the input; -1 for what was no recording."""

    @property
    def in_words(self) -> str:
        """For people, in one line."""
        return f"error: {self.name}: {' '.join(self.reason.split())}. Skipped."


@dataclass(slots=True)
class _PassedOver:
    """Files of a folder that are not decoded."""

    endings: Counter[str]
    linked_folders: int = 0

    def in_words(self) -> str:
        """The counts; "" if there is nothing."""
        counts = [f"{count} {ending}" for ending, count in sorted(self.endings.items())]
        parts = []
        if counts:
            parts.append(
                f"holds recordings that cannot be decoded ({', '.join(counts)}): convert them (ffmpeg -i FILE NEW.flac)"
            )
        if self.linked_folders:
            parts.append(f"holds {self.linked_folders} linked folders, which are not followed: name them as well")
        return "; ".join(parts)


def find_recordings(places: Sequence[str]) -> tuple[list[Path], list[Unreadable]]:
    """The files that were named, and those below the folders that were named, in the order of the names.

    A file is taken whatever its name ends in, and whether it is there or not; in folders, and in folders within them,
    the files that ``SUFFIXES`` knows, sorted. Hidden ones (".x", "._x" of other systems) are passed over, and links to
    folders are not followed. Recordings of other formats and linked folders are counted.

    Returns:
        The files, and folders that hold none, cannot be listed, or hold recordings that are not among the files.

    Raises:
        ConfigError: there is not one file.
    """
    found: list[Path] = []
    empty: list[Unreadable] = []
    for place in places:
        if not os.path.isdir(place):
            found.append(Path(place))
            continue
        before, passed_over = (len(found), len(empty)), _PassedOver(Counter())
        found += _audio_below(place, empty, passed_over)
        if words := passed_over.in_words():
            empty.append(Unreadable(name=shown(place), reason=words))
        if before == (len(found), len(empty)):
            empty.append(Unreadable(name=shown(place), reason="holds no audio file, nor do the folders in it"))
    if not found:
        what = "; ".join(f"{one.name} {one.reason}" for one in empty[:3])
        raise ConfigError(f"nothing to predict: {what}. Name audio files, or folders with audio files in them.")
    return found, empty


def _audio_below(folder: str, unlisted: list[Unreadable], passed_over: _PassedOver) -> Iterator[Path]:
    def note(error: OSError) -> None:
        unlisted.append(Unreadable(name=shown(error.filename), reason=f"cannot be listed ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        passed_over.linked_folders += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        for name in sorted(files):
            ending = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and ending in SUFFIXES:
                yield Path(parent, name)
            elif not name.startswith(".") and ending in OTHER_SUFFIXES:
                passed_over.endings[ending] += 1


def shown(path: str | Path) -> str:
    r"""The path as text that any file can hold; bytes that are no UTF-8 as ``\udcXX``, which ``os.fsencode`` undoes."""
    # Through bytes: in an ASCII locale Python holds every name that is UTF-8 in surrogates too.
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
