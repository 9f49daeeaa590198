"""Scores: predictions of each utterance, and how good they are on a split, on parts of it, beside another model."""

from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.calibration import CalibrationBin, calibration_bins
from ccts_dist.scoring.gate import Gate, gate_from
from ccts_dist.scoring.gather import PredictionCollector
from ccts_dist.scoring.groups import (
    Gap,
    Group,
    Part,
    SpeakerScore,
    by_age,
    gaps_of,
    groups_of,
    in_bands,
    speaker_scores,
)
from ccts_dist.scoring.lexical import SentimentGain, gains_by_sentiment, lexical_changes, lexical_correlations
from ccts_dist.scoring.prediction_table import (
    PredictionTable,
    RaterColumns,
    TeacherColumns,
    joined,
    read_table,
    write_table,
)
from ccts_dist.scoring.rater_ceilings import RaterCeiling, rater_ceilings
from ccts_dist.scoring.recalls import UAR, confusion, gains_of, in_bins, uar_difference, unweighted_accuracy
from ccts_dist.scoring.speakers import add_by_cluster, clusters_of, sums_by_speaker
from ccts_dist.scoring.target_metrics import (
    MEAN,
    Difference,
    TargetMetrics,
    concordances,
    differences,
    few_speakers,
    metrics_of,
    teacher_gap,
)
from ccts_dist.scoring.teacher_gate import with_teacher

__all__ = [
    "MEAN",
    "UAR",
    "CalibrationBin",
    "Difference",
    "Gap",
    "Gate",
    "Group",
    "Interval",
    "Part",
    "PredictionCollector",
    "PredictionTable",
    "RaterCeiling",
    "RaterColumns",
    "SentimentGain",
    "SpeakerScore",
    "TargetMetrics",
    "TeacherColumns",
    "add_by_cluster",
    "bootstrap",
    "by_age",
    "calibration_bins",
    "clusters_of",
    "concordances",
    "confusion",
    "differences",
    "few_speakers",
    "gains_by_sentiment",
    "gains_of",
    "gaps_of",
    "gate_from",
    "groups_of",
    "in_bands",
    "in_bins",
    "joined",
    "lexical_changes",
    "lexical_correlations",
    "metrics_of",
    "rater_ceilings",
    "read_table",
    "speaker_scores",
    "sums_by_speaker",
    "teacher_gap",
    "uar_difference",
    "unweighted_accuracy",
    "with_teacher",
    "write_table",
]
