"""The demo study: its order, its commands, its tables and its picture, from runs whose figures are written by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError, StageError
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.command import build_parser, is_study, study_of
from ccts_dist.report.stages import Stage
from ccts_dist.report.study.files import write_results
from ccts_dist.report.study.plan import Study, Task, order_of_shares, order_of_tasks, stages_of
from ccts_dist.report.study.results import Results, StudyRun, count_rejected
from ccts_dist.report.study.study import StudyProgress, _Workers, run_study, share_out
from ccts_dist.report.study.tables import teacher_check

SEEDS = (17, 18, 19, 20, 21)


def asked(*words: str):
    return build_parser().parse_args(["--table", "demo", *words])


def overrides(stage: Stage) -> list[str]:
    return [stage.command[at + 1] for at, word in enumerate(stage.command) if word == "--set"]


def write_run(
    study: Study, percent: int, seed: int, system: str, valence: float, fraction: float | None = None
) -> None:
    folder = study.chain_folder(percent, seed) / "runs" / system
    folder.mkdir(parents=True)
    reported = {"test": {"activation": 0.5, "valence": valence, "dominance": 0.25}, "best_epoch": 3, "seconds": 1.5}
    (folder / "summary.json").write_text(json.dumps(reported | {"test_sums": {}, "distilled_fraction": fraction}))


def write_gate_counts(study: Study, percent: int, seed: int, wrong: int, right: int) -> None:
    reported = {"num_wrong": percent, "num_right": 100 - percent, "wrong_rejected": wrong, "right_rejected": right}
    (study.chain_folder(percent, seed) / "gate_counts.json").write_text(
        json.dumps({"percent": percent, "seed": seed} | reported)
    )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two seeds at two shares, the second share's last chain still under way."""
    study = Study(folder=tmp_path / "study", seeds=(17, 18), percents=(10, 30))
    for seed, more in ((17, 0.0), (18, 0.02)):
        for system, valence in (("text", 0.9), ("speech", 0.3), ("teacher", 0.8)):
            write_run(study, 10, seed, system, valence + more)
        write_run(study, 10, seed, "ts", 0.40 + 2 * more, fraction=1.0)
        write_run(study, 10, seed, "cts", 0.45 + 2 * more, fraction=0.75 + more)
        write_gate_counts(study, 10, seed, wrong=8, right=9)
        write_run(study, 30, seed, "teacher", 0.7 + more)
        write_run(study, 30, seed, "ts", 0.35 + 4 * more, fraction=1.0)
    write_run(study, 30, 17, "cts", 0.5, fraction=0.6)
    write_gate_counts(study, 30, 17, wrong=27, right=7)
    return study


