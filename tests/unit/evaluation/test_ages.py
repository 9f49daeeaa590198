"""The table of speakers' ages."""

from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.evaluation.ages import read_ages


def test_ages_are_read_by_speaker_and_an_empty_one_is_unknown(tmp_path: Path):
    (tmp_path / "ages.csv").write_text("speaker,sex,age\n1001,Male,51\n 1002 ,Female,21.5\n1003,Female,\n")
    assert read_ages(tmp_path / "ages.csv") == {"1001": 51, "1002": 21.5}


@pytest.mark.parametrize("age", ["old", "-1", "131", "nan", "inf"])
def test_age_that_is_none_is_refused_with_its_line(age: str, tmp_path: Path):
    (tmp_path / "ages.csv").write_text(f"speaker,age\n1,20\n2,{age}\n")
    with pytest.raises(ConfigError, match=rf"line 3: age '{age}' is no number of years up to 130"):
        read_ages(tmp_path / "ages.csv")


def test_table_without_the_columns_is_refused(tmp_path: Path):
    (tmp_path / "ages.csv").write_text("ActorID,Age\n1001,51\n")
    with pytest.raises(CorpusError, match="looked for the columns speaker, age and found ActorID, Age"):
        read_ages(tmp_path / "ages.csv")
