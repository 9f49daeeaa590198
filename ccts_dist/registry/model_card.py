"""The model card that goes with a registered model."""

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from ccts_dist.inference.predictor import answer_columns
from ccts_dist.model import LoadedModel
from ccts_dist.registry.card_data import scores_table, with_metadata
from ccts_dist.registry.lineage import epoch_of, preprocessing_of

_ASKING = """\
## Asking it over HTTP

```
python launch/serve.py models:/NAME@ALIAS --port 5001
printf '{{"dataframe_records": [{{"audio": "%s"}}]}}' "$(base64 -w0 a.wav)" |
  curl -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations
```

A row is a recording: `audio`, the base64 of a whole audio file, or `path`, a file below the folder that
`CCTS_AUDIO_ROOT` named when the server was started. Rows come as `{{"dataframe_records": [ROW, ...]}}`, as
`{{"dataframe_split": {{"columns": ["audio"], "data": [[A], ...]}}}}` or as `{{"inputs": {{"audio": [A, ...]}}}}`, and
are answered in order by `{{"predictions": [{{{answer}}}, ...]}}`. What is refused gets status 400 with the reason, and
the recording's number counted from 0. Limits, and the variables that change them: 32 recordings a request
(`CCTS_MAX_RECORDINGS`), 16 MiB each (`CCTS_MAX_RECORDING_BYTES`), 120 s each (`CCTS_MAX_SECONDS`).
`mlflow models serve` answers the same, but reads a body of any size before it refuses.
"""


_FOR_PROGRAMS = re.compile(r"^resolved / |(^|_|/ )(sums|confusion) / ")
"""Figures that stand in ``metrics.json`` alone: settings, and sums for pooling."""

_LIMITS = (
    "",
    "## Limits and licence",
    "",
    "Ratings are the mean opinion of the raters of one corpus about short recordings in its language and setting. "
    "They are not what a speaker feels, and must not decide about a person.",
    "",
    "The licence of the corpus and that of the pretrained encoders bind whoever uses these weights: many emotion "
    "corpora allow research only. This card grants nothing.",
    "",
)


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
    preprocessing: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    usage: str = "",
) -> str:
    """The model card, for a stranger, in Markdown.

    Args:
        name: under which the model is registered.
        targets: what it predicts, in order.
        categories: emotions that it distinguishes; may be empty.
        scale: lowest and highest rating of its corpus.
        needs_text: it reads transcripts beside audio.
        num_parameters: of the whole model.
        run_name: the run it comes from; "" if unknown.
        facts: where it comes from: digests, teacher, splits.
        preprocessing: what is done to audio before the model reads it.
        metrics: figures of the run, nested as the run wrote them; None if unknown.
        usage: section on how to use it; "" for requests over HTTP, where it can be served.
    """
    low, high = scale
    given = "speech and its transcript" if needs_text else "speech alone"
    lines = [
        f"# {name}",
        "",
        f"{_predicts(targets, categories, given, f'{low:g} to {high:g}')} {num_parameters:,} parameters. Audio: any "
        "file libsndfile reads; it is mixed to mono and resampled to 16 kHz.",
        "",
        *(["## Scores", "", *scores, ""] if (scores := scores_table(metrics or {}, targets)) else []),
        "## Where it comes from",
        "",
        f"- run: {run_name or 'unknown'}",
        *(f"- {fact}: {_text(value)}" for fact, value in facts.items()),
        "",
        "## What it reads",
        "",
        *(f"- {what}: {_text(value)}" for what, value in preprocessing.items()),
        "",
        "## Figures",
        "",
    ]
    if metrics:
        lines += [f"- {figure}: {value}" for figure, value in _flat(metrics) if not _FOR_PROGRAMS.search(figure)]
    else:
        lines.append("The run left none. Measure it: `ccts evaluate -m M --shards SHARDS --splits SPLIT --out DIR`.")
    if usage:
        lines += ["", usage.rstrip()]
    elif not needs_text:
        columns = answer_columns(targets, categories)
        lines += ["", _ASKING.format(answer=", ".join(f'"{column}": ...' for column in columns)).rstrip()]
    return "\n".join([*lines, *_LIMITS])


def card_of(
    loaded: LoadedModel,
    *,
    name: str,
    lineage: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    usage: str = "",
    **metadata: Any,
) -> str:
    """The card of a model with its metadata for the hub.

    Args:
        name: of the model.
        lineage: as ``lineage_of`` gives it.
        metrics, usage: see ``model_card``.
        metadata: library, tags, license and language; see ``with_metadata``.
    """
    known = {
        key: value
        for key, value in lineage.items()
        if key not in ("run_name", "resolved") and value not in ("", None, [], {})
    }
    training = {"epoch": epoch_of(loaded.extra), "valid_ccc": None if metrics else loaded.extra.get("valid_ccc")}
    config = loaded.config
    body = model_card(
        name=name,
        targets=config.targets,
        categories=config.categories,
        scale=loaded.scale,
        needs_text=config.text is not None,
        num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        run_name=lineage["run_name"],
        facts=known | {key: value for key, value in training.items() if value is not None},
        preprocessing=preprocessing_of(loaded),
        metrics=metrics,
        usage=usage,
    )
    corpus = str(lineage.get("corpus") or "")
    return with_metadata(body, name=name, config=config, corpus=corpus, metrics=metrics, **metadata)


def _predicts(targets: tuple[str, ...], categories: tuple[str, ...], given: str, scale: str) -> str:
    """The model's predictions, as a sentence."""
    which = f"which of these categories it sounds like: {', '.join(categories)}"
    if not targets:
        return f"Predicts of an utterance, from {given}, {which}."
    of_targets = (
        f"Predicts {', '.join(targets)} of an utterance from {given}, on the scale {scale} of the corpus it was"
    )
    return f"{of_targets} trained on{f', and {which}' if categories else ''}."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} / ")
        else:
            rows.append(
                (f"{prefix}{key}", f"{value:.4f}" if isinstance(value, float) and isfinite(value) else _text(value))
            )
    return rows


def _text(value: Any) -> str:
    if value is None or value != value:
        return "undefined"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
