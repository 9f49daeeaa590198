"""Comparison of two runs to the last digit: the figures of every step, then the trained weights."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ccts_dist.config.renamed import present_metric

KEYS, LOSS, GRADIENT_NORM = "keys", "train/loss", "train/grad_norm"

REQUIRED = (KEYS, LOSS, GRADIENT_NORM)
"""Without these in both histories there is no proof."""

_TIMED = re.compile(r"_per_s$|_s$|_gb$|seconds|memory")
"""Figures that differ between two runs of one revision."""


class ProofError(Exception):
    """A comparison that cannot be made: neither equal nor different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where two revisions differ."""

    run: str
    step: int
    """Counted from 1; 0 for what is made before training."""

    figure: str
    base: Any
    head: Any

    def words(self) -> str:
        """One line."""
        values = f"{self.base!r} at BASE, {self.head!r} here"
        return f"different: run {self.run}, step {self.step}, {self.figure}: {values}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome for one run."""

    difference: Difference | None
    unpaired: tuple[str, ...] = ()
    """Figures that only one revision has, which are not compared."""


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The steps in a run folder, in order.

    Raises:
        ProofError: there is no history.
    """
    path = folder / "history.jsonl"
    if not path.is_file():
        raise ProofError(f"{path} is missing: both revisions must leave one. Compare with another revision.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare_histories(run: str, base: Sequence[Mapping[str, Any]], head: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare step by step, key checksums before other figures.

    Raises:
        ProofError: a required figure is in neither step of one history.
    """
    steps = [[_figures(step) for step in history] for history in (base, head)]
    _check_required(run, steps)
    unpaired: set[str] = set()
    for ours, theirs in zip(*steps, strict=False):
        for name in sorted(ours.keys() | theirs.keys(), key=lambda name: (name != KEYS, [*ours, name].index(name))):
            if name not in REQUIRED and not (name in ours and name in theirs):
                unpaired.add(name)
            elif not _equal(ours.get(name), theirs.get(name)):
                difference = Difference(
                    run=run, step=ours.get("step", 0), figure=name, base=ours.get(name), head=theirs.get(name)
                )
                return Comparison(difference=difference, unpaired=tuple(sorted(unpaired)))
    difference = None
    if len(base) != len(head):
        step = min(len(base), len(head)) + 1
        difference = Difference(run=run, step=step, figure="number of steps", base=len(base), head=len(head))
    return Comparison(difference=difference, unpaired=tuple(sorted(unpaired)))


def compare_weights(run: str, step: int, base: Path, head: Path) -> Difference | None:
    """Compare the tensors of two model folders bit by bit.

    Tensors whose names are in one folder alone may have been renamed: their shapes and bits are compared as a set.

    Raises:
        ProofError: a folder without weights.
    """
    ours, theirs = _tensors(base), _tensors(head)
    for name in ours.keys() & theirs.keys():
        if ours[name].shape != theirs[name].shape or ours[name].dtype != theirs[name].dtype:
            return Difference(
                run=run, step=step, figure=f"shape of {name}", base=_kind(ours[name]), head=_kind(theirs[name])
            )
    for name in (name for name in ours if name in theirs):
        place = first_unequal(ours[name], theirs[name])
        if place is not None:
            return Difference(
                run=run,
                step=step,
                figure=f"weight {name}{list(place)}",
                base=ours[name][place].item(),
                head=theirs[name][place].item(),
            )
    only_ours = sorted(_digest(ours[name]) for name in ours.keys() - theirs.keys())
    only_theirs = sorted(_digest(theirs[name]) for name in theirs.keys() - ours.keys())
    if only_ours != only_theirs:
        return Difference(
            run=run,
            step=step,
            figure="names of weights",
            base=sorted(ours.keys() - theirs.keys()),
            head=sorted(theirs.keys() - ours.keys()),
        )
    return None


def first_unequal(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[int, ...] | None:
    """The first index at which the bits differ, of tensors of one shape and type; None for equal ones."""
    left, right = _bits(ours), _bits(theirs)
    places = np.flatnonzero((left != right).any(axis=1))
    if not len(places):
        return None
    return tuple(int(index) for index in np.unravel_index(places[0], ours.shape))


def compare_files(what: str, base: Path, head: Path, pattern: str) -> Difference | None:
    """Compare the files of two folders by their SHA-256.

    Raises:
        ProofError: a folder without such files.
    """
    ours, theirs = _file_digests(base, pattern), _file_digests(head, pattern)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return Difference(run=what, step=0, figure=name, base=ours.get(name), head=theirs.get(name))
    return None


def _figures(step: Mapping[str, Any]) -> dict[str, Any]:
    return {present_metric(name): value for name, value in step.items() if not _TIMED.search(name)}


def _check_required(run: str, histories: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    for where, steps in zip(("BASE", "here"), histories, strict=True):
        for name in REQUIRED:
            if not any(name in step for step in steps):
                raise ProofError(
                    f"run {run}: no step of its history has {name!r} ({where}). If it was renamed, add the name to "
                    "ccts_dist/config/renamed.py."
                )


def _equal(ours: Any, theirs: Any) -> bool:
    # NaN is equal to NaN, and 0.0 is not -0.0: Python writes each float as the shortest text that gives it back.
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ProofError(f"{folder} holds no *.safetensors: both revisions must leave some. Compare with another one.")
    return {f"{name}": tensor for file in files for name, tensor in _named(file, folder)}


def _named(file: Path, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    above = file.parent.relative_to(folder).as_posix()
    for name, tensor in sorted(load_file(file).items()):
        yield (name if above == "." else f"{above}/{name}"), tensor


def _bits(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), flat.element_size())


def _digest(tensor: torch.Tensor) -> str:
    return f"{_kind(tensor)} {hashlib.sha256(_bits(tensor).tobytes()).hexdigest()}"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _file_digests(folder: Path, pattern: str) -> dict[str, str]:
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
    }
    if not found:
        raise ProofError(f"{folder} holds no {pattern}: both revisions must make some. Compare with another revision.")
    return found
