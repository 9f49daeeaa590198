"""A student for other programs: a folder for transformers or an ONNX file, compared with torch before it is kept."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ccts_dist.errors import ConfigError, ExportError, OutputError, is_full
from ccts_dist.export.answers import Answers, Exported, answers_of
from ccts_dist.export.card import CardSettings, exported_card
from ccts_dist.export.folder import CODE, is_of_transformers, write_own_class, write_own_code
from ccts_dist.export.onnx import write_onnx
from ccts_dist.model import LoadedModel, load_model
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.registry.publish import find_checkpoint
from ccts_dist.registry.pull import resolve_model

Format = Literal["transformers", "onnx"]

FACTS = "export.json"

TOLERANCE = 1e-4
"""Largest difference from torch, in ratings, embeddings or probabilities, with which an export is handed on."""

_LENGTHS = ((16_000,), (400,), (12_345, 7_000, 401), (48_000, 16_000, 5_000, 33_333), (80_000, 400))
"""Samples of the recordings that both sides are asked about, batch by batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """How near an export comes to torch."""

    largest_difference: float
    num_recordings: int
    num_batches: int
    lost: tuple[str, ...] = ()
    """Losses of the other format, a sentence each."""


def export_model(
    model: str,
    format: Format,
    out: Path,
    *,
    tracking_uri: str = "",
    tolerance: float = TOLERANCE,
    card: CardSettings | None = None,
) -> ExportReport:
    """Write a student to the folder ``out`` in another format, unless its answers differ from torch's.

    Both sides answer recordings of several lengths, alone and in batches. A folder that is there is whole.

    Args:
        model: a model folder, or an address of one.
        out: must not exist.
        tracking_uri: server of registered models; "" for the default.
        tolerance: largest difference that is let through.
        card: of a folder for the hub, which the library too must read: it has the model's own files.

    Raises:
        ConfigError: ``out`` is there already, a model that the format cannot hold, or a package that is missing.
        ExportError: the answers differ; nothing is left in ``out``.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: is there already. Name a new folder, or remove it.")
    source = resolve_model(model, tracking_uri=tracking_uri)
    loaded = _load_student(source, model, format)
    own_class = format == "transformers" and card is None and is_of_transformers(loaded)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if format == "onnx":
            exported = write_onnx(loaded, unfinished)
        else:
            exported = write_own_class(loaded, unfinished) if own_class else write_own_code(loaded, source, unfinished)
        difference = _compare(exported, loaded, out, tolerance)
        _write_facts(loaded, unfinished, format, difference)
        if format == "transformers":
            card = card or CardSettings(name=out.name, place="FOLDER")
            text = exported_card(loaded, card, own_class=own_class, metrics=find_checkpoint(source).metrics)
            (unfinished / "README.md").write_text(text, encoding="utf-8")
        for weights in unfinished.glob("*.safetensors"):
            shutil.copymode(unfinished / FACTS, weights)  # safetensors' own is 0600, whatever the umask
        unfinished.rename(out)
    except Exception as error:
        if not is_full(error):
            raise
        raise OutputError(f"{out}: cannot be written, since the disk is full. Make room, and export again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ExportReport(
        largest_difference=difference,
        num_recordings=sum(map(len, _LENGTHS)),
        num_batches=len(_LENGTHS),
        lost=_lost(format, own_class=own_class),
    )


def _load_student(folder: Path, model: str, format: Format) -> LoadedModel:
    """The model, if the format can hold it; ``model`` is what the user called it."""
    loaded = load_model(folder)
    if loaded.config.text is not None or loaded.config.speech is None:
        raise ConfigError(f"model {model!r} reads transcripts: only models of speech alone are exported.")
    if format == "onnx" and not loaded.config.targets:
        raise ConfigError(
            f"model {model!r} predicts categories alone, and an ONNX export gives ratings of targets. Use "
            "--format transformers, or name a model with targets."
        )
    return loaded


def _compare(exported: Exported, loaded: LoadedModel, out: Path, tolerance: float) -> float:
    """The largest difference from torch, once it is within the tolerance."""
    batches = list(_batches())
    difference = _largest_difference(exported, batches, [answers_of(loaded, *batch) for batch in batches])
    if not difference <= tolerance:
        raise ExportError(
            f"{out}: the export differs from torch by {difference:.2g}, more than {tolerance:g}. It is not kept: "
            "use the model with ccts_dist, or report it with the encoder's configuration."
        )
    return difference


def _lost(format: Format, *, own_class: bool) -> tuple[str, ...]:
    if format == "onnx":
        return ()
    lost = "Audio must be mono; it is not rounded to 16 bit, and bad audio is not refused."
    if own_class:
        return (lost, "One recording at a time, and none shorter than a frame: transformers' classes let padding in.")
    return (lost, f"Only with trust_remote_code=True: transformers runs {CODE}, which is in the folder.")


def _batches() -> Sequence[tuple[Tensor, Tensor]]:
    """Noise of the lengths above, padded with what must not be processed."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in _LENGTHS:
        audio = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
        batches.append((audio, torch.tensor(lengths)))
    return batches


def _largest_difference(
    exported: Exported, batches: Sequence[tuple[Tensor, Tensor]], expected: Sequence[Answers]
) -> float:
    largest = 0.0
    for batch, answers in zip(batches, expected, strict=True):
        found = exported(*batch)
        for name, answer in answers.items():
            if not answer.numel() or (name == "embedding" and name not in found):
                continue  # transformers' own classes give none
            difference = float((found[name] - answer).abs().max())
            if math.isnan(difference):
                return difference
            largest = max(largest, difference)
    return largest


def _write_facts(loaded: LoadedModel, folder: Path, format: Format, difference: float) -> None:
    """The settings that whoever opens the folder must know."""
    facts = {
        "format": format,
        "targets": list(loaded.config.targets),
        "categories": list(loaded.config.categories),
        "scale": list(loaded.scale),
        "audio": {"sample_rate_hz": SAMPLE_RATE_HZ, "channels": 1, "range": [-1.0, 1.0]},
        "weights_sha256": loaded.digest,
        "largest_difference_from_torch": difference,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
