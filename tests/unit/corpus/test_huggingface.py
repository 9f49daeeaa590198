"""Hugging Face data sets, in every form that the library reads from a folder, become the utterances that went in."""

import io
import json
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ccts_dist.corpus.huggingface import Columns, read_huggingface
from ccts_dist.corpus.speaker_splits import resplit_by_speaker
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.limits import LIMITS
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards import open_shard_set
from tests.unit.shards.test_commands import run

COLUMNS = Columns(text="sentence", category="emotion", speaker="who", targets={"valence": "v"})
VALENCE = [1.0, 2.5, None, 7.0, 4.0]
NAMES = ["sad", "glad", None, "sad", "glad"]


@pytest.fixture(autouse=True)
def quiet():
    """``datasets`` shows bars on stderr, and leaves files to the garbage collector."""
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    datasets.enable_progress_bars()


def flac(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(-3000, 3000, 800, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, noise, 16_000, format="FLAC")
    return file.getvalue()


def rows() -> datasets.Dataset:
    """Five rows; valence on 1..7."""
    features = datasets.Features(
        {
            "audio": datasets.Audio(decode=False),
            "sentence": datasets.Value("string"),
            "emotion": datasets.ClassLabel(names=["sad", "glad"]),
            "v": datasets.Value("float64"),
            "who": datasets.Value("int64"),
            "unused": datasets.Audio(decode=False),
        }
    )
    audio = [{"bytes": flac(number), "path": f"{number}.flac"} for number in range(5)]
    return datasets.Dataset.from_dict(
        {
            "audio": audio,
            "sentence": [f"sentence  {number}" for number in range(5)],
            "emotion": [-1 if name is None else ["sad", "glad"].index(name) for name in NAMES],
            "v": VALENCE,
            "who": [1, 1, 2, 2, 3],
            "unused": audio,
        },
        features=features,
    )


def parquet(folder: Path) -> str:
    (folder / "data").mkdir(parents=True)
    rows().to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return str(folder)


def one_file(folder: Path) -> str:
    return str(Path(parquet(folder)) / "data" / "train-00000-of-00001.parquet")


def saved(folder: Path) -> str:
    datasets.DatasetDict(train=rows()).save_to_disk(str(folder))
    return str(folder)


def saved_split(folder: Path) -> str:
    rows().save_to_disk(str(folder))
    return str(folder)


def audio_folder(folder: Path) -> str:
    (folder / "train").mkdir(parents=True)
    lines = ["file_name,sentence,emotion,v,who"]
    for number, (valence, name) in enumerate(zip(VALENCE, NAMES, strict=True)):
        (folder / "train" / f"{number}.flac").write_bytes(flac(number))
        shown = "" if valence is None else valence
        lines.append(f"{number}.flac,sentence  {number},{name or ''},{shown},{[1, 1, 2, 2, 3][number]}")
    (folder / "train" / "metadata.csv").write_text("\n".join(lines))
    return str(folder)


FORMS: dict[str, Callable[[Path], str]] = {
    "parquet": parquet,
    "one file": one_file,
    "saved": saved,
    "saved split": saved_split,
    "audiofolder": audio_folder,
}


@pytest.mark.parametrize("form", FORMS)
def test_utterances_are_the_rows(form: str, tmp_path: Path):
    source = FORMS[form](tmp_path / "set")
    corpus = read_huggingface(source, columns=COLUMNS, audio_folder=tmp_path / "audio", release="r")
    assert (corpus.release, corpus.targets, corpus.scale) == ("r", ("valence",), (1.0, 7.0))
    for number, one in enumerate(corpus.utterances):
        assert isinstance(one, Utterance), one
        assert one.key == f"train-{number:08d}"
        assert (one.split, one.transcript, one.category) == ("train", f"sentence {number}", NAMES[number])
        assert one.speaker == str([1, 1, 2, 2, 3][number])
        rating = VALENCE[number]
        assert one.labels == ({} if rating is None else {"valence": (rating - 1) / 6})
        assert one.audio.read_bytes() == flac(number)
    assert len(corpus.utterances) == 5


def test_web_data_set_gives_its_members_as_columns(tmp_path: Path):
    path = tmp_path / "set" / "train-000000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            label = json.dumps({"emotion": NAMES[number], "rated": {"v": VALENCE[number]}}).encode()
            for name, data in (
                (f"{number}.flac", flac(number)),
                (f"{number}.txt", f"reported {number}".encode()),
                (f"{number}.json", label),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    columns = Columns(
        audio="flac", text="txt", key="__key__", category="json.emotion", targets={"valence": "json.rated.v"}
    )
    corpus = read_huggingface(str(path.parent), columns=columns, audio_folder=tmp_path / "audio")
    assert [one.key for one in corpus.utterances] == ["0", "1", "2"]
    for number, one in enumerate(corpus.utterances):
        assert isinstance(one, Utterance)
        assert (one.transcript, one.audio.read_bytes()) == (f"reported {number}", flac(number))
        rating = VALENCE[number]
        assert one.category == NAMES[number]
        assert one.labels == ({} if rating is None else {"valence": (rating - 1) / 6})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(category="votes"), r"the column 'votes' holds lists\. Name one of text or numbers"),
        (Columns(targets={"v": "all"}), r"the column 'all' holds fields \(all\.v\)\. Name one of"),
        (Columns(text="all.w"), r"looked for the column 'all\.w' and found id, audio, votes, all\.v\."),
        (Columns(text="votes.0"), r"looked for the column 'votes\.0' and found"),
    ],
)
def test_column_of_lists_or_fields_is_refused_before_any_audio_is_written(columns: Columns, words: str, tmp_path: Path):
    source = json_lines(tmp_path / "set", {"votes": [1.5], "all": {"v": 2.0}})
    with pytest.raises(CorpusError, match=words):
        read_huggingface(source, columns=columns, audio_folder=tmp_path / "audio")


