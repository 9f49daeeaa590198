"""Files of an engine's weights and optimizer state: one safetensors file per kind of tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ccts_dist.errors import CheckpointError
from ccts_dist.files.safetensors_stream import Entry, StoredTensors, TensorFile
from ccts_dist.train.resilience.storage_errors import writing
from ccts_dist.train.zero.state import WEIGHTS

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A copy of weights and optimizer state by kind."""

    entries: Mapping[str, Mapping[str, Entry]]
    tensors: Mapping[str, Sequence[tuple[str, Tensor]]]
    """By name, in the entries' order; none on other ranks than the first."""

    def write(self, folder: Path) -> dict[str, tuple[int, str]]:
        """The files of ``Engine.save``, byte for byte, with size and SHA-256 of each; waits for no other rank.

        Raises:
            OutputError: they cannot be written.
        """
        written: dict[str, tuple[int, str]] = {}
        for kind, entries in self.entries.items():
            path = folder / f"{kind}{SUFFIX}"
            with writing(path):
                written[path.name] = write_all(path, entries, iter(self.tensors[kind]))
        return written


def write_all(
    path: Path,
    entries: Mapping[str, Entry],
    tensors: Iterator[tuple[str, Tensor | None]] | Iterator[tuple[str, Tensor]],
) -> tuple[int, str]:
    """Write the tensors of one kind in the entries' order; size and SHA-256 of the file."""
    file = TensorFile(path, entries)
    try:
        for name, tensor in tensors:
            assert tensor is not None, "rank 0 has them whole"
            file.write(name, tensor)
        return file.finish()
    finally:
        file.close()


def open_stored(folder: Path) -> dict[str, StoredTensors]:
    """The files of ``Engine.save`` by kind.

    Raises:
        CheckpointError: there are no weights.
    """
    stored = {path.name.removesuffix(SUFFIX): StoredTensors(path) for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if WEIGHTS not in stored:
        raise CheckpointError(f"{folder}: there is no {WEIGHTS}{SUFFIX}.")
    return stored


def load_whole(model: nn.Module, stored: StoredTensors) -> None:
    """Every parameter and buffer of a model that is not yet spread."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(stored.get(name, tuple(tensor.shape)))
