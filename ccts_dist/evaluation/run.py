"""An evaluation in order: each model on each split, clean, in every noise and room, then the figures of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ccts_dist.audio.augment import GENERATED
from ccts_dist.distributed import Ranks, run_on_all_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.ages import read_ages
from ccts_dist.evaluation.label_scale import on_scale
from ccts_dist.evaluation.options import MERGED, Asked
from ccts_dist.progress import Progress
from ccts_dist.records import DIMENSIONS
from ccts_dist.registry.pull import PulledModel, pull_model_on_ranks
from ccts_dist.scoring import (
    Difference,
    Gap,
    Group,
    Interval,
    Part,
    PredictionTable,
    RaterCeiling,
    SentimentGain,
    SpeakerScore,
    TargetMetrics,
    by_age,
    concordances,
    gains_by_sentiment,
    gains_of,
    gaps_of,
    groups_of,
    in_bands,
    lexical_changes,
    lexical_correlations,
    metrics_of,
    rater_ceilings,
    speaker_scores,
    teacher_gap,
    with_teacher,
)
from ccts_dist.scoring.evaluator import Evaluation, Evaluator
from ccts_dist.scoring.predict_split import Scores
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.teacher_cache import TeacherCache, open_merged_teacher, open_teacher_cache

VALENCE = DIMENSIONS[1]
"""Whose prediction from the words alone is their sentiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InNoise:
    """A split, read in noise."""

    noise: str
    snr_db: float
    ccc: tuple[Interval, ...]
    """CCC of each target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InRoom:
    """A split, read in rooms."""

    impulse_responses: str
    """Their folder."""

    ccc: tuple[Interval, ...]
    """CCC of each target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """All that is found of one model on one split."""

    split: str
    scores: Scores
    table: PredictionTable
    metrics: tuple[TargetMetrics, ...]
    ceilings: tuple[RaterCeiling, ...]
    """Ceilings of the targets whose raters are known."""

    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]
    """Gaps of genders, and of ages where they are known."""

    speakers: tuple[SpeakerScore, ...]
    in_noise: tuple[InNoise, ...]
    teacher_gap: tuple[Difference, ...]
    """Teacher less model; empty without a teacher."""

    gains: tuple[Difference, ...]
    """The first model less this one; empty for the first."""

    lexical: Mapping[str, Interval]
    """By target, the partial correlation with the text-only model; empty without one."""

    lexical_changes: tuple[Difference, ...]
    """Lexical change, the first model less this one; empty for the first."""

    sentiment_gains: tuple[SentimentGain, ...]
    """The first model less this one, by the sentiment of the words; empty for the first."""

    in_rooms: tuple[InRoom, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model on all splits."""

    name: str
    """Name as given."""

    pulled: PulledModel
    weights_sha256: str
    splits: tuple[SplitResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Findings of an evaluation."""

    shards_digest: str
    scale: tuple[float, float]
    """Scale of the ratings."""

    models: tuple[ModelResult, ...]
    """The first is the one that counts."""

    corpus: str = ""
    """Name and release."""

    bins: tuple[float, ...] = ()
    """Edges on the scale of the ratings, between which classes were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predicted:
    """One model's predictions, before anything is made of them."""

    clean: tuple[Evaluation, ...]
    in_noise: tuple[tuple[tuple[str, float, PredictionTable], ...], ...]
    """For each split: noise, ratio and table."""

    in_rooms: tuple[tuple[tuple[str, PredictionTable], ...], ...]
    """For each split: folder and table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """Facts of the splits beside the models' predictions."""

    ages: Mapping[str, float]
    """By speaker, in years."""

    texts: tuple[PredictionTable, ...]
    """The text-only model's predictions of each split; empty without one."""


def run_evaluation(asked: Asked, ranks: Ranks) -> Result:
    """Predict all that was asked for, over all ranks; the same result on every rank. Every rank must call it.

    Raises:
        ConfigError: an unknown model folder, split, noise or room, bins that do not rise, or models without a common
            target.
        RegistryError: a model that is unknown in the registry, or was altered.
        ShardError: shards that are absent or damaged.
        TeacherError: a cache of other shards, or one that lacks the split.
    """
    found: list[ModelResult] = []
    known = _known(asked, ranks)
    shard_set = run_on_all_ranks(lambda: open_shard_set(asked.shards))
    for name in asked.models:
        pulled = pull_model_on_ranks(name, ranks, tracking_uri=asked.tracking_uri)
        evaluator = Evaluator(
            pulled.folder, asked.shards, ranks=ranks, micro_batch_size=asked.batch_size, bins=asked.bins
        )
        predicted = _predict(asked, evaluator, ranks, name)
        first = found[0] if found else None
        splits = run_on_all_ranks(
            lambda: _splits(asked, evaluator, predicted, first, known)  # noqa: B023 - called at once
        )
        found.append(ModelResult(name=name, pulled=pulled, weights_sha256=evaluator.weights_sha256, splits=splits))
    low, high = shard_set.manifest.scale
    return Result(
        shards_digest=shard_set.digest,
        corpus=shard_set.manifest.title,
        scale=(low, high),
        bins=asked.bins,
        models=tuple(found),
    )


def _predict(asked: Asked, evaluator: Evaluator, ranks: Ranks, name: str) -> _Predicted:
    clean, in_noise, in_rooms = [], [], []
    noises = [(noise, ratio) for noise in asked.noises or GENERATED for ratio in asked.snr_db]
    each = 1 + len(noises) + len(asked.impulse_responses)
    with Progress(len(asked.splits) * each, name, unit="splits", visible=ranks.is_first) as progress:
        for split in asked.splits:
            clean.append(evaluator.split(split))
            progress.advance()
            noisy = []
            for noise, ratio in noises:
                noisy.append((noise, ratio, evaluator.split(split, noise=noise, snr_db=ratio).table))
                progress.advance()
            in_noise.append(tuple(noisy))
            reverberant = []
            for folder in asked.impulse_responses:
                reverberant.append((folder, evaluator.split(split, impulse_responses=folder).table))
                progress.advance()
            in_rooms.append(tuple(reverberant))
    return _Predicted(clean=tuple(clean), in_noise=tuple(in_noise), in_rooms=tuple(in_rooms))


def _known(asked: Asked, ranks: Ranks) -> _Known:
    ages = run_on_all_ranks(lambda: read_ages(asked.ages) if asked.ages else {})
    if not asked.text_model:
        return _Known(ages=ages, texts=())
    pulled = pull_model_on_ranks(asked.text_model, ranks, tracking_uri=asked.tracking_uri)
    evaluator = Evaluator(pulled.folder, asked.shards, ranks=ranks, micro_batch_size=asked.batch_size)
    if not evaluator.is_text_only:
        raise ConfigError(
            f"--text-model {asked.text_model}: has a speech branch, so its errors are not those of words alone. "
            "Give a model without [model.speech]."
        )
    return _Known(ages=ages, texts=tuple(evaluator.split(split).table for split in asked.splits))


def _by_sentiment(text: PredictionTable, scale: Sequence[float]) -> dict[str, list[Part]]:
    """Quarters of the valence that the words alone predict, on the corpus's scale; empty where they predict none."""
    if VALENCE not in text.targets:
        return {}
    low, high = scale
    valence = text.predictions[:, text.targets.index(VALENCE)]
    return {"sentiment": in_bands(on_scale(VALENCE, valence, (low, high)), "{:.2f}")}


def _splits(
    asked: Asked,
    evaluator: Evaluator,
    predicted: _Predicted,
    first: ModelResult | None,
    known: _Known,
) -> tuple[SplitResult, ...]:
    cache = _teacher(asked.teacher_cache, evaluator.shard_set) if asked.teacher_cache else None
    results, texts = [], known.texts
    for number, split in enumerate(asked.splits):
        table, rival = predicted.clean[number].table, None if first is None else first.splits[number].table
        sentiment = _by_sentiment(texts[number], evaluator.shard_set.manifest.scale) if texts else {}
        ages = {"age": by_age(table.speakers, known.ages)} if known.ages else {}
        if cache is not None:
            table = with_teacher(table, cache, evaluator.shard_set, split, gate=evaluator.gate)
        results.append(
            SplitResult(
                split=split,
                scores=predicted.clean[number].scores,
                table=table,
                metrics=metrics_of(table),
                ceilings=rater_ceilings(table),
                groups=groups_of(table, {**ages, **sentiment}),
                gaps=gaps_of(table, ages),
                speakers=speaker_scores(table),
                in_noise=tuple(
                    InNoise(noise=noise, snr_db=ratio, ccc=concordances(noisy.sums()))
                    for noise, ratio, noisy in predicted.in_noise[number]
                ),
                in_rooms=tuple(
                    InRoom(impulse_responses=folder, ccc=concordances(reverberant.sums()))
                    for folder, reverberant in predicted.in_rooms[number]
                ),
                teacher_gap=() if cache is None else teacher_gap(table),
                gains=() if rival is None else gains_of(rival, table),
                lexical=lexical_correlations(table, texts[number]) if texts else {},
                lexical_changes=lexical_changes(rival, table, texts[number]) if texts and rival is not None else (),
                sentiment_gains=()
                if rival is None
                else tuple(one for parts in sentiment.values() for one in gains_by_sentiment(rival, table, parts)),
            )
        )
    return tuple(results)


def _teacher(place: str, shard_set: ShardSet) -> TeacherCache:
    return open_merged_teacher(shard_set) if place == MERGED else open_teacher_cache(place, shard_set)
