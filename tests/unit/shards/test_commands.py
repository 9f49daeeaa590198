"""The commands in ``shards/``: their exit codes, and what they state."""

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.errors import run_main
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.build.command import build_parser
from tests.helpers.examples.shard_examples import example_cache, example_shard_set, flip_bit, write_noise

SCRIPTS = Path(__file__).parents[3] / "shards"


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
    printed = capsys.readouterr().out
    assert "Train: 2 utterances" in printed
    assert "0 rejected, 0 resampled, 0 mixed down" in printed
    assert open_shard_set(tmp_path / "s").manifest.release == "1.11"
    assert run("check", tmp_path / "s") == 0
    assert capsys.readouterr().out == ""
    assert run("info", tmp_path / "s") == 0
    printed = capsys.readouterr().out
    assert "msp-podcast 1.11, rated 1 to 7" in printed
    assert "Train: 2 utterances, 0.00 h in 1 shards, 2 speakers, 0.25 to 0.25 s" in printed
    assert "  activation   |██        | mean 0.083, standard deviation 0.083 on 0..1, 2 labelled" in printed
    assert "  categories: N 2" in printed


def test_info_is_printed_for_programs_and_drawn(msp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("build", "msp-podcast", msp, "--out", tmp_path / "s", "--release", "1.11", "--processes", 1)
    capsys.readouterr()
    assert run("info", tmp_path / "s", "--json", "--plot", tmp_path / "set.png") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["corpus"], figures["release"], figures["scale"]) == ("msp-podcast", "1.11", [1.0, 7.0])
    (train, *_) = figures["splits"]
    assert (train["split"], train["num_utterances"], train["durations"]) == ("Train", 2, {"0": 2})
    assert train["labels"]["activation"]["histogram"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (tmp_path / "set.png").read_bytes().startswith(b"\x89PNG")


def test_a_plain_manifest_is_built_in_parts_and_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = []
    for number in range(6):
        write_noise(tmp_path / f"{number}.wav", 4000, seed=number)
        rows.append(f"key {number},{number}.wav,Train,{number}\n")
    (tmp_path / "corpus.csv").write_text("key,audio,split,joy\n" + "".join(rows))
    options = ["manifest", tmp_path / "corpus.csv", "--targets", "joy", "--scale", "0", "10", "--shard-mb", "0.01"]
    options += ["--processes", "1", "--name", "mine", "--out"]
    with monkeypatch.context() as as_program:
        as_program.setattr(sys, "argv", ["ccts build"])
        assert run("build", *options, tmp_path / "s", "--part", "2/2") == 0
    printed = capsys.readouterr().out
    assert "part 2/2 is done: 3 shards, 3 utterances, 0 rejected" in printed
    assert f"When all parts are done: ccts build join {tmp_path / 's'}\n" in printed
    assert run("build", "join", tmp_path / "s") == 2
    assert "--part 1/2; then join" in capsys.readouterr().err
    assert run("build", *options, tmp_path / "s", "--part", "1/2") == 0
    assert run("build", "join", tmp_path / "s") == 0
    assert run("build", *options, tmp_path / "t") == 0
    assert (tmp_path / "s" / "manifest.json").read_bytes() == (tmp_path / "t" / "manifest.json").read_bytes()
    assert open_shard_set(tmp_path / "s").manifest.targets == ("joy",)


def test_what_was_read_fills_in_transcripts(tmp_path: Path):
    write_noise(tmp_path / "a.wav", 4000)
    (tmp_path / "corpus.csv").write_text("key,audio,split,joy\na,a.wav,Train,3\nb,a.wav,Train,3\n")
    received = {"digest": "0", "duration_s": 0.25, "language": None, "model": "m"}
    lines = [
        json.dumps(received | {"key": key, "transcript": key * 3, "confidence": confidence}, sort_keys=True) + "\n"
        for key, confidence in (("a", 0.9), ("b", 0.2))
    ]
    (tmp_path / "asr.jsonl").write_text("".join(lines))
    options = ["--transcripts", tmp_path / "asr.jsonl", "--min-confidence", "0.5", "--processes", "1"]
    assert run("build", "manifest", tmp_path / "corpus.csv", "--out", tmp_path / "s", *options) == 0
    shard_set = open_shard_set(tmp_path / "s")
    rows = shard_set.rows("Train-000000.tar")
    records = [json.loads(shard_set.member(rows, row, "json")) for row in (0, 1)]
    assert [record["transcript"] for record in records] == ["aaa", ""]
    assert [record["transcript_confidence"] for record in records] == [0.9, None]
    assert run("check", tmp_path / "s") == 0


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
        (["merge", "--shards", "none", "--teacher-cache", "c", "--out", "m"], "error: none: no shard set here"),
        (["build", "msp-podcast", "none", "--out", "s"], "error: none: no such folder"),
        (["build", "msp-podcast", "msp", "--out", "file/x"], "file/x: {place}/file is a file, not a folder"),
        (["build", "msp-podcast", "msp", "--out", "file"], "file: file is a file, not a folder"),
        (["build", "demo", "--out", "file/x/y"], "file/x/y: {place}/file is a file, not a folder"),
        (["build", "demo", "--out", "s", "--corpus", "file/x"], "file/x: cannot be made (Not a directory)"),
        (["build", "msp-podcast", "msp", "--out", "s", "--shard-mb", "nan"], "shard_bytes=nan: must be at least 1"),
        (["build", "demo", "--out", "s", "--shard-mb", "inf"], "shard_bytes=inf: must be at least 1 and finite"),
        (["build", "demo", "--out", "s", "--max-rejected", "nan"], "max_rejected=nan: must be between 0 and 1"),
        (["build", "msp-podcast", "msp", "--out", ""], "--out: is empty"),
        (["check", "x" * 5_000], "xxx: no shard set here (no readable manifest.json)"),
        (["info", "x" * 5_000], "xxx: no shard set here (no readable manifest.json"),
        (["check", "file/x"], "file/x: no shard set here"),
        (["check", "s", "--threads", "-2"], "-2 threads cannot check anything"),
        (["build", "demo", "--out", "s", "--utterances", "3"], "num_utterances=3 must be at least 12"),
        (["build", "demo", "--out", "s3://bucket/s"], "the demo corpus cannot be made there. Name a folder with"),
        (["build", "msp-podcast", "msp", "--out", "s", "--processes", "0"], "num_processes=0: must be at least 1"),
        (["build", "msp-podcast", "msp", "--out", "s", "--part", "0/4"], "--part 0/4: must be I/N with I from 1 to N"),
        (["build", "iemocap", "none", "--out", "s"], "error: none: no such folder"),
        (
            ["build", "iemocap", "none", "--out", "s", "--min-confidence", "0.5"],
            "--min-confidence: names what to leave",
        ),
        (["build", "manifest", "none.csv", "--out", "s"], "error: none.csv: "),
        (["build", "join", "none"], "none: no parts to join here"),
        (["info", "none", "--plot", "x.txt"], "x.txt: pictures are .png, .svg, .pdf files"),
        (["info", "none", "--plot", "none/x.png"], "none/x.png: there is no folder none"),
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
    options = ["--shards", shard_set.root, "--teacher-cache", cache.root, "--out", tmp_path / "m"]
    assert run("merge", *options) == 0
    merged = open_shard_set(tmp_path / "m")
    assert capsys.readouterr().out == f"{tmp_path / 'm'}: merged, digest {merged.digest[:12]}\n"
    assert run("info", merged.root) == 0
    assert "carries the outputs of teacher teacher (777777777777)" in capsys.readouterr().out
    other = example_shard_set(tmp_path / "other", count=8)
    options[1] = other.root
    assert run("merge", *options) == 2
    assert "the cache was made for shard set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "megabytes"), [(("manifest", "FILE"), 256), (("iemocap", "ROOT"), 256), (("demo",), 4)]
)
def test_only_the_demo_has_small_shards_by_default(words: tuple[str, ...], megabytes: float):
    assert build_parser().parse_args([*words, "--out", "OUT"]).shard_mb == megabytes
