"""Cells, records and file names as label files and folders have them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.corpus.cells import csv_records, parse_label, parse_number, population_variance, text_fault, text_lines
from ccts_dist.corpus.folders import AudioFolder, find_audio, find_entry
from ccts_dist.errors import CorpusError
from ccts_dist.limits import LIMITS
from tests.tiers import examples

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@examples(60)
@given(
    st.lists(st.lists(CELL.filter(str.strip), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(",;\t"),
    st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]),
)
def test_records_that_python_writes_are_read_back_line_breaks_in_cells_included(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str, way: tuple[str, int]
):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=way[0], quoting=way[1]).writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    assert [cells for _, cells in csv_records(path, delimiter, 3)] == rows


def test_a_record_over_several_lines_that_has_other_cells_than_the_header_costs_its_first_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text('1,"x\n2,y,z\n3",q,r\n4,y,z\n')
    read = dict(csv_records(tmp_path / "a.csv", ",", 3))
    assert [type(read[line]) for line in (1, 3)] == [csv.Error, csv.Error]
    assert read[2] == ["2", "y", "z"]
    assert read[4] == ["4", "y", "z"]


def test_an_unclosed_quote_at_the_end_costs_its_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text('1,y,z\n2,"y,z\n3,y,z\n')
    read = dict(csv_records(tmp_path / "a.csv", ",", 3))
    assert [type(cells) for cells in read.values()] == [list, csv.Error, list]


def test_a_record_of_very_many_lines_costs_its_first_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text('1,"y,z\n' + "2,y,z\n" * 2_000 + '3",y,z\n')
    cells = [cells for _, cells in csv_records(tmp_path / "a.csv", ",", 3)]
    assert [type(one) for one in (cells[0], cells[-1])] == [csv.Error, csv.Error]
    assert cells[1:-1] == [["2", "y", "z"]] * 2_000


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("", "'' is not a number"),
        ("1_0", "'1_0' is not a number"),
        ("3,5", "'3,5' is not"),
        ("nan", "is NaN"),
        ("NaN ", "is NaN"),
    ],
)
def test_what_is_no_number_is_reported_in_words(cell: str, words: str):
    with pytest.raises(ValueError, match=words):
        parse_number(cell)


def test_rating_off_the_scale_is_reported_with_the_scale():
    assert parse_label(" 4 ", (1.0, 7.0)) == 0.5
    with pytest.raises(ValueError, match=r"^-inf is off the scale 1\.\.7$"):
        parse_label("-inf", (1.0, 7.0))


def test_variance_divides_by_the_number_of_ratings():
    assert population_variance([0.0, 0.5, 1.0]) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("caf\xe9 e\u0301 \u200b", ""),
        ("a\tb", "holds a control character"),
        ("\x85", "holds a control character"),
        ("\udce9", "is not UTF-8"),
    ],
)
def test_text_that_cannot_be_stored_is_reported(text: str, fault: str):
    assert text_fault(text) == fault


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"cannot be read \(Is a directory\)"):
        list(text_lines(tmp_path))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "line of a label table", 10)  # type: ignore[arg-type]
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 11)
    with pytest.raises(CorpusError, match=r"line 2 has more than 10 characters\. Is it a table of labels\?"):
        list(text_lines(tmp_path / "a.csv"))


def touch(folder: Path, *names: str) -> AudioFolder:
    for name in names:
        (folder / name).touch()
    return AudioFolder(folder)


def test_audio_is_found_by_its_name_before_any_other(tmp_path: Path):
    folder = touch(tmp_path, "a.wav", "a.flac", "a.WAV", "._b.wav")
    assert folder.find_any_ending("a.wav") == tmp_path / "a.wav"
    assert folder.find("b.wav") is None


def test_audio_with_another_ending_is_found_if_there_is_one_such(tmp_path: Path):
    folder = touch(tmp_path, "a.WAV", "b.flac", "c.mp3", "c.ogg", "d.txt")
    assert folder.find_any_ending("a.wav") == tmp_path / "a.WAV"
    assert folder.find_any_ending("b.wav") == tmp_path / "b.flac"
    assert folder.find_any_ending("c.wav") is None
    assert folder.find_any_ending("d.wav") is None
    assert folder.find("b.wav") is None


def test_audio_whose_name_a_mac_has_decomposed_is_found_unless_two_look_alike(tmp_path: Path):
    assert touch(tmp_path, "cafe\u0301.wav").find("caf\xe9.wav") == tmp_path / "cafe\u0301.wav"
    both = touch(tmp_path, "caf\xe9.wav")
    assert both.find("caf\xe9.wav") == tmp_path / "caf\xe9.wav"
    assert both.find("cafe\u0301.wav") == tmp_path / "cafe\u0301.wav"


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path):
    assert AudioFolder(tmp_path / "gone").find("a.wav") is None


def test_a_link_that_leads_nowhere_or_to_itself_is_no_audio(tmp_path: Path):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "gone.wav").symlink_to("nothing.wav")
    folder = touch(tmp_path, "a.wav")
    assert folder.find("loop.wav") is None
    assert folder.find("gone.wav") is None
    assert folder.stems == ["a"]


def test_a_folder_that_is_a_link_to_itself_holds_nothing(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    assert AudioFolder(tmp_path / "loop").find("a.wav") is None


def test_audio_is_looked_for_past_links_to_themselves_and_not_in_a_folder_that_is_gone(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    touch(tmp_path, "a.wav", ".b.wav")
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]
    with pytest.raises(CorpusError, match=r"gone: cannot be listed \(No such file or directory\)"):
        find_audio(tmp_path / "gone")


def test_entries_are_found_in_upper_and_lower_case_and_in_the_order_asked_for(tmp_path: Path):
    (tmp_path / "LABELS").mkdir()
    (tmp_path / "labels.TXT").touch()
    assert find_entry([tmp_path / "no", tmp_path], ["x", "Labels"]) == tmp_path / "LABELS"
    assert find_entry([tmp_path], ["labels.txt", "Labels"]) == tmp_path / "labels.TXT"
    assert find_entry([tmp_path], ["other"]) is None
