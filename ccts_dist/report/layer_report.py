"""CCC by layer: as a table, as files for other programs, and as a picture."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.files.strict_json import json_text
from ccts_dist.plotting import color_of, drawing, legend_above, save_picture
from ccts_dist.probe import LayerScore, ProbeResult
from ccts_dist.report.markdown_table import format_table

NAMES = ("layers.md", "layers.json", "layers.csv", "layers.png")
"""Names of the files that ``write_layers`` leaves."""


def layers_in_words(result: ProbeResult) -> str:
    """The table, and below it each target's best layer by the validation split. Markdown."""
    by_layer = _by_layer(result)
    header = ("encoder", "layer", *result.targets)
    rows = [(one[0].layer.encoder, one[0].layer.number, *(_cell(score) for score in one)) for one in by_layer]
    train, valid, test = (
        " and ".join(names) for names in (result.splits.train, result.splits.valid, result.splits.test)
    )
    lines = [
        f"CCC on {test} of a linear probe per layer, fitted on {train}, its penalty chosen on {valid}"
        + ("; in brackets 95 % over speakers." if result.scores[0].interval else "."),
        "",
        format_table(header, rows),
        "",
    ]
    for target, score in _best(result).items():
        lines.append(
            f"{target}: best on {valid} at {score.layer.encoder} layer {score.layer.number} ({score.valid_ccc:.3f}; "
            f"{score.ccc:.3f} on {test})"
        )
    return "\n".join(lines)


def make_folder(out: Path) -> None:
    """Have the folder ready before any work is done.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / NAMES[0]).touch()
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Name another folder with --out.") from error


def write_layers(out: Path, result: ProbeResult, *, model: str, shards: str) -> str:
    """Write table, figures and picture into ``out``; the table, as ``layers_in_words`` gives it.

    Args:
        model: what was probed, for people.
        shards: digest of the shard set.

    Raises:
        ConfigError: the folder cannot be written.
    """
    markdown, figures, table, picture = (out / name for name in NAMES)
    scores = [_flat(score) for score in result.scores]
    tree = {
        "model": model,
        "shards": shards,
        "splits": asdict(result.splits),
        "num_labels": {role: dict(counts) for role, counts in result.num_labels.items()},
        "scores": scores,
    }
    words = layers_in_words(result)
    try:
        markdown.write_text(f"# {model}\n\n{words}\n", encoding="utf-8")
        figures.write_text(json_text(tree, indent=2) + "\n", encoding="utf-8")
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(scores[0]))
            writer.writeheader()
            writer.writerows(scores)
        draw_layers(picture, result, title=model)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Name another folder with --out.") from error
    return words


def draw_layers(path: Path, result: ProbeResult, *, title: str) -> None:
    """Draw CCC by layer, a panel for each encoder and a line for each target, shaded between the interval's ends."""
    encoders = list(dict.fromkeys(score.layer.encoder for score in result.scores))
    with drawing(width=1.5 + 4.5 * len(encoders), height=3.8, page=False) as figure:
        figure.suptitle(title, x=0.01, ha="left")
        (panels,) = figure.subplots(1, len(encoders), sharey=True, squeeze=False)
        for encoder, axes in zip(encoders, panels, strict=True):
            for place, target in enumerate(result.targets):
                scores = [score for score in result.scores if (score.layer.encoder, score.target) == (encoder, target)]
                numbers, color = [score.layer.number for score in scores], color_of(target, place)
                mark = "os^Dv"[place % 5]
                axes.plot(
                    numbers, [score.ccc for score in scores], marker=mark, markersize=4, color=color, label=target
                )
                bounds = [score.interval for score in scores if score.interval is not None]
                if len(bounds) == len(scores):
                    low, high = zip(*bounds, strict=True)
                    axes.fill_between(numbers, low, high, alpha=0.15, color=color, linewidth=0)
            axes.set_title(encoder)
            axes.set_xlabel("layer (0: what enters the first)")
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel(f"CCC on {' and '.join(result.splits.test)}")
        legend_above(figure, panels[0], side="right")
        save_picture(figure, path)


def _by_layer(result: ProbeResult) -> list[Sequence[LayerScore]]:
    width = len(result.targets)
    return [result.scores[start : start + width] for start in range(0, len(result.scores), width)]


def _best(result: ProbeResult) -> dict[str, LayerScore]:
    return {
        target: max((one for one in result.scores if one.target == target), key=lambda one: one.valid_ccc)
        for target in result.targets
    }


def _cell(score: LayerScore) -> str:
    if score.interval is None:
        return f"{score.ccc:.3f}"
    low, high = score.interval
    return f"{score.ccc:.3f} ({low:.3f} to {high:.3f})"


def _flat(score: LayerScore) -> dict[str, str | int | float | None]:
    low, high = score.interval or (None, None)
    return {
        "encoder": score.layer.encoder,
        "layer": score.layer.number,
        "target": score.target,
        "ccc": score.ccc,
        "low": low,
        "high": high,
        "valid_ccc": score.valid_ccc,
        "strength": score.strength,
        "num_features": score.num_features,
    }
