"""The model card that goes with a registered model."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(
    *,
    name: str,
    targets: tuple[str, ...],
    categories: tuple[str, ...],
    scale: tuple[float, float],
    needs_text: bool,
    num_parameters: int,
    run_name: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
) -> str:
    """What a stranger must know before using the model, in Markdown.

    Args:
        name: under which the model is registered.
        targets: what it predicts, in order.
        categories: emotions that it tells apart; may be empty.
        scale: lowest and highest rating of its corpus.
        needs_text: it reads transcripts beside audio.
        num_parameters: of the whole model.
        run_name: the run it comes from; "" if unknown.
        facts: where it comes from: digests, teacher, splits.
        metrics: figures of the run, nested as the run wrote them; None if unknown.
    """
    low, high = scale
    given = "speech and its transcript" if needs_text else "speech alone"
    lines = [
        f"# {name}",
        "",
        f"Predicts {', '.join(targets)} of an utterance from {given}, on the scale {low:g} to {high:g} of the corpus "
        f"it was trained on{_beside(categories)}. {num_parameters:,} parameters. Audio: any file libsndfile reads; it "
        "is mixed to mono and resampled to 16 kHz.",
        "",
        "## Where it comes from",
        "",
        f"- run: {run_name or 'unknown'}",
        *(f"- {fact}: {_text(value)}" for fact, value in facts.items()),
        "",
        "## Figures",
        "",
    ]
    if metrics:
        lines += [f"- {figure}: {value}" for figure, value in _flat(metrics)]
    else:
        lines.append("The run left none. Measure it: `launch/evaluate.py --model MODEL --shards SHARDS --split SPLIT`.")
    lines += [
        "",
        "## Limits and licence",
        "",
        "Ratings are the mean opinion of the raters of one corpus about short recordings in its language and setting. "
        "They are not what a speaker feels, and must not decide about a person.",
        "",
        "The licence of the corpus and that of the pretrained encoders bind whoever uses these weights: many emotion "
        "corpora allow research only. This card grants nothing.",
        "",
    ]
    return "\n".join(lines)


def _beside(categories: tuple[str, ...]) -> str:
    return f", and which of these categories it sounds like: {', '.join(categories)}" if categories else ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} / ")
        else:
            rows.append((f"{prefix}{key}", f"{value:.4f}" if isinstance(value, float) else _text(value)))
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