def table(text: str, number: int) -> list[list[str]]:
    """The cells of one of the tables, without its header's line."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[number].splitlines()[2:]]


def test_usual_share_comes_first_and_then_the_most_wrong_one():
    assert order_of_shares([0, 10, 30]) == (10, 30, 0)
    assert order_of_shares([0, 30, 0]) == (30, 0)
    assert order_of_shares([]) == ()


def test_tasks_give_tables_early_and_have_each_corpus_ready_before_it_is_needed():
    study = Study(folder=Path("s"), seeds=(1, 2, 3), percents=(10, 30, 0))
    assert [(task.percent, task.seed) for task in order_of_tasks(study)] == [
        (10, None), (10, 1), (10, 2), (30, None), (0, None), (10, 3), (30, 1), (0, 1), (30, 2), (0, 2), (30, 3), (0, 3),
    ]  # fmt: skip


def test_systems_that_read_no_transcript_are_trained_at_the_first_share_alone():
    study = Study(folder=Path("s"), percents=(10, 30))
    names = {
        percent: [stage.name for stage in stages_of(study, Task(percent=percent, seed=17))] for percent in (10, 30)
    }
    assert names == {
        10: ["text", "speech", "teacher", "cache", "ts", "cts"],
        30: ["teacher", "cache", "ts", "cts"],
    }


def test_commands_of_a_chain_belong_together_and_touch_no_other():
    study = Study(folder=Path("s"), percents=(10, 30), overrides=("train.epochs=1",))
    shards, teacher, cache, ts, cts = (
        *stages_of(study, Task(percent=30)),
        *stages_of(study, Task(percent=30, seed=18)),
    )
    assert shards.command[shards.command.index("--corrupt-transcripts") + 1] == "30"
    assert cache.command[cache.command.index("--teacher") + 1] == "s/wrong30/seed18/runs/teacher/best"
    for stage in (teacher, ts, cts):
        run = read_run(stage.inputs[0], overrides(stage))
        assert (run.seed, run.output_dir) == (18, f"s/wrong30/seed18/runs/{stage.name}")
        assert run.data.shards == shards.command[shards.command.index("--out") + 1] == "s/wrong30/shards"
        assert run.data.teacher_cache == ("" if stage is teacher else cache.command[cache.command.index("--out") + 1])
        assert (run.train.epochs, run.tracking.registered_model_name) == (1, "")
        assert run.tracking.parent_run_name == "demo study in s"
        assert run.batch.micro_batch_size == run.batch.global_batch_size, "one rank, one pass"
    gates = [read_run(stage.inputs[0], overrides(stage)).distill for stage in (ts, cts)]
    assert [gate and gate.gate for gate in gates] == ["none", "any-dimension"]


def test_jobs_share_the_cores_out():
    assert share_out([0, 1], 2) == [{0}, {1}]
    assert share_out([0, 1, 2, 3, 4], 2) == [{0, 1}, {2, 3}]
    assert share_out([4, 7], 3) == [{4}, {7}, {4}]


def test_stages_run_on_the_cores_of_their_job_and_threads_are_given_back():
    before = os.sched_getaffinity(0)
    workers = _Workers(Study(folder=Path("s"), jobs=len(before)), StudyProgress([], 1))
    show = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    with workers._on_own_cores() as num_cores:
        assert subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip() == "1"
        assert num_cores == 1
    assert os.sched_getaffinity(0) == before


def test_meter_foresees_the_rest_from_what_the_first_stages_took(capsys):
    stages = [Stage(name=name, command=()) for name in ("text", "speech", "speech")]
    progress = StudyProgress(stages, jobs=2)
    assert progress.words(0.0) == "0 of 3 stages, 0 min gone, about 0 min to go"
    progress.advance(stages[0], 140.0)  # twice the 70 s that text was thought to take: two speech of 360 s on two cores
    assert "study: 1 of 3 stages, 0 min gone, about 6 min to go" in capsys.readouterr().err


def test_wrong_and_right_transcripts_are_counted_apart():
    counted = count_rejected([True, True, True, False, False], [False, False, True, True, False], percent=60, seed=1)
    assert (counted.num_wrong, counted.num_right) == (3, 2)
    assert (counted.wrong_rejected, counted.right_rejected) == (2, 1)


def test_systems_have_mean_and_spread_over_seeds(study):
    rows = table(write_results(study), 0)
    assert [row[0] for row in rows] == ["text only", "speech only, no teacher", "teacher: speech + text", "T/S", "cT/S"]
    # .45 and .49: mean .47, off by .02 each, and the root of 2 x .0004 is .028. .75 and .77 kept.
    assert rows[-1] == ["cT/S", "0.500 ± 0.000", "0.470 ± 0.028", "0.250 ± 0.000", "24.0%", "2"]
    assert rows[1][4:] == ["-", "2"]


def test_differences_are_of_the_same_seed(study):
    rows = {row[0]: row[1:] for row in table(write_results(study), 1)}
    # Speech .30 and .32, teacher half a point above both.
    assert rows["teacher - speech only"] == ["+0.000 (+0.000 to +0.000)", "+0.500 (+0.500 to +0.500)",
                                             "+0.000 (+0.000 to +0.000)", "2"]  # fmt: skip
    # .10 and .12: mean .11, deviation .0141, over the root of 2 .01, times 12.706.
    assert rows["T/S - speech only"][1] == "+0.110 (-0.017 to +0.237)"
    assert rows["cT/S - T/S"][1] == "+0.050 (+0.050 to +0.050)"


def test_shares_have_the_seeds_that_are_whole_and_the_one_run_without_transcripts(study):
    rows = table(write_results(study), 2)
    assert rows[0][0::7] == ["10 %", "2"]
    # Seed 17 alone: the other has no cT/S yet. Speech only is the .30 of the 10 % corpus.
    assert rows[1] == ["30 %", "0.700", "0.350", "0.500", "+0.050", "+0.200", "+0.150", "1"]


def test_what_the_condition_leaves_out_is_reported_by_whose_transcript_is_wrong(study):
    assert table(write_results(study), 3) == [
        ["10 %", "17.0%", "80.0%", "10.0%", "2"],
        ["30 %", "34.0%", "90.0%", "10.0%", "1"],
    ]


def test_share_without_wrong_transcripts_has_no_share_of_them(tmp_path):
    study = Study(folder=tmp_path, seeds=(17,), percents=(0,))
    write_run(study, 0, 17, "cts", 0.5, fraction=0.9)
    write_gate_counts(study, 0, 17, wrong=0, right=10)
    assert table(write_results(study), 3) == [["0 %", "10.0%", "-", "10.0%", "1"]]


def test_study_of_which_nothing_is_there_has_its_tables_too(tmp_path):
    text = write_results(Study(folder=tmp_path / "new", percents=(10, 30)))
    assert table(text, 1)[0] == ["text only - speech only", "-", "-", "-", "0"]
    assert table(text, 2)[1] == ["30 %", "-", "-", "-", "-", "-", "-", "0"]


def test_every_run_is_left_as_csv_and_json(study):
    write_results(study)
    header, first, *others = (study.folder / "study.csv").read_text().splitlines()
    assert header == "wrong_percent,seed,system,activation,valence,dominance,best_epoch,distilled_fraction,seconds"
    assert first == "10,17,text,0.500000,0.900000,0.250000,3,,1.5"
    assert others[3] == "10,17,cts,0.500000,0.450000,0.250000,3,0.750000,1.5"
    assert len(others) == 14
    reported = json.loads((study.folder / "study.json").read_text())
    assert (len(reported["runs"]), len(reported["gate_counts"])) == (15, 3)
    assert reported["runs"][0]["ccc"] == {"activation": 0.5, "valence": 0.9, "dominance": 0.25}


def test_picture_is_small_names_the_systems_and_is_the_same_every_time(study):
    write_results(study)
    picture = study.folder / "study.svg"
    drawn = picture.read_bytes()
    assert len(drawn) < 100_000
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for words in (b"speech only", b"T/S: every utterance distilled", b"cT/S: on condition", b"wrong transcripts, %"):
        assert words in drawn
    write_results(study)
    assert picture.read_bytes() == drawn
    write_run(study, 30, 18, "cts", 0.1)
    write_results(study)
    assert picture.read_bytes() != drawn


def test_failed_chain_is_named_and_the_others_are_run_to_their_end(tmp_path, monkeypatch, capfd):
    def stages(_: Study, task: Task) -> list[Stage]:
        ends = "exit 3" if (task.percent, task.seed) == (10, 18) else "exit 0"
        return [Stage(name="text", command=("sh", "-c", ends))]

    monkeypatch.setattr("ccts_dist.report.study.study.stages_of", stages)
    monkeypatch.setattr("ccts_dist.report.study.study.write_gate_counts", lambda *_: None)
    study = Study(folder=tmp_path / "study", seeds=(17, 18, 19), percents=(10, 30), jobs=2)
    with pytest.raises(StageError, match=r"^text: ended with exit code 3\. Its whole output is in .*wrong10/seed18"):
        run_study(study)
    done = sorted(str(path.relative_to(study.folder).parent) for path in study.folder.rglob("text.json"))
    assert done == sorted(
        f"wrong{percent}{part}/stages"
        for percent in (10, 30)
        for part in ("", "/seed17", "/seed18", "/seed19")
        if (percent, part) != (10, "/seed18")
    )


def test_chains_of_a_corpus_that_cannot_be_made_are_not_run(tmp_path, monkeypatch, capfd):
    def stages(_: Study, task: Task) -> list[Stage]:
        return [Stage(name="text", command=("sh", "-c", "exit 3" if task == Task(percent=30) else "exit 0"))]

    monkeypatch.setattr("ccts_dist.report.study.study.stages_of", stages)
    monkeypatch.setattr("ccts_dist.report.study.study.write_gate_counts", lambda *_: None)
    study = Study(folder=tmp_path / "study", seeds=(17,), percents=(10, 30))
    with pytest.raises(StageError, match=r"^text: ended with exit code 3\. Its whole output is in .*wrong30/logs"):
        run_study(study)
    assert (study.folder / "wrong10/seed17/stages/text.json").is_file()
    assert not (study.folder / "wrong30/seed17").exists()


def test_interrupted_study_ends_its_stage_and_begins_no_other(tmp_path, capfd):
    study = Study(folder=tmp_path, seeds=(17,))
    stage = Stage(name="text", command=())
    workers = _Workers(study, StudyProgress([stage, stage], 1))
    workers._advance(stage, 1.0)
    workers.stop()
    with pytest.raises(StageError, match=r"the study was interrupted\. Run it again to go on"):
        workers._advance(stage, 1.0)


def test_seeds_or_shares_make_the_demo_a_study():
    assert not is_study(asked())
    assert is_study(asked("--seeds", "17"))
    assert is_study(asked("--report-only"))
    study = study_of(
        asked("--corrupt-transcripts", "0", "10", "30", "--jobs", "2", "--set", "train.epochs=1", "--utterances", "90")
    )
    assert (study.seeds, study.percents, study.jobs, study.num_utterances) == (SEEDS, (10, 30, 0), 2, 90)
    assert (study.folder, study.overrides) == (Path("demo/study"), ("train.epochs=1",))
    assert study_of(asked("--seeds", "3", "--out", "here")) == Study(folder=Path("here"), seeds=(3,))


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (
            ["--corrupt-transcripts", "101"],
            r"--corrupt-transcripts 101: a share of the transcripts in percent is from 0 to 100",
        ),
        (["--seeds", "17", "17"], r"--seeds: each of \[17, 17\] must be there, and only once"),
        (["--seeds", "17", "--jobs", "0"], r"--jobs 0: must be at least 1"),
        (["--jobs", "2"], r"the plain demo has no use for them. Add --seeds"),
        (["--out", "here"], r"the plain demo has no use for them. Add --seeds"),
        (["--report-only", "--out", "no/such"], r"--report-only: no/such is no folder. Name the study's by --out"),
        (["--table", "msp", "--corrupt-transcripts", "10"], r"only --table demo has them, not msp"),
    ],
)
def test_options_that_make_no_study_are_refused(words, rule):
    args = asked(*words)
    with pytest.raises(ConfigError, match=rule):
        is_study(args) and study_of(args)


def run_of(seed: int, system: str, *ccc: float) -> StudyRun:
    return StudyRun(
        percent=10, seed=seed, system=system, ccc=dict(zip(DIMENSIONS, ccc, strict=True)), best_epoch=1, seconds=1.0,
        distilled_fraction=None,
    )  # fmt: skip


def test_teacher_is_checked_against_the_better_branch_of_each_dimension_and_seed():
    runs = [
        run_of(1, "text", 0.1, 0.90, 0.1), run_of(1, "speech", 0.8, 0.4, 0.70), run_of(1, "teacher", 0.9, 0.885, 0.69),
        run_of(2, "text", 0.1, 0.80, 0.1), run_of(2, "speech", 0.8, 0.4, 0.70), run_of(2, "teacher", 0.8, 0.800, 0.70),
        run_of(3, "teacher", 0.0, 0.0, 0.0),
    ]  # fmt: skip
    assert teacher_check(Results(runs=tuple(runs), gate_counts=()), 10) == (
        "Check of the teacher: passed. In 2 of 2 seeds it is at most 0.02 below the better of text only and speech "
        "only on every dimension; the lowest difference is -0.015 (valence, seed 1)."
    )
    runs += [run_of(3, "text", 0.1, 0.8, 0.1), run_of(3, "speech", 0.021, 0.0, 0.0)]
    checked = teacher_check(Results(runs=tuple(runs), gate_counts=()), 10)
    assert checked.startswith("Check of the teacher: failed. In 2 of 3 seeds")
    assert checked.endswith("the lowest difference is -0.800 (valence, seed 3).")
    assert teacher_check(Results(runs=(), gate_counts=()), 10) == ""
