"""The command that evaluates models, as it is started: the same answer on one rank and on two."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.options import asked_of
from ccts_dist.scoring import lexical_correlations, read_table
from ccts_dist.shards import open_shard_set, open_teacher_cache
from ccts_dist.shards.merge import merge_shards
from launch import evaluate as command
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.small_runs import make_cache


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    shard_set = build_small_shards(folder / "s", {"Train": 21, "Test1": 37, "Test3": 9}, num_raters=5)
    generator = np.random.default_rng(4)
    for room, decay_s, number in (("dry", 1e-5, 1), ("hall", 0.5, 2)):
        (folder / room).mkdir()
        for one in range(number):
            response = np.exp(-np.arange(8_000) / 16_000 / decay_s) * generator.normal(0, 0.3, 8_000)
            response[0] = 1.0
            soundfile.write(folder / room / f"{one}.wav", response, 16_000, subtype="FLOAT")
    teacher = save_small_teacher(folder / "teacher")
    return {
        "shards": folder / "s" / "shards",
        "dry": folder / "dry",
        "hall": folder / "hall",
        "teacher": teacher,
        "student": save_small_teacher(folder / "student", with_text=False, seed=1),
        "text": save_small_teacher(folder / "text", with_speech=False, seed=2),
        "cache": make_cache(teacher, shard_set, folder / "cache"),
    }


@pytest.fixture(scope="module")
def outs(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the command leaves on one rank and on two, of a student beside a teacher, also in noise."""
    outs = [tmp_path_factory.mktemp("out") / name for name in ("one", "two")]
    args = [
        *("--model", str(places["student"]), "--model", str(places["teacher"]), "--shards", str(places["shards"])),
        *(
            "--splits",
            "Test1",
            "--teacher-cache",
            str(places["cache"]),
            "--text-model",
            str(places["text"]),
            "--snr",
            "0",
            "20",
            "--noises",
            "white",
            "babble",
        ),
        *("--impulse-responses", str(places["dry"]), str(places["hall"])),
    ]
    assert command.main([*args, "--out", str(outs[0]), "--transcripts", "--embed-audio"]) == 0
    launch_well(2, "launch/evaluate.py", *args, "--out", str(outs[1]), "--batch-size", "3")
    return outs


