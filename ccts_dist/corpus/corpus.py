"""The result of every corpus reader."""

from dataclasses import dataclass
from pathlib import Path

from ccts_dist.records import Rejected, Utterance


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus as its reader found it on disk: every row of its label file, kept or rejected, in that file's order."""

    name: str
    """The corpus's own name, in lower case: "msp-podcast"."""

    release: str
    """Release as its makers call it; "unknown" where neither the folder nor the user states."""

    scale: tuple[float, float]
    """Lowest and highest rating; labels have already been mapped to 0..1."""

    targets: tuple[str, ...]
    """Names of the labels that an utterance may have."""

    utterances: tuple[Utterance | Rejected, ...]

    unnamed: tuple[Path, ...] = ()
    """Audio files that no row of the label file names, in the folders of those that are named."""
