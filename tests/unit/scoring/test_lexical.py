"""How lexical a model is: by hand, and of models that know the words or do not."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.scoring import (
    MEAN,
    PredictionTable,
    differences,
    gains_by_sentiment,
    in_bands,
    lexical_changes,
    lexical_correlations,
)
from tests.helpers.examples.tables import make_table


def _tables(
    labels: Sequence[float], predictions: Sequence[float], words: Sequence[float]
) -> tuple[PredictionTable, ...]:
    table = replace(
        make_table(1, len(labels), targets=("valence",)),
        labels=np.array(labels, np.float64)[:, None],
        speakers=tuple(f"s{row}" for row in range(len(labels))),
    )
    return tuple(replace(table, predictions=np.array(values, np.float64)[:, None]) for values in (predictions, words))


def test_partial_correlation_of_four_utterances_is_that_worked_by_hand():
    # Labels -1 -1 1 1, predictions -1 1 1 1 and words -1 1 -1 3 less their means (1/2 and 1/2):
    # p -3/2 1/2 1/2 1/2, t -3/2 1/2 -3/2 5/2. Sums of squares y 4, p 3, t 11; products py 2, ty 2, pt 3.
    # r_py = 2/sqrt(12), r_ty = 2/sqrt(44), r_pt = 3/sqrt(33): (3 - 1)/sqrt(33) over sqrt((1 - 1/3) (1 - 1/11)).
    table, text = _tables([-1, -1, 1, 1], [-1, 1, 1, 1], [-1, 1, -1, 3])
    found = lexical_correlations(table, text)["valence"]
    assert found.value == pytest.approx((2 / 33**0.5) / (2 / 3 * 10 / 11) ** 0.5)
    # Equal to the correlation of what the fits on the label leave: p - y / 2 and t - y / 2, each about its mean.
    assert found.value == pytest.approx(np.corrcoef([-0.5, 1.5, 0.5, 0.5], [-0.5, 1.5, -1.5, 2.5])[0, 1])


def test_label_itself_and_a_constant_have_no_partial_correlation():
    for predictions, words in (
        ([-1, -1, 1, 1], [-1, 1, -1, 3]),
        ([1, 1, 1, 1], [-1, 1, -1, 3]),
        ([0, 1, 1, 1], [2] * 4),
    ):
        table, text = _tables([-1, -1, 1, 1], predictions, words)
        assert np.isnan(lexical_correlations(table, text)["valence"].value)


def test_model_that_follows_the_words_is_reported_and_one_that_does_not_is_not():
    voice, text = make_table(40, 20), make_table(40, 20, noise=0.3, seed=5)
    lexical = replace(voice, predictions=voice.predictions + 0.1 * (text.predictions - np.nan_to_num(text.labels)))
    alone, taught = (lexical_correlations(table, text) for table in (voice, lexical))
    for target in voice.targets:
        assert alone[target].low < 0 < alone[target].high
        assert taught[target].low > 0.1
    for one in lexical_changes(lexical, voice, text):
        assert one.first == pytest.approx(taught[one.target].value)
        assert one.second == pytest.approx(alone[one.target].value)
        assert one.gain.value == pytest.approx(one.first - one.second)
        assert one.gain.low > 0.1


def test_row_without_a_label_does_not_count():
    table, text = _tables([-1, -1, 1, 1, np.nan], [-1, 1, 1, 1, 50], [-1, 1, -1, 3, 90])
    less = [one.take(np.arange(4)) for one in (table, text)]
    assert lexical_correlations(table, text)["valence"].value == pytest.approx(
        lexical_correlations(*less)["valence"].value
    )


def test_gain_by_sentiment_is_that_of_the_quarter():
    first, second = make_table(20, 20), make_table(20, 20, noise=0.3, seed=3)
    found = gains_by_sentiment(first, second, in_bands(np.arange(400.0), "{:.2f}"))
    assert [(one.name, one.num_utterances) for one in found] == [
        ("0.00 to 99.00", 100), ("100.00 to 199.00", 100), ("200.00 to 299.00", 100), ("300.00 to 399.00", 100),
    ]  # fmt: skip
    rows = np.arange(200, 300)
    assert found[2].gains == differences(first.take(rows), second.take(rows))
    assert found[2].gains[-1].target == MEAN


def test_text_model_of_other_targets_or_utterances_is_refused():
    with pytest.raises(ConfigError, match="--text-model: predicts arousal, and a model here valence"):
        lexical_correlations(make_table(targets=("valence",)), make_table(targets=("arousal",)))
    with pytest.raises(ConfigError, match="was not evaluated on the same utterances"):
        lexical_correlations(make_table(), make_table().take(np.arange(9)))
    assert lexical_changes(make_table(), make_table(targets=("arousal",)), make_table()) == ()
