"""Metadata of a model card in the form that Hugging Face's hub reads: YAML before the Markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ccts_dist.config import ModelConfig, speech_tables

Library = Literal["transformers", "ccts-dist"]

_TASK = "audio-classification"
_SPLITS = {"valid": "validation", "test": "test"}
"""Splits by the names that a run's summary has for them."""


def with_metadata(
    body: str,
    *,
    name: str,
    config: ModelConfig,
    corpus: str,
    metrics: Mapping[str, Any] | None,
    library: Library = "ccts-dist",
    tags: Sequence[str] = (),
    license: str = "",
    language: Sequence[str] = (),
) -> str:
    """A model card: its metadata, then ``body``.

    Args:
        name: of the model.
        corpus: that it was trained on; "" if unknown.
        metrics: of its run, as ``summary.json`` has them; None if unknown.
        library: that opens the model.
        tags: beside the usual ones.
        license: identifier that the hub knows, such as "cc-by-nc-4.0"; "" where the corpus and the encoder decide.
        language: codes such as "en".
    """
    results = list(eval_results(metrics or {}, corpus))
    data = ModelCardData(
        model_name=name if results else None,
        base_model=base_models(config) or None,
        license=license or "other",
        license_name=None if license else "see-limits-and-licence",
        language=list(language) or None,
        pipeline_tag=_TASK if config.text is None else None,
        library_name=library,
        tags=["speech-emotion-recognition", *(["ccts-dist"] if library != "ccts-dist" else []), *tags],
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def base_models(config: ModelConfig) -> list[str]:
    """Hub names of the pretrained encoders; folders and encoders from scratch have none."""
    tables = [*speech_tables(config).values(), *([] if config.text is None else [config.text])]
    names = dict.fromkeys(table.encoder for table in tables)
    return [name for name in names if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists()]


def without_metadata(card: str) -> str:
    """The body of a card, for pages that show no YAML and have the title themselves.

    >>> without_metadata("---\\nlicense: other\\n---\\n\\n# name\\n\\nPredicts valence.")
    'Predicts valence.'
    """
    return re.sub(r"\A(---\n.*?\n---\s+)?(# [^\n]*\n+)?", "", card, flags=re.DOTALL)


def scores_table(metrics: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
    """Lines of a Markdown table: each target's CCC and the unweighted accuracy (UAR), on validation and test."""
    rows = {}
    for split in _SPLITS:
        ccc = dict(_numbers(metrics.get(split)))
        scores = metrics.get(f"{split}_scores")
        categories = dict(_numbers(scores.get("categories"))) if isinstance(scores, Mapping) else {}
        figures = {target: ccc[target] for target in targets if target in ccc}
        if "unweighted_accuracy" in categories:
            figures["UAR"] = categories["unweighted_accuracy"]
        rows[_SPLITS[split]] = figures
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    if not columns:
        return []
    cells = [[split, *(f"{figures[name]:.3f}" if name in figures else "-" for name in columns)]
             for split, figures in rows.items() if figures]  # fmt: skip
    lines = [["CCC" if set(columns) - {"UAR"} else "split", *columns], [":--", *("--:" for _ in columns)], *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def eval_results(metrics: Mapping[str, Any], corpus: str) -> Iterator[EvalResult]:
    """The CCC of each target and the unweighted accuracy of the categories, by split; those that are undefined not."""
    for key, split in _SPLITS.items():
        scores = metrics.get(f"{key}_scores")
        scores = scores if isinstance(scores, Mapping) else {}
        figures = {f"CCC of {target}": ("ccc", value) for target, value in _numbers(metrics.get(key))}
        for measure, value in _numbers(scores.get("categories")):
            if measure == "unweighted_accuracy":
                figures["unweighted accuracy of categories (UAR)"] = ("uar", value)
        for words, (measure, value) in figures.items():
            yield EvalResult(
                task_type=_TASK,
                task_name="speech emotion recognition",
                dataset_type=re.sub(r"\W+", "-", corpus.lower()).strip("-") or "unknown",
                dataset_name=corpus or "unknown",
                dataset_split=split,
                metric_type=measure,
                metric_name=words,
                metric_value=round(value, 6),
            )


def _numbers(tree: Any) -> Iterator[tuple[str, float]]:
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            yield str(name), float(value)
