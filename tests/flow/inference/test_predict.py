"""``launch/predict.py`` as it is started by people: many files, bad files, and ends before the end."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from ccts_dist.config import parse_run
from ccts_dist.inference.predictor import load_student
from tests.helpers.models.small_student import save_student
from tests.helpers.processes.launching import ROOT, environment, hear_interrupts, run_forked

SCRIPT = str(ROOT / "launch" / "predict.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "best")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty good files of several kinds in nested folders, and eight that are none."""
    place = tmp_path_factory.mktemp("recordings")
    for number in range(60):
        folder = place / f"speaker {number % 7}" / "ein"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(0.0, 0.1, 4_000 + 700 * (number * 13 % 60))
        rate = (16_000, 44_100, 8_000)[number % 3]
        soundfile.write(folder / f"{number:02}.{('wav', 'flac', 'ogg')[number % 3]}", noise, rate)
    bad = place / "speaker 3"
    (bad / "a-empty.wav").write_bytes(b"")
    (bad / "b-text.wav").write_text("no audio at all")
    whole = (place / "speaker 1" / "ein" / "01.flac").read_bytes()
    (bad / "c-cut.flac").write_bytes(whole[: len(whole) // 2])
    wave = (place / "speaker 3" / "ein" / "03.wav").read_bytes()
    (bad / "d-cut.wav").write_bytes(wave[: len(wave) // 2])
    soundfile.write(bad / "e-short.wav", np.zeros(300), 16_000)
    soundfile.write(bad / "f-silent.wav", np.zeros(0), 16_000)
    soundfile.write(bad / "g-rate.wav", np.zeros(900), 900)
    (bad / "h-gone.wav").symlink_to(bad / "nowhere.wav")
    return place


def predict(*args: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    if not kwargs:
        return run_forked([sys.executable, SCRIPT, *map(str, args)])
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)],
        env=environment(kwargs.pop("env", None)),
        capture_output="stdout" not in kwargs,
        text=True,
        timeout=240,
        check=False,
        **kwargs,
    )


def test_bad_files_are_named_and_all_good_ones_answered_in_order(model: Path, recordings: Path, tmp_path: Path) -> None:
    out, embeddings = tmp_path / "answers.jsonl", tmp_path / "vectors.parquet"
    args = ("--model", model, "--format", "jsonl", "--out", out, "--embeddings", embeddings)
    done = predict(*args, "--batch-seconds", "3", recordings)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    good = [str(path) for path in sorted(recordings.glob("*/ein/*"))]
    assert [row["file"] for row in rows] == good
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    reasons = {Path(line.split(": ")[1]).name: line.split(": ", 2)[2] for line in errors}
    assert len(errors) == 8
    for name, words in {
        "a-empty.wav": "is an empty file",
        "b-text.wav": "cannot be decoded (Format not recognised)",
        "c-cut.flac": "",
        "d-cut.wav": "is cut: ",
        "e-short.wav": "lasts 300 samples",
        "f-silent.wav": "holds no audio",
        "g-rate.wav": "has a sample rate of 900 Hz, which cannot be resampled",
        "h-gone.wav": "the audio file is missing",
    }.items():
        assert reasons[name].startswith(words)
    assert "8 of 68 files skipped" in done.stderr
    assert "predict: 68/68 files" in done.stderr, "plain lines where there is no terminal"
    student = load_student(model)
    for number in (0, 17, 59):
        (alone,) = student.predict([good[number]])
        assert {name: rows[number][name] for name in student.columns} == pytest.approx(alone, abs=1e-5)
    table = parquet.read_table(embeddings)
    assert table["file"].to_pylist() == good
    assert np.allclose(table["embedding"].to_pylist()[17], student.embed([good[17]])[0], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "vectors.parquet"]


def test_ctrl_c_leaves_what_was_written(model: Path, recordings: Path, tmp_path: Path) -> None:
    out, embeddings = tmp_path / "answers.json", tmp_path / "vectors.npy"
    file = str(recordings / "speaker 0" / "ein" / "00.wav")
    args = ("--model", model, "--format", "json", "--out", out, "--embeddings", embeddings, "--batch-seconds", "0.5")
    command = [sys.executable, SCRIPT, *map(str, args), *([file] * 20_000)]
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as process:
        partial, deadline = tmp_path / "answers.json.partial", time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size > 2_000) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 1, printed
    assert printed.splitlines()[-1] == f"stopped: what came before is in {partial} and {embeddings}.partial"
    assert "Traceback" not in printed
    rows = json.loads(partial.read_text("utf-8"))
    assert 0 < len(rows) < 20_000
    assert np.load(f"{embeddings}.partial").shape == (len(rows), 8)
    assert len((tmp_path / "vectors.npy.keys.jsonl.partial").read_text().splitlines()) == len(rows)
    assert not out.exists()


@pytest.mark.long
def test_a_reader_who_leaves_ends_it_without_a_word(model: Path, recordings: Path) -> None:
    file = str(recordings / "speaker 0" / "ein" / "00.wav")
    args = ("--model", str(model), "--format", "csv", "--batch-seconds", "0.5", *([file] * 3_000))
    command = [sys.executable, SCRIPT, *args]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"file,activation,valence,dominance\n"
        process.stdout.close()
        printed = process.stderr.read().decode()
        assert process.wait(timeout=120) == 1
    assert not [line for line in printed.splitlines() if not line.startswith("predict: ")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_disk_is_reported_in_one_line(model: Path, recordings: Path) -> None:
    file = recordings / "speaker 0" / "ein" / "00.wav"
    with open("/dev/full", "w") as full:
        done = predict("--model", model, file, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: stdout: cannot be written (No space left on device). Make room")


@pytest.fixture(scope="module")
def demo_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's shape: what a pass leaves behind is reported better than with the smallest."""
    run = parse_run(tomllib.loads((ROOT / "launch" / "runs" / "demo" / "cts.toml").read_text()))
    return save_student(tmp_path_factory.mktemp("demo") / "best", run.model)


def _peak_mb(model: Path, *args: str | Path) -> float:
    """The largest memory of the command."""
    command = [sys.executable, SCRIPT, "--model", str(model), "--format", "csv", *map(str, args)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1000


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_files(demo_student: Path, tmp_path: Path) -> None:
    """Each pass has a shape of its own; oneDNN kept something of each, 500 MB of these."""
    lengths = np.random.default_rng(0).integers(8_000, 120_000, 1_200)
    noise = np.random.default_rng(1).normal(0.0, 0.1, 120_000).astype(np.float32)
    for number, length in enumerate(lengths):
        soundfile.write(tmp_path / f"{number:04}.wav", noise[:length], 16_000)
    files = sorted(tmp_path.iterdir())
    few, many = _peak_mb(demo_student, *files[:300]), _peak_mb(demo_student, *files)
    assert many < few + 200


@pytest.mark.long
def test_memory_does_not_grow_with_the_duration_of_a_recording(demo_student: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.1, 60 * 22_050)
    for minutes in (4, 40):
        with soundfile.SoundFile(tmp_path / f"{minutes}.flac", "w", 22_050, 2) as file:
            for _ in range(minutes):
                file.write(np.stack([noise, noise], axis=1))
    few, many = (_peak_mb(demo_student, "--window", "5", tmp_path / f"{minutes}.flac") for minutes in (4, 40))
    assert many < few + 200, "40 minutes are 850 MB as they are decoded"


@pytest.mark.long
def test_a_locale_without_umlauts_and_a_name_that_is_no_utf_8_do_no_harm(
    model: Path, recordings: Path, tmp_path: Path
) -> None:
    names = ["schön.wav".encode(), b"caf\xe9.wav"]
    source = (recordings / "speaker 0" / "ein" / "00.wav").read_bytes()
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(source)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, SCRIPT, "--model", str(model), "--format", "csv", str(tmp_path)]
    done = subprocess.run(command, env=environment(plain), capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode("utf-8"))))
    assert {Path(row["file"]).name for row in rows} == {"schön.wav", "caf\\udce9.wav"}
