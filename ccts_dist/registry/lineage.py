"""The facts of a version beside weights and figures: how audio is prepared, and where the model comes from."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import ccts_dist
from ccts_dist.audio.limits import MAX_DURATION_S, MIN_SAMPLES
from ccts_dist.config import speech_tables
from ccts_dist.model import LoadedModel
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.scoring import gate_from

PREPROCESSING_FILE = "preprocessing.json"
LINEAGE_FILE = "lineage.json"


def preprocessing_of(loaded: LoadedModel) -> dict[str, Any]:
    """The preparation of a recording before the model reads it; enough to do the same elsewhere."""
    encoders = loaded.model.encoder_configs
    do_normalize = (encoders.do_normalize, *encoders.extra_do_normalize)
    extractors = (encoders.extractor, *encoders.extra_extractors)
    tables = speech_tables(loaded.config)
    return {
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "resampling": "windowed sinc",
        "channels": "averaged",
        "sample_bits": 16,
        "range": [-1.0, 1.0],
        "shortest_samples": MIN_SAMPLES,
        "longest_s": MAX_DURATION_S,
        # Zero mean and unit variance of each utterance, by table of the run file.
        "normalised_per_utterance": dict(zip(tables, do_normalize, strict=False)),
        # What the encoder is given in place of the waveform, by table; null where it is the waveform.
        "feature_extractor": {
            table: None if extractor is None else type(extractor).__name__
            for table, extractor in zip(tables, extractors, strict=False)
        },
    }


def lineage_of(loaded: LoadedModel, run_id: str, run_name: str, run_tags: Mapping[str, str]) -> dict[str, Any]:
    """Lineage of a model: run, data, teacher, library. What is not known is "" or null.

    Args:
        run_id: at the tracking server; the run that the version belongs to.
        run_tags: of that run at the server; stand in for what the model's folder does not state.
    """
    extra = loaded.extra
    return {
        "run_id": run_id,
        "run_name": run_name,
        "corpus": extra.get("corpus", ""),
        "train_splits": extra.get("train_splits", []),
        "seed": extra.get("seed"),
        "step": extra.get("step"),
        "shard_set_digest": extra.get("shards") or run_tags.get("data.shard_set_digest", ""),
        "teacher_cache_digest": extra.get("teacher_cache") or run_tags.get("data.cache_digest", ""),
        "teacher_version": extra.get("teacher_version", ""),
        "teacher_weights_sha256": extra.get("teacher_weights_sha256", ""),
        "gate": gate_from(extra).in_words() if extra.get("distill") else "",
        "resolved": extra.get("resolved", {}),
        "weights_sha256": loaded.digest,
        "library": f"ccts-dist {installed_version('ccts-dist')}",
        "code_sha256": code_digest(),
    }


def epoch_of(extra: Mapping[str, Any]) -> int | None:
    """The epoch that a model comes from, counted from 1; None where its folder does not state.

    Folders of best models that earlier versions wrote, without "resolved", count from 0.
    """
    epoch = extra.get("epoch")
    if not isinstance(epoch, int):
        return None
    is_earlier = "resolved" not in extra and bool(extra.get("valid_ccc"))
    return epoch + is_earlier


def version_tags(loaded: LoadedModel, lineage: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """Tags that people look for on a version's page; what is unknown gets none."""
    tags = {
        "targets": ",".join(loaded.config.targets),
        "categories": ",".join(loaded.config.categories),
        "scale": "{:g},{:g}".format(*loaded.scale),
        "sample_rate_hz": str(preprocessing["sample_rate_hz"]),
        "normalised": ",".join(table for table, on in preprocessing["normalised_per_utterance"].items() if on),
    }
    named = ("run_name", "corpus", "shard_set_digest", "teacher_cache_digest", "teacher_version")
    named += ("teacher_weights_sha256", "gate", "weights_sha256", "library", "code_sha256")
    tags |= {name: str(lineage[name]) for name in named}
    return {name: value for name, value in tags.items() if value}


def code_digest() -> str:
    """SHA-256 of this library's source files, their names and bytes, in the order of their names."""
    root = Path(ccts_dist.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
