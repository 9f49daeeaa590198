"""Plain manifests in CSV and JSON lines."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ccts_dist.corpus import Corpus, read_manifest
from ccts_dist.errors import ConfigError, CorpusError, run_main
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards import open_shard_set
from shards import build as build_command

Write = Callable[..., Path]


@pytest.fixture
def csv_of(tmp_path: Path) -> Write:
    """Writes a manifest with these lines beside two recordings that are never opened."""

    def write(*lines: str, name: str = "corpus.csv") -> Path:
        for audio in ("a.wav", "b.wav"):
            (tmp_path / audio).touch()
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def json_of(csv_of: Write) -> Write:
    """The same with a JSON object per line."""

    def write(*rows: Any) -> Path:
        return csv_of(*map(json.dumps, rows), name="corpus.jsonl")

    return write


def only(corpus: Corpus) -> Utterance:
    (utterance,) = corpus.utterances
    assert isinstance(utterance, Utterance), utterance
    return utterance


def reason(corpus: Corpus) -> str:
    (rejected,) = corpus.utterances
    assert isinstance(rejected, Rejected), rejected
    return rejected.reason


def test_a_row_becomes_an_utterance_with_every_fact(csv_of: Write, tmp_path: Path):
    header = "key,audio,split,transcript,speaker,gender,category,num_raters,joy,calm,joy.variance"
    corpus = read_manifest(
        csv_of(header, "k,a.wav,Train, Hi  you ,s1,F,glad,5.0,2,1,0.5"), scale=(0.0, 4.0), release="3"
    )
    assert (corpus.name, corpus.release, corpus.scale, corpus.targets) == ("corpus", "3", (0.0, 4.0), ("joy", "calm"))
    assert only(corpus) == Utterance(
        key="k",
        audio=tmp_path / "a.wav",
        split="Train",
        labels={"joy": 0.5, "calm": 0.25},
        scale=(0.0, 4.0),
        transcript=" Hi  you ",
        speaker="s1",
        gender="F",
        category="glad",
        label_variance={"joy": 0.5 / 16},
        num_raters=5,
    )


def test_share_of_raters_is_on_0_to_1_whatever_the_scale(csv_of: Write):
    corpus = read_manifest(csv_of("key,audio,joy,sad.share", "k,a.wav,4,0.25"), scale=(1.0, 7.0))
    assert only(corpus).labels == {"joy": 0.5, "sad.share": 0.25}


def test_a_file_name_that_is_not_utf8_is_written_out_in_the_name_of_the_corpus(csv_of: Write):
    path = csv_of("key,audio", "k,a.wav", name=os.fsdecode(b"m\xe4.csv"))
    assert read_manifest(path).name == r"m\udce4"


def test_key_and_audio_are_all_that_is_needed(csv_of: Write):
    corpus = read_manifest(csv_of("audio,key", "a.wav,k"), name="mine")
    utterance = only(corpus)
    assert (corpus.name, corpus.targets) == ("mine", ())
    assert (utterance.split, utterance.transcript, utterance.speaker, utterance.num_raters) == ("all", "", None, None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_separate_cells(csv_of: Write, delimiter: str):
    lines = [delimiter.join(cells) for cells in (("key", "valence", "audio"), ("k", "4", "a.wav"))]
    assert only(read_manifest(csv_of(*lines))).labels == {"valence": 0.5}


def test_json_lines_state_the_same_as_csv(csv_of: Write, json_of: Write):
    from_csv = read_manifest(csv_of("key,audio,split,speaker,valence", "k,a.wav,Dev,7,5.5", "l,b.wav,Dev,,"))
    row = {"key": "k", "audio": "a.wav", "split": "Dev", "speaker": 7, "valence": 5.5}
    assert read_manifest(json_of(row, {"key": "l", "audio": "b.wav", "split": "Dev"})) == from_csv


def test_numbers_in_json_may_be_text_and_keys_numbers(json_of: Write):
    utterance = only(read_manifest(json_of({"key": 12, "audio": "a.wav", "valence": "4"})))
    assert (utterance.key, utterance.labels) == ("12", {"valence": 0.5})


def test_absolute_audio_is_taken_as_it_is(csv_of: Write, tmp_path: Path):
    path = tmp_path / "elsewhere" / "x.wav"
    path.parent.mkdir()
    path.touch()
    assert only(read_manifest(csv_of("key,audio", f"k,{path}"))).audio == path


def test_missing_labels_in_some_or_all_targets_are_kept_as_missing(csv_of: Write):
    corpus = read_manifest(csv_of("key,audio,x,y", "a,a.wav,1,", "b,b.wav,,"))
    assert [row.labels for row in corpus.utterances if isinstance(row, Utterance)] == [{"x": 0.0}, {}]


def test_a_target_that_nobody_rated_is_a_target(csv_of: Write):
    assert read_manifest(csv_of("key,audio,x", "a,a.wav,")).targets == ("x",)


def test_given_targets_pass_over_other_columns(csv_of: Write):
    path = csv_of("key,audio,note,age,y,x", "a,a.wav,fine,61,2,1")
    corpus = read_manifest(path, targets=["x", "y"])
    assert corpus.targets == ("x", "y")
    assert only(corpus).labels == {"x": 0.0, "y": pytest.approx(1 / 6)}


def test_unnamed_column_of_row_numbers_is_no_target(csv_of: Write):
    assert read_manifest(csv_of(",key,audio,x", "0,a,a.wav,1")).targets == ("x",)


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("x", "9", "line 2: x 9 is off the scale 1..7"),
        ("x", "nan", "line 2: x is NaN"),
        ("split", "", "line 2: split is empty"),
        ("x.variance,x", "-1,4", "line 2: x.variance -1 is off 0..36"),
        ("x.variance,x", "some,4", "line 2: x.variance 'some' is not a number"),
        ("num_raters", "2.5", "line 2: num_raters 2.5 is not a whole number from 0"),
        ("num_raters", "1e300", "line 2: num_raters 1e300 is not a whole number from 0"),
        ("num_raters", "few", "line 2: num_raters 'few' is not a number"),
        ("speaker", "a\x07", "line 2: speaker holds a control character"),
    ],
)
def test_bad_cell_rejects_its_row(csv_of: Write, header: str, row: str, words: str):
    assert reason(read_manifest(csv_of(f"key,audio,{header}", f"k,a.wav,{row}"))) == words


def test_audio_in_a_folder_that_cannot_be_listed_rejects_its_row(csv_of: Write):
    words = reason(read_manifest(csv_of("key,audio", f"k,{'x' * 300}/a.wav")))
    assert words.startswith("line 2: audio: ")
    assert "cannot be listed (File name too long)" in words


def test_line_breaks_in_a_transcript_stay_as_they_are(csv_of: Write, json_of: Write):
    printed = "one\rtwo\r\nthree\nfour"
    path = csv_of("key,audio,transcript")
    path.write_bytes(b'key,audio,transcript\r\nk,a.wav,"' + printed.encode() + b'"\r\nl,a.wav,five\r\n')
    first, second = read_manifest(path).utterances
    assert isinstance(first, Utterance)
    assert isinstance(second, Utterance)
    assert (first.transcript, second.transcript) == (printed, "five")
    assert only(read_manifest(json_of({"key": "k", "audio": "a.wav", "transcript": printed}))).transcript == printed


def test_text_among_numbers_rejects_its_row(csv_of: Write):
    first, second = read_manifest(csv_of("key,audio,x", "a,a.wav,high", "b,b.wav,4")).utterances
    assert first == Rejected(key="a", reason="line 2: x 'high' is not a number", source="corpus.csv")
    assert isinstance(second, Utterance)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"valence": True}, "line 1: valence true is not a number"),
        ({"valence": [4]}, "line 1: valence [4] is not a number"),
        ({"valence": float("inf")}, "line 1: valence inf is off the scale 1..7"),
        ({"speaker": 1.5}, "line 1: speaker is no text but 1.5"),
        ({"transcript": {"text": "x"}}, 'line 1: transcript is no text but {"text": "x"}'),
        ({"transcript": "\ud800"}, "line 1: transcript is not valid Unicode"),
        ({"transcript": "s\x00o\x00"}, "line 1: transcript holds NUL"),
        ({"key": None}, "line 1: key is empty"),
        ({"audio": "b\x00.wav"}, "line 1: audio holds a control character"),
        ({"audio": "gone.wav"}, "missing audio"),
        ({"audio": "."}, "missing audio"),
    ],
)
def test_bad_value_in_json_rejects_its_row(json_of: Write, row: dict, words: str):
    good = {"key": "g", "audio": "b.wav", "valence": 4}
    first, second = read_manifest(json_of({"key": "k", "audio": "a.wav"} | row, good)).utterances
    assert isinstance(first, Rejected)
    assert first.reason == words
    assert isinstance(second, Utterance)


def test_address_in_the_place_of_a_file_rejects_its_row_without_its_password(csv_of: Write):
    corpus = read_manifest(csv_of("key,audio", "k,https://alice:secret9@host/a.wav?X-Amz-Signature=abcdef0123"))
    (rejected,) = corpus.utterances
    assert rejected == Rejected(
        key="k",
        reason="line 2: audio is the address 'https://host/a.wav', and files are read: fetch it",
        source="corpus.csv",
    )


def test_name_that_comes_twice_on_a_line_rejects_it(csv_of: Write):
    good = '{"key": "k", "audio": "a.wav", "valence": 4}'
    lines = (good.replace("4", '1, "valence": 7'), good.replace('"k"', '"l"'))
    first, second = read_manifest(csv_of(*lines, name="m.jsonl")).utterances
    assert isinstance(first, Rejected)
    assert first.reason == "line 1: not a JSON object: 'valence' comes twice"
    assert second.key == "l"


@pytest.mark.parametrize("name", ["", " "])
def test_column_of_json_lines_without_a_name_is_no_target(json_of: Write, name: str):
    with pytest.raises(CorpusError, match=f"column '{name}' has no name. Rename it or leave it out"):
        read_manifest(json_of({"key": "k", "audio": "a.wav", name: 4}))


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"key": "k"', '{"a": ' * 100_000, "9" * 5000])
def test_a_line_that_is_no_object_is_rejected_and_the_next_is_read(csv_of: Write, line: str):
    path = csv_of(line, '{"key": "k", "audio": "a.wav"}', name="m.jsonl")
    first, second = read_manifest(path).utterances
    assert isinstance(first, Rejected)
    assert first.key == "line 1"
    assert first.reason.startswith("line 1: not a JSON object")
    assert isinstance(second, Utterance)


def test_second_row_of_one_key_is_rejected_and_the_first_is_kept(csv_of: Write):
    first, second = read_manifest(csv_of("key,audio,split", "k,a.wav,Train", "k,b.wav,Test")).utterances
    assert isinstance(first, Utterance)
    assert second == Rejected(key="k", reason="line 3: duplicate of line 2, which comes first", source="corpus.csv")


def test_keys_that_look_alike_are_two_keys(csv_of: Write):
    keys = ["caf\xe9", "cafe\u0301", " k", "k"]
    corpus = read_manifest(csv_of("key,audio", *(f"{key},a.wav" for key in keys)))
    assert [row.key for row in corpus.utterances if isinstance(row, Utterance)] == keys


@pytest.mark.parametrize("row", ["k,a.wav", "k,a.wav,hello, you,Train", '"k,a.wav,hello,Train'])
def test_row_with_other_cells_than_the_header_is_rejected(csv_of: Write, row: str):
    first, second = read_manifest(csv_of("key,audio,transcript,split", row, "l,b.wav,x,Train")).utterances
    assert isinstance(first, Rejected)
    assert isinstance(second, Utterance)


def test_empty_cells_beyond_the_header_are_nothing(csv_of: Write):
    assert only(read_manifest(csv_of("key,audio,x", "k,a.wav,1,,"))).labels == {"x": 0.0}


def test_manifest_without_its_columns_is_refused_with_those_it_has(csv_of: Write):
    with pytest.raises(CorpusError, match=r"corpus.csv: looked for the columns key, audio and found path, text\."):
        read_manifest(csv_of("path,text", "a.wav,x"))


def test_empty_manifest_is_refused(csv_of: Write):
    with pytest.raises(CorpusError, match="looked for the columns key, audio and found an empty file"):
        read_manifest(csv_of(""))


def test_json_manifest_without_an_object_is_refused(csv_of: Write):
    with pytest.raises(CorpusError, match=r"no line is a JSON object\. Write one object per line, not a list of them"):
        read_manifest(csv_of('[{"key": "k", "audio": "a.wav"}]', name="m.json"))


def test_manifest_without_rows_is_refused(csv_of: Write):
    with pytest.raises(CorpusError, match=r"corpus.csv: no row\. Give a manifest with an utterance per row"):
        read_manifest(csv_of("key,audio"))


def test_missing_manifest_is_refused(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"m.csv: no such file\. Give a manifest in CSV or JSON lines"):
        read_manifest(tmp_path / "m.csv")


def test_column_of_words_is_refused_with_what_to_state(csv_of: Write):
    with pytest.raises(CorpusError, match=r"column 'note' holds no number, so it is no target.*--targets x$"):
        read_manifest(csv_of("key,audio,note,x", "k,a.wav,fine,4"))


def test_target_that_is_no_column_is_refused(csv_of: Write):
    with pytest.raises(
        CorpusError, match=r"looked for the target 'valence' among the other columns and found Valence\."
    ):
        read_manifest(csv_of("key,audio,Valence", "k,a.wav,4"), targets=["valence"])


def test_describing_column_is_refused_as_a_target(csv_of: Write):
    with pytest.raises(CorpusError, match=r"looked for the target 'num_raters' among the other columns and found none"):
        read_manifest(csv_of("key,audio,num_raters", "k,a.wav,4"), targets=["num_raters"])


def test_variance_of_no_column_is_refused(csv_of: Write):
    with pytest.raises(CorpusError, match=r"column 'x.variance' is the variance of no column\. Rename it"):
        read_manifest(csv_of("key,audio,x.variance", "k,a.wav,4"))


def test_column_that_comes_twice_is_refused(csv_of: Write):
    with pytest.raises(CorpusError, match=r"column 'x' comes twice\. Leave one of them out"):
        read_manifest(csv_of("key,audio,x,x", "k,a.wav,4,4"))


def test_header_that_is_no_record_is_refused(csv_of: Write):
    with pytest.raises(
        CorpusError, match=r"line 1: not a CSV record: a quote is not closed\. Give a manifest with a header"
    ):
        read_manifest(csv_of('key,"audio', "k,a.wav"))


@pytest.mark.parametrize("scale", [(7.0, 1.0), (1.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_scale_that_does_not_rise_is_refused(csv_of: Write, scale: tuple[float, float]):
    with pytest.raises(ConfigError, match="must be two numbers, the lower one first"):
        read_manifest(csv_of("key,audio"), scale=scale)


def test_audio_that_no_row_names_is_listed(tmp_path: Path):
    for name in ("a.wav", "bad.wav", "unnamed.wav", "unnamed.flac", "u.m4a", "a.mp4", "notes.txt", "._a.wav", ".b.m4a"):
        (tmp_path / name).touch()
    (tmp_path / "table.csv").write_text("key,audio,valence\na,a.wav,3\nb,bad.wav,99\n")
    corpus = read_manifest(tmp_path / "table.csv")
    assert corpus.unnamed == (tmp_path / "u.m4a", tmp_path / "unnamed.flac", tmp_path / "unnamed.wav")


def test_manifest_is_split_by_speaker_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = tmp_path / "t.csv"
    speakers = ["", *"abcdef"]
    lines = [f"k{number},{number}.wav,{speaker},x,0.{number}\n" for number, speaker in enumerate(speakers)]
    table.write_text("key,audio,speaker,split,valence\n" + "".join(lines))
    for number in range(len(speakers)):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1), 16_000)
    build = ["manifest", str(table), "--out", str(tmp_path / "set"), "--scale", "0", "1", "--max-rejected", "0.2"]
    assert run_main(build_command.main, [*build, "--processes", "1", "--by-speaker"]) == 0
    shard_set = open_shard_set(tmp_path / "set")
    counts = {
        split: sum(one.num_utterances for one in shard_set.shards_of([split]))
        for split in shard_set.manifest.split_names
    }
    assert counts == {"Train": 4, "Development": 1, "Test": 1}
    assert "no speaker" in (tmp_path / "set" / "rejected.jsonl").read_text()
    capsys.readouterr()
    assert run_main(build_command.main, [*build, "--folds", "2"]) == 2
    assert "--folds: are folds of speakers. Add --by-speaker." in capsys.readouterr().err
    table.write_text(table.read_text().replace("speaker", "other"))
    assert run_main(build_command.main, [*build, "--targets", "valence", "--by-speaker"]) == 2
    assert "--by-speaker: no utterance has a speaker" in capsys.readouterr().err