def test_splits_by_speaker_take_the_place_of_the_data_sets(tmp_path: Path):
    source = parquet(tmp_path / "set")
    given = read_huggingface(source, columns=COLUMNS, audio_folder=tmp_path / "audio").utterances
    folds = resplit_by_speaker([Rejected(key="x", reason="bad", source="row 9"), *given], 2)
    assert [(one.speaker, one.split) for one in folds if isinstance(one, Utterance)] == [
        ("1", "Fold1"),
        ("1", "Fold1"),
        ("2", "Fold2"),
        ("2", "Fold2"),
        ("3", "Fold1"),
    ]


def test_row_with_a_fault_is_rejected_and_the_others_stay(tmp_path: Path):
    data = rows().to_dict()
    assert isinstance(data, dict)
    data["v"][0] = 9.0
    data["audio"][1] = {"bytes": b"", "path": None}
    data["audio"][2] = {"bytes": None, "path": "/etc/passwd"}
    data["audio"][3] = {"bytes": None, "path": "../../other.flac"}
    (tmp_path / "other.flac").write_bytes(flac(0))
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pa.Table.from_pydict(data, schema=rows().features.arrow_schema)
    pq.write_table(table, tmp_path / "set" / "data" / "x.parquet")
    corpus = read_huggingface(str(tmp_path / "set"), columns=COLUMNS, audio_folder=tmp_path / "audio")
    assert [one.reason if isinstance(one, Rejected) else "" for one in corpus.utterances] == [
        "v 9.0 is off the scale 1..7",
        "audio holds no audio",
        "missing audio: no file of the data set",
        "missing audio: no file of the data set",
        "",
    ]
    assert isinstance(corpus.utterances[0], Rejected)
    assert corpus.utterances[0].source == "train row 0"


