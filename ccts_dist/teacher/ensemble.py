"""Teachers as one: which of them go together, and the digest that names them all."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ccts_dist.errors import TeacherError
from ccts_dist.model import LoadedModel, load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """One teacher, or several whose outputs are averaged; one that is named twice counts twice."""

    members: tuple[LoadedModel, ...]
    """In the order of their digests: whatever order they were named in, a mean has the same bits."""

    folders: tuple[Path, ...]
    """Folders of the members."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights of one teacher; of several, that of their digests, sorted and one a line."""
        digests = [member.digest for member in self.members]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that all of them predict, in this order."""
        return self.members[0].config.targets

    @property
    def embedding_size(self) -> int:
        """Features of each one's embedding."""
        return self.members[0].config.embedding_dim

    @property
    def train_splits(self) -> tuple[str, ...]:
        """Splits that each of them was trained on."""
        first, *others = [tuple(member.extra.get("train_splits", ())) for member in self.members]
        return tuple(split for split in first if all(split in other for other in others))

    def __str__(self) -> str:
        """Their folders, for people."""
        return ", ".join(map(str, self.folders))


def load_ensemble(folders: Sequence[Path], device: torch.device) -> Ensemble:
    """The models in ``folders``, all of them on ``device``, in evaluation mode.

    Raises:
        TeacherError: two of them differ in targets or in the embedding's size, so that there is no mean.
        ConfigError: no such model folder.
        CheckpointError: a model folder is not whole.
    """
    pairs = sorted(((load_model(folder, device), folder) for folder in folders), key=lambda pair: pair[0].digest)
    members, places = zip(*pairs, strict=True)
    for key in ("targets", "embedding_dim"):
        first, *others = [getattr(member.config, key) for member in members]
        for place, other in zip(places[1:], others, strict=True):
            if other != first:
                raise TeacherError(
                    f"The teachers {places[0]} and {place} have model.{key} = {first} and {other}: must be equal, "
                    "in this order, for their outputs to be averaged. Leave one of them out."
                )
    return Ensemble(members=members, folders=places)
