"""A first run file: what is chosen for which shard set, and what is refused."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.commands import init as command
from ccts_dist.config import parse_run
from ccts_dist.errors import ConfigError, run_main
from ccts_dist.train.starter.facts import SetFacts, set_facts
from ccts_dist.train.starter.run_file import Wanted, run_file_text
from tests.helpers.models.small_teacher import build_small_shards

FACTS = SetFacts(
    corpus="MSP-Podcast", train_splits=("Train",), valid_splits=("Development",), test_splits=("Test1", "Test2"),
    by_name=True, targets=("activation", "valence", "dominance"), categories=("angry", "sad"), num_utterances=4_000,
    hours=5.5, longest_s=11.0, has_transcripts=True,
)  # fmt: skip
WANTED = Wanted(kind="speech", shards="SHARDS", name="r")


def tree(wanted: Wanted, facts: SetFacts = FACTS) -> dict:
    text = run_file_text(wanted, facts)
    found = tomllib.loads(text)
    assert parse_run(found)
    commented = [line for line in text.splitlines() if " = " in line and "  # " in line]
    shapes = sum(len(branch.get("scratch", ())) for branch in found["model"].values() if isinstance(branch, dict))
    keys = [line for line in text.splitlines() if " = " in line and line[0] not in "#["]
    assert len(keys) - shapes == len([line for line in commented if line[0] != "#"])
    return found


def test_baseline_of_dimensions_takes_them_and_no_teacher():
    run = tree(WANTED)
    assert run["model"]["targets"] == ["activation", "valence", "dominance"]
    assert "categories" not in run["model"]
    assert run["model"]["speech"]["encoder"] == "facebook/hubert-large-ll60k"
    assert run["data"] == {
        "shards": "SHARDS", "train_splits": ["Train"], "valid_splits": ["Development"],
        "test_splits": ["Test1", "Test2"],
    }  # fmt: skip
    assert "distill" not in run
    assert "text" not in run["model"]


def test_student_names_its_cache_and_teacher_reads_words():
    student = tree(replace(WANTED, kind="student", cache="CACHE"))
    assert (student["data"]["teacher_cache"], student["distill"]["gate"]) == ("CACHE", "any-dimension")
    teacher = tree(replace(WANTED, kind="teacher"))
    assert teacher["model"]["text"]["encoder"] == "google-bert/bert-base-uncased"
    assert teacher["model"]["speech"]["trainable"] == "none"
    small = tree(replace(WANTED, kind="teacher", small=True))
    assert small["model"]["speech"]["scratch"]["model_type"] == "hubert"
    assert small["model"]["text"]["scratch"]["model_type"] == "bert"
    assert small["train"]["precision"] == "fp32"


@pytest.mark.parametrize("encoder", ["filterbank", "microsoft/wavlm-base", "/models/x y"])
def test_encoder_is_the_one_that_was_asked_for(encoder: str):
    for kind in ("speech", "teacher"):
        speech = tree(replace(WANTED, kind=kind, encoder=encoder, small=True))["model"]["speech"]
        assert speech["encoder"] == encoder
        assert "scratch" not in speech


def test_targets_are_dimensions_else_categories_else_whatever_is_rated():
    shares = replace(FACTS, targets=("anger", "joy"))
    assert tree(WANTED, shares)["model"]["targets"] == []
    assert tree(WANTED, shares)["model"]["categories"] == ["angry", "sad"]
    assert tree(replace(WANTED, kind="teacher"), shares)["model"]["targets"] == ["anger", "joy"]
    assert tree(WANTED, replace(shares, categories=()))["model"]["targets"] == ["anger", "joy"]


@pytest.mark.parametrize(
    ("num_utterances", "longest_s", "small", "sizes"),
    [
        (4_000, 11.0, False, (32, 4)),  # 80 s of padded audio hold 7 of 11 s: 4
        (4_000, 11.0, True, (32, 8)),  # 160 s hold 14: 8
        (4_000, 100.0, False, (32, 4)),  # cut to 15 s, of which 80 s hold 5: 4
        (100, 2.0, False, (8, 8)),  # 100 / 8 = 12.5 utterances a step: 8
        (5, 2.0, False, (4, 4)),  # no more than there are
        (2, 2.0, False, (2, 2)),
    ],
)
def test_batches_follow_number_and_duration(num_utterances: int, longest_s: float, small: bool, sizes: tuple[int, int]):
    run = tree(replace(WANTED, small=small), replace(FACTS, num_utterances=num_utterances, longest_s=longest_s))
    assert (run["batch"]["global_batch_size"], run["batch"]["micro_batch_size"]) == sizes
    assert run["data"].get("max_duration_s") == (15.0 if longest_s > 30 else None)


def test_names_out_of_a_set_end_no_line_and_no_string():
    hostile = 'a"\n[train]\nepochs = 1 # \x7f\x1b'
    run = tree(WANTED, replace(FACTS, corpus=hostile, targets=(), categories=(hostile, "b")))
    assert run["model"]["categories"] == [hostile, "b"]
    assert run["train"]["epochs"] == 50
    assert run["tracking"]["experiment_name"].isascii()


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("teacher", {"has_transcripts": False}, "have no transcript"),
        ("teacher", {"targets": ()}, "has no target with labels"),
        ("student", {"targets": ()}, "has no target with labels"),
    ],
)
def test_what_cannot_be_trained_is_refused(kind: str, changed: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        run_file_text(replace(WANTED, kind=kind, cache="C"), replace(FACTS, **changed))


def test_splits_without_familiar_names_are_taken_in_their_order(tmp_path: Path):
    facts = set_facts(build_small_shards(tmp_path / "s", {"one": 8, "two": 4, "three": 4}))
    assert (facts.train_splits, facts.valid_splits, facts.test_splits) == (("one",), ("two",), ("three",))
    assert not facts.by_name
    with pytest.raises(ConfigError, match=r"1 split\(s\) with labels, only: training and validation need one each"):
        set_facts(build_small_shards(tmp_path / "t", {"only": 8}))


def test_command_writes_a_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shard_set = build_small_shards(tmp_path / "s", {"Train": 8, "Development": 4, "Test": 4})
    words = [str(shard_set.root), "--with-text", "--small", "-o", str(tmp_path / "my run.toml")]
    with monkeypatch.context() as as_program:
        as_program.setattr(sys, "argv", ["ccts init"])
        assert run_main(command.main, words) == 0
    assert capsys.readouterr().out.endswith(f"check it: ccts train {tmp_path / 'my run.toml'} --check\n")
    written = (tmp_path / "my run.toml").read_text()
    run = tomllib.loads(written)
    assert (run["run_name"], run["tracking"]["registered_model_name"]) == ("my run", "my-run")
    assert run_main(command.main, words) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "my run.toml").read_text() == written
    assert run_main(command.main, [str(tmp_path), "-o", str(tmp_path / "b.toml")]) == 2
    assert not (tmp_path / "b.toml").exists()
