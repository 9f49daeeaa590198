"""The program ``ccts``: the same commands as the scripts, by name."""

import runpy
import sys
from pathlib import Path

import pytest

from ccts_dist import __version__, cli
from ccts_dist.commands import evaluate, reproduce
from ccts_dist.commands.shards import check
from ccts_dist.process.invocation import as_started

SCRIPTS = sorted([*Path("launch").glob("*.py"), *Path("shards").glob("*.py")])


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/bin/ccts", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_script_is_a_command_and_every_command_but_two_a_script():
    names = {path.stem.replace("_", "-") for path in SCRIPTS}
    assert len(names) >= 17
    assert set(cli.COMMANDS) == names | {"path", "schema"}
    modules = {path.stem.replace("_", "-") for path in Path("ccts_dist/commands").rglob("[a-z]*.py")}
    assert modules == set(cli.COMMANDS)


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_script_and_command_are_one_program(path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(cli, "start", asked.append)
    runpy.run_path(str(path), run_name="__main__")
    runpy.run_path(f"{cli.module_of(path.stem).replace('.', '/')}.py", run_name="__main__")
    assert asked == [path.stem.replace("_", "-")] * 2


def test_commands_that_a_launcher_starts_are_those_that_take_its_option():
    reported = {
        path.stem.replace("_", "-")
        for path in Path("ccts_dist/commands").rglob("*.py")
        if "local_rank" in path.read_text()
    }
    reported |= {"evaluate"} if "local_rank" in Path("ccts_dist/evaluation/options.py").read_text() else set()
    assert {name for name, command in cli.COMMANDS.items() if command.on_ranks} == reported


def test_help_has_a_line_for_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    for name in cli.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err.splitlines() == lines
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"ccts-dist {__version__}\n"


def test_unknown_command_is_one_line_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "trian", "--config", "x") == 2
    assert capsys.readouterr().err == "ccts: error: 'trian' is no command. Did you mean 'train'?\n"
    assert run(monkeypatch, "?") == 2
    assert "Known: build, transcribe, check" in capsys.readouterr().err


def test_command_by_either_spelling_and_after_what_a_launcher_puts_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for words in (["cache-teacher"], ["cache_teacher"], ["--local_rank=1", "cache-teacher"]):
        assert run(monkeypatch, *words, "--help") == 0
        printed = capsys.readouterr().out
        assert printed.startswith("usage: ccts cache-teacher ")
        assert "deepspeed $(ccts path cache-teacher) --teacher" in printed
    assert run(monkeypatch, "predict", "--modle", "x") == 2
    assert "ccts predict: error: " in capsys.readouterr().err


def test_texts_name_commands_as_the_process_was_started(monkeypatch: pytest.MonkeyPatch):
    text = (
        "Run shards/check.py OUT, python launch/predict.py --model M, deepspeed launch/train.py --config R, "
        "deepspeed --hostfile H --num_gpus 2 launch/cache_teacher.py; deepspeed --port '{free port}' launch/probe.py; "
        "see shards/README.md"
    )
    monkeypatch.setattr(sys, "argv", ["launch/predict.py"])
    assert as_started(text) == text
    monkeypatch.setattr(sys, "argv", ["ccts predict"])
    assert as_started(text) == (
        "Run ccts check OUT, ccts predict --model M, deepspeed $(ccts path train) --config R, "
        "deepspeed --hostfile H --num_gpus 2 $(ccts path cache-teacher); deepspeed --port '{free port}' "
        "$(ccts path probe); see shards/README.md"
    )


def test_path_prints_files_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    ends = {
        "cache-teacher": "commands/cache_teacher.py",
        "demo/cts.toml": "shipped/runs/demo/cts.toml",
        "launch/runs/demo/cts.toml": "shipped/runs/demo/cts.toml",
        "zero3.json": "shipped/ds_configs/zero3.json",
        "schema.json": "shipped/runs/schema.json",
    }
    for name, end in ends.items():
        assert run(monkeypatch, "path", name) == 0
        found = Path(capsys.readouterr().out.strip())
        assert found.is_file()
        assert str(found).endswith(end)
    assert run(monkeypatch, "path", "zero9.json") == 2
    assert capsys.readouterr().err == (
        "error: 'zero9.json': no command, and no shipped file. ls -R $(ccts path) lists those.\n"
    )


EVALUATE = ["--model", "m", "--shards", "s", "--out", "o"]


def test_several_splits_follow_one_option_or_each_its_own():
    every = [["--splits", "A", "B"], ["--splits", "A", "--splits", "B"], ["--split", "A", "--split", "B"]]
    assert [evaluate.parse_args([*EVALUATE, *words]).splits for words in every] == [["A", "B"]] * 3


def test_options_of_older_scripts_are_read_as_todays():
    old = ["--split", "A", "--uri", "u", "--micro=4", "--players", "--track", "--teacher", "c"]
    new = ["--splits", "A", "--tracking-uri", "u", "--batch-size=4", "--embed-audio", "--log-to-mlflow"]
    assert evaluate.parse_args([*EVALUATE, *old]) == evaluate.parse_args([*EVALUATE, *new, "--teacher-cache", "c"])
    assert check.parse_args(["s", "--teacher", "c"]).teacher_cache == "c"
    old = ["--table", "msp", "--rows", "3", "--starter", "w", "--collect", "--wrong", "5"]
    new = ["--table", "msp", "--only", "3", "--launcher", "w", "--report-only", "--corrupt-transcripts", "5"]
    assert reproduce.parse_args(old) == reproduce.parse_args(new)
