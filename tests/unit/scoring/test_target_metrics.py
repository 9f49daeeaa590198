"""Figures with intervals, gains in pairs, and groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ccts_dist.errors import ConfigError
from ccts_dist.scoring import (
    MEAN,
    PredictionTable,
    TeacherColumns,
    by_age,
    differences,
    few_speakers,
    gaps_of,
    groups_of,
    metrics_of,
    speaker_scores,
    teacher_gap,
)
from ccts_dist.scoring.measures import bias_of, ccc_of, intercept_of, pearson_of, row_sums, shift_of, slope_of
from tests.helpers.examples.tables import make_table


def test_bias_of_three_utterances_is_that_worked_by_hand():
    # Variances 2/3 and 2, means 2 and 3: 2 sqrt(4/3) / (2/3 + 2 + 1).
    sums = row_sums(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [2.0], [5.0]]), torch.ones(3)).sum(0)
    assert float(bias_of(sums)) == pytest.approx(2 * (4 / 3) ** 0.5 / (11 / 3), abs=1e-14)
    assert float(bias_of(sums) * pearson_of(sums)) == pytest.approx(float(ccc_of(sums)), abs=1e-14)


def test_calibration_of_three_utterances_is_that_worked_by_hand():
    # Predictions 1, 2, 3, labels 2, 2, 5: covariance 1, variance 2/3, so slope 3/2; means 2 and 3, so 3 - 3 and -1.
    sums = row_sums(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [2.0], [5.0]]), torch.ones(3)).sum(0)
    found = [float(measure(sums)) for measure in (slope_of, intercept_of, shift_of)]
    assert found == pytest.approx([1.5, 0, -1], abs=1e-12)


def test_predictions_that_are_recalibrated_have_slope_one_and_intercept_zero():
    table = make_table(num_speakers=40)
    slope, intercept = (
        np.array([getattr(one, name).value for one in metrics_of(table)]) for name in ("slope", "intercept")
    )
    for one in metrics_of(replace(table, predictions=intercept + slope * table.predictions)):
        assert one.slope.value == pytest.approx(1, abs=1e-9)
        assert one.intercept.value == pytest.approx(0, abs=1e-9)
        assert one.shift.value == pytest.approx(0, abs=1e-9)


def test_constant_prediction_has_no_bias_factor():
    sums = row_sums(torch.full((3, 1), 0.5), torch.tensor([[0.1], [0.2], [0.3]]), torch.ones(3)).sum(0)
    assert bias_of(sums).isnan().all()
    assert slope_of(sums).isnan().all()


def test_every_figure_lies_in_its_interval_and_ccc_is_pearson_times_bias():
    table = make_table(num_speakers=40)
    for one in metrics_of(table):
        for figure in (one.ccc, one.pearson, one.bias, one.mae, one.slope, one.intercept, one.shift):
            assert figure.low < figure.value < figure.high
        assert one.ccc.value == pytest.approx(one.pearson.value * one.bias.value, abs=1e-12)
        rated = ~np.isnan(table.labels[:, table.targets.index(one.target)])
        assert one.num_labels == rated.sum()
        assert 0.8 < one.spearman < 1


def test_target_that_nobody_rated_has_no_figures():
    table = make_table()
    table.labels[:, 1] = np.nan
    _, none, _ = metrics_of(table)
    assert none.num_labels == 0
    assert np.isnan([none.ccc.value, none.mae.value, none.spearman]).all()
    assert not none.ccc.is_known


def test_pairs_report_a_small_gain_that_single_intervals_do_not():
    worse = make_table(num_speakers=40)
    better = replace(worse, predictions=0.95 * worse.predictions + 0.05 * np.nan_to_num(worse.labels, nan=0.5))
    ours, theirs = metrics_of(better)[1].ccc, metrics_of(worse)[1].ccc
    assert ours.low < theirs.high, "apart, their intervals overlap"
    gains = {one.target: one for one in differences(better, worse)}
    gain = gains["valence"].gain
    assert gain.value == pytest.approx(ours.value - theirs.value, abs=1e-12)
    assert 0 < gain.low < gain.value < gain.high
    assert gains[MEAN].gain.value == pytest.approx(np.mean([gains[t].gain.value for t in worse.targets]), abs=1e-12)
    assert gains[MEAN].first == pytest.approx(gains[MEAN].second + gains[MEAN].gain.value, abs=1e-12)


def test_model_gains_nothing_over_itself():
    for one in differences(make_table(), make_table()):
        assert (one.gain.value, one.gain.low, one.gain.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_gain_is_reported_of_the_targets_that_both_predict():
    fewer = make_table().only(("dominance", "valence"))
    assert [one.target for one in differences(make_table(), fewer)] == ["valence", "dominance", MEAN]


def test_target_without_labels_is_left_out_of_the_mean():
    tables = [make_table(seed=1, noise=0.05), make_table(seed=2, noise=0.3)]
    for table in tables:
        table.labels[:, 2] = np.nan
    *by_target, mean = differences(*tables)
    assert mean.gain.value == pytest.approx((by_target[0].gain.value + by_target[1].gain.value) / 2, abs=1e-12)
    assert mean.gain.is_known
    assert not by_target[2].gain.is_known


def test_other_utterances_or_no_common_target_are_no_pairs():
    with pytest.raises(ConfigError, match="180 and 10 utterances that are not the same cannot be compared in pairs"):
        differences(make_table(), make_table().take(np.arange(10)))
    with pytest.raises(ConfigError, match="models of valence and of arousal have none in common"):
        differences(make_table(targets=("valence",)), make_table(targets=("arousal",)))


def test_gap_to_a_teacher_is_reported_of_what_it_predicts():
    table = make_table(noise=0.3)
    prediction = np.nan_to_num(table.labels, nan=0.5)
    prediction[:, 1] = np.nan
    teacher = TeacherColumns(
        prediction=prediction,
        residual=prediction - table.labels,
        gate_mask=np.ones(len(table), bool),
        widest=(1.0,) * 3,
    )
    gaps = teacher_gap(replace(table, teacher=teacher))
    assert [one.target for one in gaps] == ["activation", "dominance", MEAN]
    assert gaps[0].first == pytest.approx(1)
    assert gaps[0].gain.low > 0


def test_few_speakers_are_warned_of():
    assert few_speakers(149).startswith("149 speakers, fewer than 150: 95 % intervals may be too narrow")
    assert few_speakers(150) == ""


def test_groups_hold_each_utterance_once_and_have_the_ccc_of_their_rows():
    table = make_table()
    groups = groups_of(table)
    for kind, names in (("gender", 3), ("duration", 4), ("transcript", 4)):
        own = [group for group in groups if group.kind == kind]
        assert len(own) == names
        assert sum(group.num_utterances for group in own) == len(table)
    men = next(group for group in groups if group.name == "Male")
    rows = np.array([gender == "Male" for gender in table.genders])
    assert [one.value for one in men.ccc] == pytest.approx(ccc_of(table.take(rows).rows().sum(0)).tolist())
    assert [group.name for group in groups if group.kind == "gender"] == ["Female", "Male", "unknown"]


def test_gap_of_genders_is_that_worked_by_hand():
    # Women: predictions equal to labels 0 and 1. Men: labels 0 and 1, predictions .5 and 1: variances 1/4 and 1/16,
    # covariance 1/8, means .5 and .75: CCC .25 / .375, shift .25. One of unknown gender counts for neither.
    table = replace(
        make_table(1, 5, targets=("valence",)),
        labels=np.array([[0.0], [1.0], [0.0], [1.0], [0.3]]),
        predictions=np.array([[0.0], [1.0], [0.5], [1.0], [0.9]]),
        genders=("Female", "Female", "Male", "Male", None),
        speakers=("a", "b", "c", "d", None),
    )
    (gap,) = gaps_of(table)
    assert (gap.kind, gap.name, gap.other) == ("gender", "Male", "Female")
    assert gap.ccc[0].value == pytest.approx(-1 / 3)
    assert gap.shift[0].value == pytest.approx(0.25)
    assert gaps_of(replace(table, genders=("Male",) * 4 + (None,))) == ()


def speakers_of(count: int, *, men: int) -> PredictionTable:
    """A table of so many known speakers, the first of them men."""
    table = make_table(num_speakers=count)
    numbers = [row % count for row in range(len(table))]
    return replace(
        table,
        speakers=tuple(f"speaker {number}" for number in numbers),
        genders=tuple("Male" if number < men else "Female" for number in numbers),
    )


def test_gap_that_is_there_lies_outside_and_one_that_is_not_inside_its_interval():
    table = speakers_of(60, men=30)
    raised = table.predictions + 0.1 * np.array([gender == "Male" for gender in table.genders])[:, None]
    (none,) = gaps_of(table)
    (some,) = gaps_of(replace(table, predictions=raised))
    assert none.shift[0].low < 0 < none.shift[0].high
    assert some.shift[0].value == pytest.approx(none.shift[0].value + 0.1)
    assert some.shift[0].low > 0.05
    assert some.ccc[0].value < none.ccc[0].value


def test_interval_of_a_gap_is_as_wide_as_its_smaller_group_asks_for():
    table = speakers_of(44, men=4)
    (gap,) = gaps_of(table)
    men = metrics_of(table.take(np.array([gender == "Male" for gender in table.genders])))[0]
    assert gap.shift[0].high - gap.shift[0].low > men.shift.high - men.shift.low


def test_ages_are_in_bands_and_each_less_the_youngest_is_a_gap():
    table = make_table(5, 20)
    speakers = tuple(f"speaker {row % 5}" for row in range(len(table)))
    ages = by_age(speakers, {"speaker 0": 29.5, "speaker 1": 30.0, "speaker 2": 50.0, "speaker 3": 8.0})
    assert [(name, int(rows.sum())) for name, rows in ages] == [
        ("0 to 29", 40), ("30 to 49", 20), ("50 and over", 20), ("unknown", 20),
    ]  # fmt: skip
    gaps = [gap for gap in gaps_of(replace(table, speakers=speakers), {"age": ages}) if gap.kind == "age"]
    assert [(gap.name, gap.other) for gap in gaps] == [("30 to 49", "0 to 29"), ("50 and over", "0 to 29")]
    old, young = (metrics_of(table.take(ages[at][1]))[0] for at in (2, 0))
    assert gaps[1].ccc[0].value == pytest.approx(old.ccc.value - young.ccc.value)
    assert [group.name for group in groups_of(table, {"age": ages}) if group.kind == "age"] == [
        name for name, _ in ages
    ]


def lengths(num_words: list[int]) -> PredictionTable:
    return replace(make_table(1, len(num_words)), num_words=np.array(num_words))


def test_quarters_that_fall_together_are_fewer_groups():
    # Quartiles 0, 0, 1.25: an edge at 0 and one at 1.25.
    groups = [group for group in groups_of(lengths([0] * 5 + [1, 2, 5])) if group.kind == "transcript"]
    assert [(group.name, group.num_utterances) for group in groups] == [
        ("0 words", 5), ("1 words", 1), ("2 to 5 words", 2),
    ]  # fmt: skip
    (only,) = [group for group in groups_of(lengths([3] * 6)) if group.kind == "transcript"]
    assert (only.name, only.num_utterances) == ("3 words", 6)


def test_speakers_come_worst_first_and_those_of_few_utterances_not_at_all():
    table = make_table(num_speakers=5, each=30)
    numbers = np.array([-1 if speaker is None else int(speaker.removeprefix("speaker ")) for speaker in table.speakers])
    table.predictions[numbers == 3] = 0.9
    found = speaker_scores(table, fewest=20)
    assert found[0].speaker == "speaker 3"
    assert found[0].ccc == pytest.approx((0, 0, 0), abs=1e-9)
    rated = table.labels[numbers == 3, 0]
    assert found[0].shift[0] == pytest.approx(np.nanmean(0.9 - rated))
    assert len(found) == 5
    assert speaker_scores(table, fewest=31) == ()