def numbers(tree) -> list[float]:
    """All numbers of a tree, in order."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_same_figures_and_tables_on_one_rank_and_on_two(outs: list[Path]):
    one, two = (json.loads((out / "metrics.json").read_text()) for out in outs)
    assert one.keys() == two.keys() == {"model", "weights", "splits", "shards", "others"}
    assert len(numbers(one)) > 200
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-3)
    for name in ("predictions-Test1.parquet", "predictions-Test1.2.parquet"):
        mine, theirs = (read_table(out / name) for out in outs)
        assert (mine.keys, mine.num_words.tolist()) == (theirs.keys, theirs.num_words.tolist())
        assert len(mine) == 37
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        np.testing.assert_allclose(mine.predictions, theirs.predictions, atol=1e-5)


def test_raters_ceilings_stand_beside_the_figures(outs: list[Path]):
    found = json.loads((outs[0] / "metrics.json").read_text())["splits"]["Test1"]
    assert found["raters"].keys() == found["ccc"].keys()
    own, table = found["raters"]["activation"], read_table(outs[0] / "predictions-Test1.parquet")
    assert own["labels"] == 37
    assert own["one_rater"]["value"] < own["half_of_the_raters"]["value"] < own["noise_ceiling"]["value"] < 1
    assert table.raters is not None
    assert set(table.raters.count) == {5}
    assert found["calibration"]["activation"]["slope"].keys() == {"value", "95%"}
    assert "one rater" in (outs[0] / "report.html").read_text()


def test_correlation_with_the_text_model_is_that_of_the_tables(
    outs: list[Path], places: dict[str, Path], tmp_path: Path
):
    args = ["--model", str(places["text"]), "--shards", str(places["shards"]), "--splits", "Test1"]
    assert command.main([*args, "--out", str(tmp_path)]) == 0
    student, text = (read_table(out / "predictions-Test1.parquet") for out in (outs[0], tmp_path))
    found = json.loads((outs[0] / "metrics.json").read_text())
    own, other = found["splits"]["Test1"], found["others"][0]["splits"]["Test1"]
    for target, interval in lexical_correlations(student, text).items():
        assert own["lexical"][target]["value"] == pytest.approx(interval.value, abs=1e-6)
        change = other["lexical_change_of_the_first"][target]["gain"]
        assert change == pytest.approx(own["lexical"][target]["value"] - other["lexical"][target]["value"], abs=1e-9)
    parts = other["gain_of_the_first_by_sentiment"]
    assert sum(one["utterances"] for one in parts) == 37
    assert [one["name"] for one in parts] == [one["name"] for one in own["groups"] if one["by"] == "sentiment"]


def test_model_with_speech_is_no_text_model(places: dict[str, Path], tmp_path: Path):
    args = ["--model", str(places["student"]), "--shards", str(places["shards"]), "--splits", "Test1"]
    with pytest.raises(ConfigError, match=r"--text-model .*teacher: has a speech branch"):
        command.main([*args, "--out", str(tmp_path), "--text-model", str(places["teacher"])])


def test_split_without_labels_makes_a_submission_and_a_page(places: dict[str, Path], tmp_path: Path):
    models = ["--model", str(places["student"]), "--model", str(places["teacher"]), "--text-model", str(places["text"])]
    args = [*models, "--shards", str(places["shards"]), "--splits", "Test3", "--out", str(tmp_path / "out")]
    assert command.main([*args, "--submission", str(tmp_path / "to" / "s.csv")]) == 0
    table = read_table(tmp_path / "out" / "predictions-Test3.parquet")
    header, *lines = (tmp_path / "to" / "s.csv").read_text().splitlines()
    assert header == "FileName,EmoAct,EmoVal,EmoDom"
    assert [line.split(",")[0] for line in lines] == sorted(f"{key}.wav" for key in table.keys)
    found = {line.split(",")[0]: [float(cell) for cell in line.split(",")[1:]] for line in lines}
    for key, row in zip(table.keys, table.predictions, strict=True):
        assert found[f"{key}.wav"] == pytest.approx(np.clip(1 + 6 * row, 1, 7), abs=1e-6)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["splits"]["Test3"]
    assert metrics["num_labels"] == dict.fromkeys(table.targets, 0)
    assert "raters" not in metrics
    assert "one rater" not in (tmp_path / "out" / "report.html").read_text()


def test_cached_teacher_is_the_teacher_that_was_evaluated(outs: list[Path]):
    student, teacher = (
        read_table(outs[0] / name) for name in ("predictions-Test1.parquet", "predictions-Test1.2.parquet")
    )
    assert student.teacher is not None
    np.testing.assert_allclose(student.teacher.prediction, teacher.predictions, atol=1e-5)
    found = json.loads((outs[0] / "metrics.json").read_text())
    own, others = found["splits"]["Test1"], found["others"][0]["splits"]["Test1"]
    for target, gap in own["teacher_gap"].items():
        assert gap["gain"] == pytest.approx(-others["gain_of_the_first"][target]["gain"], abs=1e-5)
    assert own["speakers"] == 37, "nobody is known"


def test_every_noise_and_ratio_is_scored_and_little_noise_changes_less(outs: list[Path]):
    split = json.loads((outs[0] / "metrics.json").read_text())["splits"]["Test1"]
    received = {(one["noise"], one["snr_db"]): one["ccc"]["activation"] for one in split["in_noise"]}
    assert received.keys() == {("white", 0), ("white", 20), ("babble", 0), ("babble", 20)}
    clean = split["ccc"]["activation"]
    assert abs(received["white", 20] - clean) < abs(received["white", 0] - clean)


def test_every_room_is_scored_and_one_without_echo_changes_nothing(outs: list[Path], places: dict[str, Path]):
    split = json.loads((outs[0] / "metrics.json").read_text())["splits"]["Test1"]
    received = {one["impulse_responses"]: one["ccc"] for one in split["in_rooms"]}
    assert list(received) == [str(places["dry"]), str(places["hall"])]
    for target, clean in split["ccc"].items():
        assert received[str(places["dry"])][target] == pytest.approx(clean, abs=1e-4)
        assert abs(received[str(places["hall"])][target] - clean) > 1e-3
    assert "reverberated by impulse responses" in (outs[0] / "report.html").read_text()


def test_page_has_words_and_sound_only_where_they_were_asked_for(outs: list[Path], places: dict[str, Path]):
    asked, plain = ((out / "report.html").read_text() for out in outs)
    assert asked.count("<audio ") == 20
    assert plain.count("<audio ") == 0
    printed = next(iter(set(re.findall(r"(?:\b(?:good|bad|loud|soft|rain|sun|never) ){3}", asked))), "")
    assert printed
    assert printed not in plain
    shard_set = open_shard_set(places["shards"])
    (shard, *_) = shard_set.shards_of(("Test1",))
    rows = shard_set.rows(shard.name)
    sound = [base64.b64encode(shard_set.member(rows, row, "flac")).decode() for row in range(len(rows))]
    assert any(one in asked for one in sound)
    for page in (asked, plain):
        # Predictions, calibration, the other model, the teacher, residuals, noise, parts.
        assert page.count("<svg ") == 3 + 3 + 1 + 1 + 3 + 3 + 3


def test_shards_that_carry_a_teacher_need_no_cache(outs: list[Path], places: dict[str, Path], tmp_path: Path):
    shard_set = open_shard_set(places["shards"])
    merge_shards(shard_set, open_teacher_cache(places["cache"], shard_set), tmp_path / "merged")
    args = ["--model", str(places["student"]), "--shards", str(tmp_path / "merged"), "--splits", "Test1"]
    assert command.main([*args, "--out", str(tmp_path / "out"), "--teacher-cache", "merged"]) == 0
    mine, theirs = (read_table(out / "predictions-Test1.parquet").teacher for out in (tmp_path / "out", outs[0]))
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.residual, theirs.residual)
    np.testing.assert_array_equal(mine.gate_mask, theirs.gate_mask)


def test_page_draws_the_curves_of_a_run(places: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": step, "train/loss": 1 / step, "train/loss_ccc": None} for step in range(1, 1001)]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "validations.jsonl").write_text('{"step": 500, "valid/loss": 0.5, "valid/ccc_valence": 0.25}\n')
    args = ["--model", str(places["student"]), "--shards", str(places["shards"]), "--splits", "Test1"]
    assert command.main([*args, "--out", str(tmp_path / "out"), "--run", str(run)]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    # Means of three neighbours: (1 + 1/2 + 1/3) / 3 at first.
    assert "training loss by step of training: loss from 0.611 to 0.001." in page
    assert "CCC on validation by step of training: valence from 0.250 to 0.250." in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--snr", "nan"], r"--snr nan: must be a number of decibels"),
        (["--impulse-responses", ""], r"--impulse-responses '': must be folders of audio files"),
        (["--noises", "pink"], r"--noises: no ratio to the speech is given"),
    ],
)
def test_options_that_state_nothing_are_refused(more: list[str], words: str):
    args = command.parse_args(["--model", "m", "--shards", "s", "--splits", "t", "--out", "o", *more])
    with pytest.raises(ConfigError, match=words):
        asked_of(args)


def test_folder_that_cannot_be_written_is_refused_before_any_work(places: dict[str, Path], tmp_path: Path):
    (tmp_path / "file").touch()
    args = ["--model", "absent", "--shards", "absent", "--splits", "t", "--out", str(tmp_path / "file" / "out")]
    with pytest.raises(ConfigError, match=r"file/out: cannot be written \(Not a directory\)"):
        command.main(args)