def json_lines(folder: Path, *rows: dict[str, Any]) -> str:
    """A file of rows beside the audio ``a.flac`` that they name unless they name another."""
    folder.mkdir()
    (folder / "a.flac").write_bytes(flac(0))
    lines = [json.dumps({"id": f"row {number}", "audio": "a.flac"} | row) for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return str(folder / "rows.jsonl")


def test_audio_that_a_text_names_is_a_file_of_the_data_set(tmp_path: Path):
    source = json_lines(tmp_path / "set", {})
    (one,) = read_huggingface(source, columns=Columns(key="id"), audio_folder=tmp_path / "audio").utterances
    assert isinstance(one, Utterance)
    assert (one.key, one.audio) == ("row 0", tmp_path / "set" / "a.flac")


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        (Columns(key="id"), {"id": ""}, "id is empty"),
        (Columns(key="id"), {"id": "row 0"}, "duplicate of row 0, which comes first"),
        (Columns(key="id"), {"id": "a\tb"}, "id holds a control character"),
        (Columns(text="id"), {"id": "a\0b"}, "id holds NUL"),
        (Columns(targets={"valence": "v"}), {"v": True}, "v is no number but True"),
        (Columns(category="c"), {"c": 1.5}, "c is no text but 1.5"),
        (Columns(), {"audio": "a\0.flac"}, "missing audio: no file of the data set"),
    ],
)
def test_row_whose_cell_is_none_is_rejected_in_words(
    columns: Columns, row: dict[str, Any], reason: str, tmp_path: Path
):
    source = json_lines(tmp_path / "set", {}, row)
    first, second = read_huggingface(source, columns=columns, audio_folder=tmp_path / "audio").utterances
    assert isinstance(first, Utterance)
    assert isinstance(second, Rejected)
    assert (second.reason, second.source) == (reason, "train row 1")


def test_number_of_no_class_is_rejected(tmp_path: Path):
    data = rows().to_dict()
    assert isinstance(data, dict)
    data["emotion"][1] = 2
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pydict(data, schema=rows().features.arrow_schema), tmp_path / "set" / "x.parquet")
    corpus = read_huggingface(str(tmp_path / "set"), columns=COLUMNS, audio_folder=tmp_path / "audio")
    reasons = [one.reason for one in corpus.utterances if isinstance(one, Rejected)]
    assert reasons == ["emotion 2 is the number of no class"]


def test_audio_of_more_bytes_than_any_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "flac member", 10)  # type: ignore[arg-type]
    source = parquet(tmp_path / "set")
    one = read_huggingface(source, columns=COLUMNS, audio_folder=tmp_path / "audio").utterances[0]
    assert isinstance(one, Rejected)
    assert one.reason == f"audio has {len(flac(0)):,} bytes, more than 10"


def test_audio_beside_the_rows_of_a_data_set_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.flac").write_bytes(flac(0))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            names = [f"http://127.0.0.1:{server.server_port}/{name}.flac" for name in ("a", "b")]
            on_hub = datasets.IterableDataset.from_generator(lambda: ({"audio": name} for name in names))
            assert on_hub.features is None, "a stream states its columns by its rows alone"
            monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: on_hub)
            found, gone = read_huggingface(
                "somebody/speech", columns=Columns(), audio_folder=tmp_path / "audio"
            ).utterances
        finally:
            server.shutdown()
            thread.join()
    assert isinstance(found, Utterance)
    assert found.audio.read_bytes() == flac(0)
    assert isinstance(gone, Rejected)
    assert gone.reason == f"missing audio: {names[1]}"


def no_rows(folder: Path) -> str:
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "x.arrow"), pa.schema([("audio", pa.string())])):
        pass
    return str(folder / "x.arrow")


def saved_without_rows(folder: Path) -> str:
    datasets.Dataset.from_dict({"audio": []}).save_to_disk(folder)
    return str(folder)


