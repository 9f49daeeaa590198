"""The file that a challenge takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.options import asked_of, build_parser
from ccts_dist.evaluation.submission import write_submission
from ccts_dist.scoring import PredictionTable
from tests.helpers.examples.tables import make_table


def table_of_test3(targets: tuple[str, ...] = ("valence", "dominance", "activation")) -> PredictionTable:
    """Two utterances that nobody rated; one prediction lies outside the scale."""
    predictions = np.array([[0.25, 0.5, 1.125], [0.0, -0.5, 0.75]])[:, : len(targets)]
    return replace(
        make_table(1, 2, targets=targets),
        keys=("MSP-PODCAST_test3_0002", "MSP-PODCAST_test3_0001"),
        predictions=predictions,
        labels=np.full_like(predictions, np.nan),
    )


def test_attributes_are_in_the_challenges_order_on_the_scale_and_within_it(tmp_path: Path):
    assert write_submission(tmp_path / "s.csv", table_of_test3(), (1.0, 7.0)) == (tmp_path / "s.csv",)
    # 1 + 6 x: valence .25 is 2.5; activation 1.125 and dominance -.5 lie beyond the ends.
    assert (tmp_path / "s.csv").read_text() == (
        "FileName,EmoAct,EmoVal,EmoDom\n"
        "MSP-PODCAST_test3_0001.wav,5.500000,1.000000,1.000000\n"
        "MSP-PODCAST_test3_0002.wav,7.000000,2.500000,4.000000\n"
    )


def test_categories_are_a_file_of_their_own(tmp_path: Path):
    both = replace(table_of_test3(), predicted_categories=("A", "N"), categories=(None, None))
    files = write_submission(tmp_path / "s.csv", both, (1.0, 7.0))
    assert [one.name for one in files] == ["s.csv", "s-EmoClass.csv"]
    alone = replace(both.only(()), keys=("a.wav", "b.flac"))
    assert write_submission(tmp_path / "c.csv", alone, (1.0, 7.0)) == (tmp_path / "c.csv",)
    assert (tmp_path / "c.csv").read_text() == "FileName,EmoClass\na.wav,A\nb.flac,N\n"
    assert files[1].read_text().splitlines()[1:] == ["MSP-PODCAST_test3_0001.wav,N", "MSP-PODCAST_test3_0002.wav,A"]


def test_model_of_other_targets_and_predictions_that_are_no_numbers_are_refused(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"the model predicts valence, dominance\. Give one that predicts activation, "
    ):
        write_submission(tmp_path / "s.csv", table_of_test3(("valence", "dominance")), (1.0, 7.0))
    broken = table_of_test3()
    broken.predictions[1, 0] = np.nan
    with pytest.raises(ConfigError, match="prediction of valence for 'MSP-PODCAST_test3_0001' is no number"):
        write_submission(tmp_path / "s.csv", broken, (1.0, 7.0))
    with pytest.raises(ConfigError, match=r"s\.csv: cannot be written \(No such file or directory\)"):
        write_submission(tmp_path / "none" / "s.csv", table_of_test3(), (1.0, 7.0))
    assert list(tmp_path.iterdir()) == []


def test_submission_is_of_one_split():
    words = ["--model", "M", "--shards", "S", "--out", "D", "--submission", "s.csv", "--splits", "Test1"]
    assert asked_of(build_parser().parse_args(words)).submission == Path("s.csv")
    with pytest.raises(ConfigError, match=r"--submission s\.csv: a challenge takes one split, and --splits names 2"):
        asked_of(build_parser().parse_args([*words, "Test3"]))
