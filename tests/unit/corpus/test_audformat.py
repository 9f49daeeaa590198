"""Databases in audformat that are damaged or not what the options name; whole ones become shards in
tests/flow/corpus/test_corpora_to_shards.py."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ccts_dist.corpus import AnnotationColumns, Corpus, read_audformat
from ccts_dist.corpus.audformat.tables import index_of
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards import open_shard_set
from tests.helpers.examples.audformat_examples import RATERS_COLUMNS, RATERS_HEADER, raters, read_raters, segments
from tests.unit.shards.test_commands import run


def good(corpus: Corpus) -> dict[str, Utterance]:
    return {one.key: one for one in corpus.utterances if isinstance(one, Utterance)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": {"a": "arousal.rater3"}}, r"one column 'arousal.rater3' and found arousal.rater1, arousal.rater2"),
        ({"targets": {"a": "nothing.*"}}, "one column 'nothing.*'"),
        ({"gender": "files.speaker.age"}, "looked for the columns age and found speaker, gender"),
        ({"gender": "files.transcription.age"}, "labels of files.transcription have no field 'age'"),
        ({"gender": "arousal.rater1.age"}, "labels of arousal.rater1 have no field 'age'"),
    ],
)
def test_column_that_is_not_there_is_refused_in_one_line(options: dict, words: str, tmp_path: Path):
    raters(tmp_path)
    with pytest.raises(CorpusError, match=words) as refused:
        read_audformat(tmp_path, columns=replace(RATERS_COLUMNS, **options))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "db.yaml").unlink(), "looked for db.yaml and found"),
        (lambda root: (root / "db.yaml").write_text("[a, b]"), "is no mapping in YAML"),
        (lambda root: (root / "db.yaml").write_text("a: [b"), r"db.yaml: cannot be read \(while parsing"),
        (lambda root: (root / "db.yaml").write_text("!!python/object/apply:os.system [x]"), "cannot be read"),
        (lambda root: (root / "db.yaml").write_text("a: !!bool x"), "cannot be read"),
        (lambda root: (root / "db.yaml").write_text("a: !!timestamp x"), "cannot be read"),
        (lambda root: (root / "db.yaml").write_text("a: " + "[" * 100_000), "nested more than 32 deep"),
        (lambda root: (root / "db.yaml").write_text("a: &a {b: 1}\nc: {<<: *a}"), "cannot be read"),
        (lambda root: (root / "db.files.csv").unlink(), "looked for db.files.parquet or .csv and found neither"),
        (lambda root: (root / "db.files.csv").rename(root / "db.files.pkl"), "found only its pickle, which can run"),
        (lambda root: (root / "db.files.csv").write_text('file,speaker\n"'), "looked for the columns transcription"),
        (lambda root: (root / "db.files.csv").write_text("file,speaker,transcription\na"), "line 2 has 1 cells"),
        (lambda root: (root / "db.files.parquet").write_bytes(b"PAR1xPAR1"), "files.parquet: cannot be read"),
    ],
)
def test_damaged_database_is_refused_in_one_line(damage, words: str, tmp_path: Path):
    raters(tmp_path)
    damage(tmp_path)
    with pytest.raises(CorpusError, match=words) as refused:
        read_raters(tmp_path)
    assert "\n" not in str(refused.value)


def test_table_whose_name_leaves_the_folder_is_not_opened(tmp_path: Path):
    raters(tmp_path)
    (tmp_path / "db.yaml").write_text(RATERS_HEADER.replace("\n  files:", "\n  ../files:"))
    with pytest.raises(CorpusError, match=r"table '../files' can be no file"):
        read_audformat(tmp_path, columns=AnnotationColumns(text="../files.transcription"))


def test_scale_is_the_schemes_unless_one_is_given(tmp_path: Path):
    raters(tmp_path)
    assert good(read_raters(tmp_path, scale=(1.0, 9.0)))["wav/two.wav"].labels == {"arousal": 0.5}
    header = RATERS_HEADER.replace(", minimum: 1, maximum: 5", ", minimum: 1")
    (tmp_path / "db.yaml").write_text(header)
    with pytest.raises(ConfigError, match="--target arousal: its scheme states no minimum and maximum"):
        read_raters(tmp_path)
    with pytest.raises(ConfigError, match="scale 5 1: must be two numbers, the lower one first"):
        read_raters(tmp_path, scale=(5.0, 1.0))


def test_without_ratings_rows_are_those_of_the_transcripts_else_of_the_speakers(tmp_path: Path):
    raters(tmp_path)
    for columns in (AnnotationColumns(text="files.transcription"), AnnotationColumns(speaker="files.speaker")):
        splits = {key: one.split for key, one in good(read_audformat(tmp_path, columns=columns)).items()}
        assert splits == {
            "wav/one.wav": "train", "wav/two.wav": "train", "wav/three.wav": "test", "wav/four.wav": "other"
        }  # fmt: skip
    with pytest.raises(ConfigError, match="no column is named"):
        read_audformat(tmp_path, columns=AnnotationColumns())


def test_category_of_raters_is_the_most_frequent_and_none_at_a_tie(tmp_path: Path):
    columns = "".join(f"      r{number}: {{scheme_id: e}}\n" for number in (1, 2, 3))
    (tmp_path / "db.yaml").write_text(f"name: x\ntables:\n  e:\n    type: filewise\n    columns:\n{columns}")
    (tmp_path / "db.e.csv").write_text("file,r1,r2,r3\na.wav,joy,fear,joy\nb.wav,joy,fear,\nc.wav,,,\n")
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    corpus = read_audformat(tmp_path, columns=AnnotationColumns(category="e.*"))
    assert {key: one.category for key, one in good(corpus).items()} == {"a.wav": "joy", "b.wav": None, "c.wav": None}
    assert {one.split for one in good(corpus).values()} == {"all"}


def test_speaker_of_two_names_and_control_characters_are_rejected(tmp_path: Path):
    (tmp_path / "db.yaml").write_text(
        "name: x\ntables:\n  f:\n    columns: {s: , t: }\n  g:\n    columns: {s: }\n  h:\n    columns: {s: }\n"
    )
    for table, rows in {"f": ["a.wav,1,x", "b.wav,,\x01", "c.wav,\x02,y"], "g": ["a.wav,2"], "h": ["a.wav,1"]}.items():
        (tmp_path / f"db.{table}.csv").write_text("\n".join([f"file,s{',t' * (table == 'f')}", *rows]))
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    corpus = read_audformat(tmp_path, columns=AnnotationColumns(text="f.t", speaker="*.s"))
    reasons = {one.key: one.reason for one in corpus.utterances if isinstance(one, Rejected)}
    assert reasons == {
        "a.wav": "db.f.csv line 2: speaker is 1 and 2",
        "b.wav": "db.f.csv line 3: text holds a control character",
        "c.wav": "db.f.csv line 4: speaker holds a control character",
    }


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((3,), "file is no name"),
        (("a.wav", "1.5", None), "'1.5' is no time such as"),
        (("a.wav", "-1 days +23:59:59", None), "is no time such as"),
        (("a.wav", 5, 5), "span nothing"),
        (("a.wav", -5, 5), "span nothing"),
        (("a.wav", 5, None), "begins within the file and names no end"),
        (("a.wav", None, float("nan")), "is no time such as"),
    ],
)
def test_row_without_an_index_is_named(cells: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        index_of(*cells)


def test_time_is_read_to_the_nanosecond():
    assert index_of("a", "0 days 00:00:03.797899315", "1 days 01:02:03.5") == ("a", 3_797_899_315, 90_123_500_000_000)
    assert index_of("a", "00:00:00", "NaT") == ("a", 0, None)


def test_parquet_of_more_rows_than_a_table_may_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ccts_dist.corpus.audformat.tables._MOST_ROWS", 4)
    segments(tmp_path)
    with pytest.raises(CorpusError, match="has 5 rows, more than 4"):
        read_audformat(tmp_path, columns=AnnotationColumns(text="segments.text"))


def test_parquet_without_a_column_is_refused(tmp_path: Path):
    segments(tmp_path)
    parquet.write_table(pa.table({"file": ["a"]}), tmp_path / "db.segments.parquet")
    with pytest.raises(CorpusError, match="looked for the columns start, end, text and found file"):
        read_audformat(tmp_path, columns=AnnotationColumns(text="segments.text"))


def test_command_builds_shards_of_a_database(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    segments(tmp_path / "db")
    build = ["build", "audformat", tmp_path / "db", "--processes", "1", "--max-rejected", "0.9"]
    named = ["--target", "valence=segments.valence", "--speaker", "segments.speaker", "--text", "segments.text"]
    assert run(*build, *named, "--by-speaker", "--folds", "2", "--out", tmp_path / "shards") == 0
    manifest = open_shard_set(tmp_path / "shards").manifest
    assert (manifest.corpus, manifest.split_names, manifest.scale) == ("talks", ("Fold1", "Fold2"), (-1.0, 1.0))
    capfd.readouterr()
    assert run(*build, "--target", "valence=segments.nothing", "--out", tmp_path / "x") == 2
    assert "looked for one column 'segments.nothing' and found segments.arousal" in capfd.readouterr().err
