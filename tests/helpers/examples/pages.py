"""A whole evaluation of models that never were, with everything that a page may hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from ccts_dist.evaluation.extracts import Extract, worst_utterances
from ccts_dist.evaluation.label_scale import on_scale
from ccts_dist.evaluation.page import Beside
from ccts_dist.evaluation.run import InNoise, ModelResult, Result, SplitResult
from ccts_dist.registry.pull import PulledModel
from ccts_dist.scoring import (
    PredictionTable,
    RaterColumns,
    TeacherColumns,
    by_age,
    concordances,
    differences,
    gains_by_sentiment,
    gaps_of,
    groups_of,
    in_bands,
    lexical_changes,
    lexical_correlations,
    metrics_of,
    rater_ceilings,
    speaker_scores,
    teacher_gap,
)
from ccts_dist.scoring.predict_split import Scores
from tests.helpers.examples.tables import make_table

LONG_KEY = "MSP-PODCAST_" + "0123456789" * 9 + ".wav"
HOSTILE = '<script>document.title = "taken"</script><img src=x onerror=alert(1)> & "words"'


def split_result(
    table: PredictionTable, text: PredictionTable, *, beside: PredictionTable | None = None, noises: bool = False
) -> SplitResult:
    """All that is found of a table, beside the predictions of a text-only model."""
    sentiment = in_bands(on_scale("valence", text.predictions[:, 1], (1.0, 7.0)), "{:.2f}")
    ages = by_age(table.speakers, {f"speaker {number}": 20.0 + number for number in range(40)})
    in_noise = []
    for noise in ("white", "babble", "noise/street") if noises else ():
        for ratio in (0.0, 10.0, 20.0):
            errors = np.random.default_rng([len(noise), int(ratio)]).normal(
                0, 0.6 / (1 + ratio / 5), table.labels.shape
            )
            received = replace(table, predictions=table.predictions + errors)
            in_noise.append(InNoise(noise=noise, snr_db=ratio, ccc=concordances(received.sums())))
    return SplitResult(
        split="Test1",
        scores=Scores(ccc={}, pearson={}, mae={}, num_labels={}, sums={}, damaged=(), loss=0.5),
        table=table,
        metrics=metrics_of(table),
        ceilings=rater_ceilings(table),
        groups=groups_of(table, {"age": ages, "sentiment": sentiment}),
        gaps=gaps_of(table, {"age": ages}),
        speakers=speaker_scores(table),
        in_noise=tuple(in_noise),
        teacher_gap=() if table.teacher is None else teacher_gap(table),
        gains=() if beside is None else differences(beside, table),
        lexical=lexical_correlations(table, text),
        lexical_changes=() if beside is None else lexical_changes(beside, table, text),
        sentiment_gains=() if beside is None else gains_by_sentiment(beside, table, sentiment),
    )


def whole_result() -> Result:
    """Two models on a split, in noise, beside a teacher; two keys that a page must bear."""
    table = make_table(40, 20, noise=0.12)
    table = replace(table, keys=(LONG_KEY, HOSTILE, *table.keys[2:]))
    table.predictions[:2] = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    table.labels[:2] = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    variance = np.random.default_rng(8).uniform(0, 0.05, table.labels.shape)
    variance[:, 2] = np.nan
    table = replace(table, raters=RaterColumns(variance=variance, count=np.full(len(table), 5)))
    rival = replace(make_table(40, 20, noise=0.3, seed=3), keys=table.keys, labels=table.labels)
    prediction = np.nan_to_num(table.labels, nan=0.5) + np.random.default_rng(7).normal(0, 0.08, table.labels.shape)
    residual = prediction - table.labels
    widest = tuple((2 * np.nanstd(residual, axis=0)).tolist())
    text = replace(rival, predictions=rival.predictions + np.random.default_rng(9).normal(0, 0.2, table.labels.shape))
    gate_mask = ~(np.abs(residual) > np.array(widest)).any(axis=1)
    teacher = TeacherColumns(prediction=prediction, residual=residual, gate_mask=gate_mask, widest=widest)
    models = [
        ("models:/emotion@candidate", "emotion/4", replace(table, teacher=teacher), None),
        ("models:/emotion@champion", "emotion/3", rival, table),
    ]
    return Result(
        shards_digest="5" * 64,
        scale=(1.0, 7.0),
        corpus="MSP-Podcast 1.12",
        bins=(3.0, 5.0),
        models=tuple(
            ModelResult(
                name=name,
                pulled=PulledModel(folder=Path("."), version=version),
                weights_sha256="9" * 64,
                splits=(split_result(own, text, beside=beside, noises=beside is None),),
            )
            for name, version, own, beside in models
        ),
    )


def whole_beside(result: Result, folder: Path) -> Beside:
    """The worst utterances with words and sound, and the curves of a training."""
    soundfile.write(folder / "a.flac", np.zeros(1_600), 16_000)
    worst: list[Extract] = []
    for one in worst_utterances(result.models[0].splits[0].table, 5):
        words = f"Words of utterance {one.row}: {HOSTILE}"
        worst.append(replace(one, transcript=words, flac=(folder / "a.flac").read_bytes()))
    steps = {step: {"step": step, "train/loss": 1 / (1 + step / 40), "train/loss_ccc": 0.5} for step in range(1, 900)}
    validations = {
        step: {"valid/loss": 1 / (1 + step / 90), "valid/ccc_valence": step / 1500, "valid/ccc_activation": 0.6}
        for step in range(100, 901, 100)
    }
    facts = {
        "date": "2026-12-01 06:00 UTC",
        "command": f"evaluate.py --out {'long/' * 60}",
        "versions": "ccts-dist 0.2.0",
    }
    return Beside(worst={"Test1": tuple(worst)}, facts=facts, run="runs/student", steps=steps, validations=validations)
