"""The command in this process: what it refuses at once, and what it makes of windows."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.errors import run_main
from ccts_dist.inference.predictor import load_student
from launch import predict as command
from tests.helpers.models.small_student import save_student, student_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "best", student_config(categories=("calm", "tense")))


def _write(path: Path, seconds: float, rate: int = 16_000) -> np.ndarray:
    samples = np.random.default_rng(len(path.name)).normal(0.0, 0.1, int(seconds * rate))
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return samples


def test_each_window_is_answered_as_a_recording_of_its_own_and_their_mean_follows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "long.wav", 3.7)
    _write(tmp_path / "b.flac", 0.5)
    files = [str(tmp_path / name) for name in ("long.wav", "b.flac")]
    pictures, embeddings = tmp_path / "pictures", tmp_path / "e.npy"
    args = ["--model", str(model), "--window", "2", "--hop", "1", "--format", "csv", "--plot", str(pictures)]
    assert run_main(command.main, [*args, "--embeddings", str(embeddings), *files]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    spans = [(Path(row["file"]).name, row["kind"], float(row["start_s"]), float(row["end_s"])) for row in rows]
    assert spans == [
        ("long.wav", "window", 0.0, 2.0),
        ("long.wav", "window", 1.0, 3.0),
        ("long.wav", "window", pytest.approx(1.7), pytest.approx(3.7)),
        ("long.wav", "mean", 0.0, pytest.approx(3.7)),
        ("b.flac", "window", 0.0, 0.5),
        ("b.flac", "mean", 0.0, 0.5),
    ]
    whole, _ = soundfile.read(files[0], dtype="float32")
    student = load_student(model)
    (middle,) = student.predict([whole[16_000:48_000]])
    assert rows[1]["category"] == middle["category"]
    assert float(rows[1]["valence"]) == pytest.approx(middle["valence"], abs=1e-5)
    mean = np.mean([float(row["valence"]) for row in rows[:3]])
    assert float(rows[3]["valence"]) == pytest.approx(mean, abs=1e-9)
    keys = [json.loads(line) for line in (tmp_path / "e.npy.keys.jsonl").read_text().splitlines()]
    assert [key["start_s"] for key in keys] == [0.0, 1.0, 1.7, 0.0]
    assert np.allclose(np.load(embeddings)[1], student.embed([whole[16_000:48_000]])[0], atol=1e-5)
    assert sorted(path.name for path in pictures.iterdir()) == ["b.flac.png", "long.wav.png"]


@pytest.mark.parametrize("options", [[], ["--window", ".5"]])
def test_a_recording_that_is_a_square_wave_is_answered_with_a_warning(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    noise = np.random.default_rng(0).normal(size=16_000)
    soundfile.write(tmp_path / "loud.wav", 3 * noise, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "usual.wav", 0.1 * noise, 16_000, subtype="FLOAT")
    files = [str(tmp_path / name) for name in ("loud.wav", "usual.wav")]
    assert run_main(command.main, ["--model", str(model), *options, *files]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {files[0]}: more than 50% of its samples are at full scale")


def test_a_recording_that_breaks_off_has_windows_but_no_mean_and_no_picture(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.flac"
    _write(path, 90.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    args = ["--model", str(model), "--window", "5", "--format", "jsonl", "--plot", str(tmp_path / "cut.svg")]
    assert run_main(command.main, [*args, str(path)]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert {row["kind"] for row in rows} == {"window"}
    assert 3 <= len(rows) <= 9
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {path}: ")
    assert line.endswith(f"; without a mean, after {len(rows)} windows that are given. Skipped.")
    assert not (tmp_path / "cut.svg").exists()


def test_a_table_has_the_categories_and_is_aligned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.wav", 0.5)
    assert run_main(command.main, ["--model", str(model), str(tmp_path)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.replace(" ", "") == "|file|activation|valence|dominance|category|p(calm)|p(tense)|"
    assert len({header.index("| category"), row.rindex("| calm") if "calm" in row else row.rindex("| tense")}) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--hop", "1"], "--hop, --plot: are of windows, and there are none. Give --window too."),
        (["--plot", "a.svg"], "--hop, --plot: are of windows, and there are none. Give --window too."),
        (["--window", "0"], "--window 0: must be 0.025 to 600 s"),
        (["--batch-seconds", "0"], "batch_seconds=0: must be above 0 and finite"),
        (["--embeddings", "e.pkl"], "--embeddings e.pkl: embeddings are .npy, .parquet, .safetensors files"),
        (["--out", "absent/a.csv"], "--out absent/a.csv: there is no folder absent"),
        (["--device", "warp"], "device 'warp' cannot be used"),
        (["--window", "1", "--plot", "a.svg"], "--plot a.svg: is one picture, and there are 2 recordings"),
    ],
)
def test_mistakes_are_reported_in_one_line_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    files = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    assert run_main(command.main, ["--model", str(tmp_path / "no model"), *args, *files]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {words}")


def test_nothing_to_predict_is_a_mistake_and_an_empty_folder_beside_files_a_failure(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run_main(command.main, ["--model", str(model), str(tmp_path / "empty")]) == 2
    assert "nothing to predict" in capsys.readouterr().err
    _write(tmp_path / "a.wav", 0.5)
    args = ["--model", str(model), "--format", "jsonl", str(tmp_path / "empty"), str(tmp_path / "a.wav")]
    assert run_main(command.main, args) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "empty: holds no audio file" in printed.err


def test_no_picture_of_a_model_that_predicts_categories_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_student(tmp_path / "best", student_config(targets=(), categories=("calm", "tense")))
    _write(tmp_path / "a.wav", 0.5)
    picture = tmp_path / "a.svg"
    args = ["--model", str(model), "--window", "1", "--plot", str(picture), str(tmp_path / "a.wav")]
    assert run_main(command.main, args) == 2
    assert f"error: --plot {picture}: draws targets over time, and the model predicts" in capsys.readouterr().err


def test_a_recording_that_cannot_be_read_has_no_windows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").write_bytes(b"plain text, and rather long")
    written = io.StringIO()  # of another program, which has no encoding to set
    monkeypatch.setattr(sys, "stdout", written)
    args = ["--model", str(model), "--window", "1", "--format", "jsonl", str(tmp_path / "a.wav")]
    assert run_main(command.main, args) == 1
    assert written.getvalue() == ""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.endswith(". Skipped.")
    assert "without a mean" not in line
