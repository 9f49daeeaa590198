"""Predictions as the MSP-Podcast challenges take them (Odyssey 2024, Interspeech 2025).

One file for each task. Attributes: ``FileName,EmoAct,EmoVal,EmoDom``, on the corpus's scale and within it, as the
organizers' script for Test3 writes it. Categories: ``FileName,EmoClass``, the likeliest one as the corpus's
labels spell it. Labels are not needed: Test3 has none.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ccts_dist.corpus.folders import is_audio
from ccts_dist.corpus.msp_podcast.labels import LABEL_COLUMNS
from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.label_scale import on_scale
from ccts_dist.files.atomic import atomic_write
from ccts_dist.scoring import PredictionTable


def write_submission(path: Path, table: PredictionTable, scale: tuple[float, float]) -> tuple[Path, ...]:
    """Write one model's predictions of one split, sorted by file name; the files that were written.

    A model of attributes and of categories makes two files: ``path``, and next to it ``NAME-EmoClass.csv``.

    Args:
        path: of the file.
        table: the predictions; keys are file names with or without an ending, which is then ``.wav``.
        scale: lowest and highest rating of the corpus.

    Raises:
        ConfigError: the model predicts neither all three attributes nor categories, a prediction is no number, or a
            file cannot be written.
    """
    columns: dict[Path, tuple[Sequence[str], list[Sequence[str]]]] = {}
    if all(target in table.targets for target in LABEL_COLUMNS):
        ratings = np.stack([_ratings(table, target, scale) for target in LABEL_COLUMNS], axis=1)
        columns[path] = tuple(LABEL_COLUMNS.values()), [[f"{one:.6f}" for one in row] for row in ratings]
    if table.predicted_categories:
        place = path.with_name(f"{path.stem}-EmoClass{path.suffix}") if columns else path
        columns[place] = ("EmoClass",), [[one] for one in table.predicted_categories]
    if not columns:
        raise ConfigError(
            f"--submission {path}: the model predicts {', '.join(table.targets)}. Give one that predicts "
            f"{', '.join(LABEL_COLUMNS)}, or categories."
        )
    names = [key if is_audio(key) else f"{key}.wav" for key in table.keys]
    for place, (header, rows) in columns.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("FileName", *header))
        writer.writerows(sorted((name, *row) for name, row in zip(names, rows, strict=True)))
        try:
            atomic_write(place, text.getvalue().encode())
        except OSError as error:
            raise ConfigError(f"{place}: cannot be written ({error.strerror}). Name another file.") from error
    return tuple(columns)


def _ratings(table: PredictionTable, target: str, scale: tuple[float, float]) -> Float64[np.ndarray, " rows"]:
    predictions = table.predictions[:, table.targets.index(target)]
    bad = np.flatnonzero(~np.isfinite(predictions))
    if len(bad):
        raise ConfigError(
            f"--submission: the prediction of {target} for {table.keys[bad[0]]!r} is no number. Give another model."
        )
    return np.clip(on_scale(target, predictions, scale), *scale)
