"""What a model predicted of each utterance, and how good that is: of a split, of parts of it, beside another model."""

from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.calibration import CalibrationBin, calibration_bins
from ccts_dist.scoring.gate import Gate, gate_from
from ccts_dist.scoring.gather import PredictionCollector
from ccts_dist.scoring.groups import Group, SpeakerScore, groups_of, speaker_scores
from ccts_dist.scoring.prediction_table import PredictionTable, TeacherColumns, joined, read_table, write_table
from ccts_dist.scoring.recalls import UAR, confusion, in_bins, uar_difference, unweighted_accuracy
from ccts_dist.scoring.speakers import add_by_cluster, clusters_of, sums_by_speaker
from ccts_dist.scoring.target_metrics import (
    MEAN,
    Difference,
    TargetFigures,
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
    "Gate",
    "Group",
    "Interval",
    "PredictionCollector",
    "PredictionTable",
    "SpeakerScore",
    "TargetFigures",
    "TeacherColumns",
    "add_by_cluster",
    "bootstrap",
    "calibration_bins",
    "clusters_of",
    "concordances",
    "confusion",
    "differences",
    "few_speakers",
    "gate_from",
    "groups_of",
    "in_bins",
    "joined",
    "metrics_of",
    "read_table",
    "speaker_scores",
    "sums_by_speaker",
    "teacher_gap",
    "uar_difference",
    "unweighted_accuracy",
    "with_teacher",
    "write_table",
]
