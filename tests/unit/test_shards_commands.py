"""The commands in ``shards/``: their exit codes, and what they say."""

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.errors import run_main
from ccts_dist.shards import open_shard_set
from tests.shard_examples import example_cache, example_shard_set, flip_bit, write_noise

SCRIPTS = Path(__file__).parents[2] / "shards"


def main_of(name: str) -> Callable[[list[str] | None], int]:
    spec = importlib.util.spec_from_file_location(f"shards_script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(name: str, *arguments: str | Path) -> int:
    return run_main(main_of(name), [str(argument) for argument in arguments])


@pytest.fixture
def msp(tmp_path: Path) -> Path:
    """Four utterances in MSP-Podcast's layout."""
    root = tmp_path / "msp"
    (root / "Labels").mkdir(parents=True)
    columns = ["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"]
    with open(root / "Labels" / "labels_consensus.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for number, split in enumerate(["Train", "Train", "Development", "Test1"]):
            write_noise(root / "Audios" / f"MSP-PODCAST_{number}.wav", 4000, seed=number)
            table.writerow([f"MSP-PODCAST_{number}.wav", "N", 1 + number, 4, 7, number, "Male", split])
    return root


def test_every_command_has_a_help_and_stays_short():
    scripts = sorted(SCRIPTS.glob("*.py"))
    assert {path.stem for path in scripts} >= {"build", "check", "info", "merge"}
    for path in scripts:
        assert len(path.read_text().splitlines()) <= 60, path.name
        with pytest.raises(SystemExit, match="0"):
            main_of(path.stem)(["--help"])


def test_a_corpus_is_built_checked_and_shown(msp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("build", "msp-podcast", msp, "--out", tmp_path / "s", "--release", "1.11") == 0
    said = capsys.readouterr().out
    assert "Train: 2 utterances" in said
    assert "0 rejected, 0 resampled, 0 mixed down" in said
    assert open_shard_set(tmp_path / "s").manifest.release == "1.11"
    assert run("check", tmp_path / "s") == 0
    assert capsys.readouterr().out == ""
    assert run("info", tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "msp-podcast 1.11, rated 1 to 7" in said
    assert "Train: 2 utterances, 0.00 h in 1 shards, 2 speakers, 0.25 to 0.25 s" in said
    assert "  activation   mean 0.083, deviation 0.083 on 0..1, 2 labelled" in said


def test_damage_gives_one_and_a_line_per_finding(msp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("build", "msp-podcast", msp, "--out", tmp_path / "s")
    rows = open_shard_set(tmp_path / "s").rows("Train-000000.tar")
    flip_bit(tmp_path / "s" / "Train-000000.tar", int(rows.members["flac"].offset[1]))
    capsys.readouterr()
    assert run("check", tmp_path / "s") == 1
    assert capsys.readouterr().out == f"Train-000000.tar {rows.keys[1]} flac is damaged (its CRC-32 differs)\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["check", "none"], "error: none: no shard set here"),
        (["info", "none"], "error: none: no shard set here"),
        (["merge", "--shards", "none", "--teacher", "c", "--out", "m"], "error: none: no shard set here"),
        (["build", "msp-podcast", "none", "--out", "s"], "error: none: no such folder"),
        (["build", "msp-podcast", "msp", "--out", "file/x"], "file/x: {place}/file is a file, not a folder"),
        (["build", "msp-podcast", "msp", "--out", "file"], "file: file is a file, not a folder"),
        (["build", "demo", "--out", "file/x/y"], "file/x/y: {place}/file is a file, not a folder"),
        (["build", "demo", "--out", "s", "--corpus", "file/x"], "file/x: cannot be made (Not a directory)"),
        (["build", "msp-podcast", "msp", "--out", "s", "--shard-mb", "nan"], "shard_bytes=nan: must be at least 1"),
        (["build", "demo", "--out", "s", "--shard-mb", "inf"], "shard_bytes=inf: must be at least 1 and finite"),
        (["build", "demo", "--out", "s", "--max-rejected", "nan"], "max_rejected=nan: must be between 0 and 1"),
        (["build", "demo", "--out", "s", "--utterances", "3"], "num_utterances=3 must be at least 12"),
    ],
)
def test_a_mistake_gives_two_and_one_line(
    command: list[str],
    words: str,
    msp: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(msp.parent)
    (tmp_path / "file").touch()
    assert run(*command) == 2
    captured = capsys.readouterr()
    assert words.format(place=tmp_path) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_too_many_rejected_utterances_give_two(msp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (msp / "Audios" / "MSP-PODCAST_1.wav").write_bytes(b"noise")
    assert run("build", "msp-podcast", msp, "--out", tmp_path / "s") == 2
    assert "1 of 4 utterances rejected (25.0%)" in capsys.readouterr().err
    assert run("build", "msp-podcast", msp, "--out", tmp_path / "s", "--max-rejected", "0.5") == 0


def test_shards_and_cache_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard_set = example_shard_set(tmp_path)
    cache = example_cache(tmp_path / "cache", shard_set)
    options = ["--shards", shard_set.root, "--teacher", cache.root, "--out", tmp_path / "m"]
    assert run("merge", *options) == 0
    merged = open_shard_set(tmp_path / "m")
    assert capsys.readouterr().out == f"{tmp_path / 'm'}: merged, digest {merged.digest[:12]}\n"
    assert run("info", merged.root) == 0
    assert "carries the outputs of teacher teacher (777777777777)" in capsys.readouterr().out
    other = example_shard_set(tmp_path / "other", count=8)
    options[1] = other.root
    assert run("merge", *options) == 2
    assert "the cache was made for shard set" in capsys.readouterr().err
