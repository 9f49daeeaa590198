"""Finding files of a corpus as they lie on disk, where copies and releases spell names in their own way."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ccts_dist.corpus.cells import RowError
from ccts_dist.errors import CorpusError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".w64", ".caf", ".sph"}
)
"""In lower case; what a corpus's audio files may end with, whatever its label file states."""

OTHER_SUFFIXES = frozenset(
    {
        ".3ga", ".3gp", ".aac", ".ac3", ".adts", ".alac", ".amr", ".ape", ".asf", ".avi", ".awb", ".dts", ".eac3",
        ".flv", ".m4a", ".m4b", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".qta", ".ra",
        ".rm", ".spx", ".tta", ".webm", ".wma", ".wmv", ".wv",
    }
)  # fmt: skip
"""How other recordings are named, sound and video, which libsndfile does not read."""

_KNOWN_SUFFIXES = AUDIO_SUFFIXES | OTHER_SUFFIXES | {".bwf", ".mp1", ".mp2", ".nist", ".rf64", ".sf", ".wave"}


class AudioFolder:
    """The audio files of one folder, found by the name that a label file gives them.

    Args:
        folder: need not exist; junk of other systems (``._x.wav``) is passed over, and what cannot be looked at.

    Raises:
        CorpusError: the folder is there and cannot be listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            entries = os.scandir(folder) if folder.is_dir() else ()
        except OSError as error:
            raise CorpusError(f"{folder}: cannot be listed ({error.strerror}). Mend its rights.") from error
        self._names = {entry.name for entry in entries if not entry.name.startswith("._") and _is_file(entry)}
        self._composed = _unique((_composed(name), name) for name in self._names if not name.isascii())
        self._stems: dict[str, str] | None = None
        self._asked: set[str] = set()
        self._found: set[str] = set()

    @property
    def stems(self) -> list[str]:
        """Names of the audio files without their endings, sorted."""
        return sorted(os.path.splitext(name)[0] for name in self._names if is_audio(name))

    @property
    def unnamed(self) -> list[Path]:
        """Recordings that were never looked for, sorted.

        Those that cannot be decoded are among them, unless a file was looked for that may be extracted from them: of a
        video.
        """
        stems = {os.path.splitext(name)[0] for name in self._asked | self._found}
        rest = (name for name in self._names - self._found if not name.startswith("."))
        names = (n for n in rest if is_audio(n) or (_is_recording(n) and os.path.splitext(n)[0] not in stems))
        return [self.folder / name for name in sorted(names)]

    def find(self, name: str) -> Path | None:
        """The file of that name; failing that, the only one whose name differs in Unicode normalisation alone.

        Copies from a Mac differ so from the label file that came with them.
        """
        self._asked.add(name)
        found = name if name in self._names else self._composed.get(_composed(name))
        if found is None:
            return None
        self._found.add(found)
        return self.folder / found

    def find_any_ending(self, name: str) -> Path | None:
        """Like ``find``; failing that, the only audio file that differs in its ending: ``.WAV``, ``.flac``.

        So a corpus whose audio was converted is read with its own label file.
        """
        found = self.find(name)
        if found is not None:
            return found
        if self._stems is None:
            self._stems = _unique((os.path.splitext(one)[0], one) for one in self._names if is_audio(one))
        alike = self._stems.get(os.path.splitext(name)[0])
        if alike is None:
            return None
        self._found.add(alike)
        return self.folder / alike


def folder_of_row(folders: dict[Path, AudioFolder], folder: Path, where: str, source: str) -> AudioFolder:
    """The folder that a row's audio is in, listed once for all rows.

    Args:
        folders: those that were listed before.
        where: the row.
        source: its file.

    Raises:
        RowError: it cannot be listed.
    """
    found = folders.get(folder)
    if found is None:
        try:
            found = folders[folder] = AudioFolder(folder)
        except CorpusError as error:
            raise RowError(f"{where}: audio: {error}", source) from error
    return found


def is_audio(name: str) -> bool:
    """True if a file's name ends as audio does."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _is_recording(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _KNOWN_SUFFIXES


def find_audio(root: Path, levels: int = 5) -> list[Path]:
    """The audio files of a folder and its sub-folders, in the order of their paths; hidden ones are passed over.

    Args:
        levels: of folders that are looked into, ``root`` being the first; so a link to a folder above ends.

    Raises:
        CorpusError: a folder cannot be listed.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise CorpusError(f"{root}: cannot be listed ({error.strerror}). Mend its rights.") from error
    found: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if is_audio(entry.name) and _is_file(entry):
            found.append(root / entry.name)
        elif levels > 1 and _is_folder(entry):
            found += find_audio(root / entry.name, levels - 1)
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # such as a link to itself


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False  # such as a link to itself


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs whose first part comes once."""
    pairs = list(pairs)
    counts = Counter(first for first, _ in pairs)
    return {first: second for first, second in pairs if counts[first] == 1}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def find_entry(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of these files or folders that is there, in the order of the folders, then of the names.

    Upper and lower case are the same here.
    """
    for folder in folders:
        entries = {entry.name.casefold(): entry.name for entry in os.scandir(folder)} if folder.is_dir() else {}
        for name in names:
            found = name if (folder / name).exists() else entries.get(name.casefold())
            if found is not None:
                return folder / found
    return None


def listing(folder: Path) -> str:
    """The first few names in a folder, for an error message."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def natural_order(name: str) -> tuple[int, str]:
    """Sorts names that end in a number by that number."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits or 0), name
