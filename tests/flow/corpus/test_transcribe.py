"""The command as people run it: real processes, real small models, corpora in their layouts, kills at any moment."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ccts_dist.asr.recognizer import Recognizer, load_recognizer
from ccts_dist.asr.transcribe import transcribe, wanted_utterances
from ccts_dist.commands.shards.transcribe import parse_args
from ccts_dist.corpus import read_msp_podcast
from ccts_dist.corpus.asr_transcripts import apply_transcripts, read_transcripts
from ccts_dist.errors import run_main
from ccts_dist.records import Utterance
from tests.helpers.models.small_recognizers import chirps, save_ctc, save_whisper, write_podcast
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT
from tests.tiers import examples

LENGTHS = [1_600 + 310 * (number * 7 % 23) for number in range(300)]


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "shards/transcribe.py", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the processes that the tests start: on more threads, sums come in another order and round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys) -> Callable[..., Ended]:
    """The command in this process: starting another costs seconds."""
    spec = importlib.util.spec_from_file_location("script_transcribe", ROOT / "shards" / "transcribe.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run_here(*words: str | Path) -> Ended:
        capsys.readouterr()
        code = run_main(script.main, [*map(str, words), "--device", "cpu"])
        return Ended(code, *capsys.readouterr())

    return run_here


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_ctc(tmp_path_factory.mktemp("models") / "ctc", norm="group")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_podcast(tmp_path_factory.mktemp("corpora") / "podcast", LENGTHS)


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return load_recognizer(str(model), device="cpu", batch_seconds=2.0)


def transcribed(corpus: Path, recognizer: Recognizer, out: Path, **choices) -> bytes:
    transcribe(wanted_utterances(read_msp_podcast(corpus).utterances, **choices), recognizer, out)
    return out.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, recognizer: Recognizer, tmp_path_factory) -> bytes:
    return transcribed(corpus, recognizer, tmp_path_factory.mktemp("whole") / "asr.jsonl")


def test_a_killed_pass_goes_on_and_ends_with_the_file_of_one_that_was_not(
    run, corpus: Path, model: Path, undisturbed: bytes, tmp_path: Path
):
    out = tmp_path / "asr.jsonl"
    words = ("msp-podcast", corpus, "--model", model, "--out", out, "--batch-seconds", "2")
    for lines in (5, 60):
        with Forked(
            command(*words, "--device", "cpu"), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < lines):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert lines <= out.read_bytes().count(b"\n") < len(LENGTHS)
    assert run(*words).returncode == 0
    assert out.read_bytes() == undisturbed
    assert len(read_transcripts(out)) == len(LENGTHS)


@examples(8)
@given(st.data())
def test_whatever_of_a_file_is_left_the_pass_ends_with_the_same_file(
    corpus: Path, recognizer: Recognizer, undisturbed: bytes, tmp_path_factory, data
):
    out = tmp_path_factory.mktemp("torn") / "asr.jsonl"
    out.write_bytes(undisturbed[: data.draw(st.integers(0, len(undisturbed)))])
    assert transcribed(corpus, recognizer, out) == undisturbed


@pytest.mark.parametrize("seconds", [0.05, 30.0])
def test_what_is_read_does_not_depend_on_the_size_of_batches(
    corpus: Path, model: Path, undisturbed: bytes, tmp_path: Path, seconds: float
):
    (tmp_path / "undisturbed.jsonl").write_bytes(undisturbed)
    other = load_recognizer(str(model), device="cpu", batch_seconds=seconds)
    transcribed(corpus, other, tmp_path / "other.jsonl")
    first, second = read_transcripts(tmp_path / "undisturbed.jsonl"), read_transcripts(tmp_path / "other.jsonl")
    assert {key: one.transcript for key, one in first.items()} == {key: one.transcript for key, one in second.items()}
    np.testing.assert_allclose(
        [one.confidence for one in first.values()], [second[key].confidence for key in first], rtol=0, atol=2e-6
    )


def test_only_what_has_no_words_is_read_and_the_corpus_stays_as_it_is(run, model: Path, tmp_path: Path):
    corpus = write_podcast(tmp_path / "podcast", [8_000] * 6, spoken=(1, 4))
    before = {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    ended = run("msp-podcast", corpus, "--model", model)
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "podcast-asr.jsonl"
    assert ended.stdout == (
        f"{out}: 4 utterances transcribed, 0 kept from before, 0 with audio that cannot be transcribed\n"
    )
    transcripts = read_transcripts(out)
    assert sorted(transcripts) == [f"MSP-PODCAST_{number:04}" for number in (0, 2, 3, 5)]
    assert {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()} == before
    filled = apply_transcripts(read_msp_podcast(corpus).utterances, transcripts, min_confidence=0.0)
    printed = [one.transcript for one in filled if isinstance(one, Utterance)]
    assert printed[1] == printed[4] == "people wrote this"
    assert printed[0] == transcripts["MSP-PODCAST_0000"].transcript != ""
    again = run("msp-podcast", corpus, "--model", model, "--all")
    assert again.returncode == 0, again.stderr
    assert "2 utterances transcribed, 4 kept from before" in again.stdout
    assert len(read_transcripts(out)) == 6


def test_a_corpus_with_all_its_words_needs_no_model(run, tmp_path: Path):
    corpus = write_podcast(tmp_path / "podcast", [8_000] * 2, spoken=(0, 1))
    ended = run("msp-podcast", corpus, "--model", tmp_path / "none")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Nothing to transcribe without --all" in ended.stdout
    assert not (tmp_path / "podcast-asr.jsonl").exists()


def test_audio_that_cannot_be_read_is_named_and_all_else_is_there(run, model: Path, tmp_path: Path):
    corpus = write_podcast(tmp_path / "podcast", [8_000] * 6)
    audios = sorted((corpus / "Audios").iterdir())
    audios[1].write_bytes(b"no audio at all")
    audios[2].write_bytes(audios[2].read_bytes()[:4_000])
    audios[3].write_bytes(b"")
    soundfile.write(audios[4], chirps(410, seed=1), 16_000)  # a frame for HuBERT, none for this model
    ended = run("msp-podcast", corpus, "--model", model)
    assert ended.returncode == 1
    assert "2 utterances transcribed, 0 kept from before, 4 with audio that cannot be transcribed" in ended.stdout
    named = [line for line in ended.stderr.splitlines() if "not transcribed" in line]
    assert sorted(line.split(":")[0] for line in named) == [f"MSP-PODCAST_{number:04}" for number in (1, 2, 3, 4)]
    assert "fewer than the recognizer's first frame (420)" in ended.stderr
    assert sorted(read_transcripts(tmp_path / "podcast-asr.jsonl")) == ["MSP-PODCAST_0000", "MSP-PODCAST_0005"]
    shutil.copy(audios[0], audios[3])
    mended = run("msp-podcast", corpus, "--model", model)
    assert mended.returncode == 1
    assert "1 utterances transcribed, 2 kept from before, 3 with audio" in mended.stdout


def test_another_model_on_the_same_file_is_refused_with_both_digests(run, model: Path, tmp_path: Path):
    corpus = write_podcast(tmp_path / "podcast", [8_000] * 2)
    other = save_ctc(tmp_path / "other", seed=5)
    assert run("msp-podcast", corpus, "--model", model).returncode == 0
    before = (tmp_path / "podcast-asr.jsonl").read_bytes()
    ended = run("msp-podcast", corpus, "--model", other)
    digests = [load_recognizer(str(one), device="cpu").digest[:12] for one in (model, other)]
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
    assert all(digest in ended.stderr for digest in digests)
    assert (tmp_path / "podcast-asr.jsonl").read_bytes() == before


def test_a_manifest_is_read_by_whisper_on_any_scale_and_in_any_format(run, tmp_path: Path):
    whisper = save_whisper(tmp_path / "whisper")
    rows = [{"key": "a.1", "audio": "a.flac", "pleasure": 0}, {"key": "ü/2", "audio": "b.wav", "pleasure": 99}]
    soundfile.write(tmp_path / "a.flac", chirps(40_000, seed=1), 16_000)
    soundfile.write(tmp_path / "b.wav", np.stack([chirps(30_000, seed=2)] * 2, axis=1), 44_100)
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = run("manifest", manifest, "--model", whisper, "--language", "german")
    assert ended.returncode == 0, ended.stderr
    transcripts = read_transcripts(tmp_path / "list-asr.jsonl")
    assert set(transcripts) == {"a.1", "ü/2"}
    assert (transcripts["a.1"].duration_s, transcripts["a.1"].language, transcripts["a.1"].model) == (
        2.5,
        "german",
        "whisper",
    )
    assert transcripts["ü/2"].duration_s == pytest.approx(30_000 / 44_100, abs=1e-4)


def test_parts_of_a_recording_are_transcribed_as_files_of_their_own_would_be(run, model: Path, tmp_path: Path):
    wave = np.concatenate([chirps(24_000, seed=1), chirps(16_000, seed=2)])
    soundfile.write(tmp_path / "long.wav", wave, 16_000, subtype="PCM_16")
    lines = [
        {"key": "first", "wav": "long.wav", "emo": "a", "start_time": 0.0, "end_time": 1.5},
        {"key": "second", "wav": "long.wav", "emo": "a", "start_time": 1.5, "end_time": 2.5},
    ]
    fold = tmp_path / "fold_1"
    fold.mkdir()
    (fold / "x_train_fold_1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (fold / "x_test_fold_1.jsonl").touch()
    assert run("emobox", fold, "--audio", tmp_path, "--model", model).returncode == 0
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, part in (("first", wave[:24_000]), ("second", wave[24_000:])):
        soundfile.write(parts / f"{name}.wav", part, 16_000, subtype="PCM_16")
    (parts / "list.csv").write_text("key,audio\nfirst,first.wav\nsecond,second.wav\n")
    assert run("manifest", parts / "list.csv", "--model", model).returncode == 0
    read = [read_transcripts(path) for path in (tmp_path / "fold_1-asr.jsonl", parts / "list-asr.jsonl")]
    assert read[0] == read[1]
    assert [one.duration_s for one in read[0].values()] == [1.0, 1.5]
    assert all(one.transcript for one in read[0].values())


def test_rows_of_a_hugging_face_data_set_are_transcribed_under_the_keys_of_the_build(run, model: Path, tmp_path: Path):
    wave = io.BytesIO()
    soundfile.write(wave, chirps(16_000, seed=3), 16_000, format="FLAC")
    rows = {"audio": [{"bytes": wave.getvalue(), "path": "a.flac"}] * 2, "words": ["people wrote this", ""]}
    parquet.write_table(pa.table(rows), tmp_path / "set.parquet")
    ended = run("hf", tmp_path / "set.parquet", "--text", "words", "--model", model)
    assert ended.returncode == 0, ended.stderr
    assert set(read_transcripts(tmp_path / "set-asr.jsonl")) == {"train-00000001"}
    assert (tmp_path / "set-audio" / "train" / "00000001.flac").read_bytes() == wave.getvalue()


def test_language_of_a_bilingual_corpus_is_also_the_recognizers():
    one = parse_args(["esd", "ROOT", "--model", "m", "--language", "zh"])
    assert (one.kind, one.language) == ("esd", "zh")
    assert parse_args(["emodb", "ROOT", "--model", "m", "--language", "german"]).language == "german"
    with pytest.raises(SystemExit):
        parse_args(["esd", "ROOT", "--model", "m", "--language", "german"])


@pytest.mark.parametrize("place", ["podcast/Labels/labels_consensus.csv", "podcast/new.jsonl", "diary.txt"])
def test_an_out_that_would_lie_over_something_else_is_refused(run, model: Path, tmp_path: Path, place: str):
    corpus = write_podcast(tmp_path / "podcast", [8_000])
    (tmp_path / "diary.txt").write_text("dear diary")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ended = run("msp-podcast", corpus, "--model", model, "--out", tmp_path / place)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert place in ended.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