def no_known_file(folder: Path) -> str:
    folder.mkdir()
    (folder / "rows.csv").write_text("audio\na.flac\n")
    return str(folder / "rows.csv")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_rows, r"x.arrow: no row\. Name a data set that has some"),
        (saved_without_rows, r"set: cannot be read as a data set \(list index out of range\)"),
        (no_known_file, r"rows.csv: ends in none of \.parquet, \.arrow"),
    ],
)
def test_file_without_rows_or_of_another_kind_is_refused(make: Callable[[Path], str], words: str, tmp_path: Path):
    with pytest.raises(CorpusError, match=words):
        read_huggingface(make(tmp_path / "set"), columns=Columns(), audio_folder=tmp_path / "audio")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": Columns(audio="sound")}, "looked for the column 'sound' and found audio, sentence"),
        ({"splits": ["dev"]}, "looked for the split 'dev' and found train"),
        ({"source": "nowhere/at/all"}, "nowhere/at/all: no such folder or file, and no name on the hub"),
        ({"scale": (7.0, 1.0)}, "scale 7 1: must be two numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(options: dict, words: str, tmp_path: Path):
    given = {"source": parquet(tmp_path / "set"), "columns": COLUMNS} | options
    source = given.pop("source")
    with pytest.raises((ConfigError, CorpusError), match=words) as caught:
        read_huggingface(source, audio_folder=tmp_path / "audio", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["not a data set", "script", "cut", "damaged"])
def test_what_is_no_data_set_is_refused_in_one_line(damage: str, tmp_path: Path):
    folder = Path(parquet(tmp_path / "set"))
    file = folder / "data" / "train-00000-of-00001.parquet"
    if damage in ("not a data set", "script"):
        file.unlink()
        (folder / "set.py").write_text("raise SystemExit('ran')" if damage == "script" else "")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    else:
        data = bytearray(file.read_bytes())
        data[8:400] = b"\xff" * 392
        file.write_bytes(data)
    with pytest.raises(CorpusError, match="cannot be read") as caught:
        read_huggingface(str(folder), columns=COLUMNS, audio_folder=tmp_path / "audio")
    assert "\n" not in str(caught.value)


def test_without_datasets_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'ccts-dist\[hf\]'"):
        read_huggingface(str(tmp_path), columns=COLUMNS, audio_folder=tmp_path / "audio")


def test_audio_that_was_written_before_is_kept_and_other_audio_replaced(tmp_path: Path):
    source, folder = parquet(tmp_path / "set"), tmp_path / "audio"
    read_huggingface(source, columns=COLUMNS, audio_folder=folder)
    first, second = folder / "train" / "00000000.flac", folder / "train" / "00000001.flac"
    times = first.stat().st_mtime_ns
    second.write_bytes(b"x" * second.stat().st_size)
    read_huggingface(source, columns=COLUMNS, audio_folder=folder)
    assert first.stat().st_mtime_ns == times
    assert second.read_bytes() == flac(1)


def test_command_builds_shards_of_a_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    source, out = parquet(tmp_path / "set"), tmp_path / "shards"
    options = ["--text", "sentence", "--target", "valence=v", "--category", "emotion", "--speaker", "who"]
    build = ["build", "hf", source, *options, "--by-speaker", "--folds", "3", "--processes", "1", "--out", out]
    assert run(*map(str, build)) == 0
    assert run(*map(str, build)) == 0
    assert "was complete already" in capfd.readouterr().out
    shards = open_shard_set(out)
    assert (shards.manifest.corpus, shards.manifest.categories) == ("set", ("glad", "sad"))
    assert shards.manifest.split_names == ("Fold1", "Fold2", "Fold3")
    rows_of_first = shards.rows("Fold1-000000.tar")
    record = json.loads(shards.member(rows_of_first, 1, "json"))
    assert (record["key"], record["labels"]) == ("train-00000001", {"valence": 0.25})
    assert run("build", "hf", source, "--target", "=v", "--out", str(tmp_path / "x")) == 2
    assert "--target =v: must be NAME=COLUMN" in capfd.readouterr().err
    assert run("build", "hf", source, "--out", "s3://bucket/x") == 2
    assert "Name a folder with --audio-dir" in capfd.readouterr().err
