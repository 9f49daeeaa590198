"""The paper's tables: which runs are started for a row, and how their figures stand beside the paper's."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.config import TrackingConfig, read_run
from ccts_dist.errors import ConfigError
from ccts_dist.report.command import build_parser, reproduction_of
from ccts_dist.report.paper import Reproduction, _stages, reproduce, table_text
from ccts_dist.report.paper_tables import IEMOCAP, MSP, TABLES
from ccts_dist.tracking import open_tracking
from ccts_dist.tracking.run_file import forget_run_file

SUMS = {
    # n, p, y, p^2, y^2, p y, |p - y|: predictions equal to labels 0 and 1, then 1 and 0 for them.
    "right": [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    "wrong": [2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0],
}


def summary(path: Path, ccc: float, sums: list[float], distilled_fraction: float | None = None) -> None:
    path.mkdir(parents=True)
    names = ("activation", "valence", "dominance")
    reported = {
        "test": {name: ccc + 0.1 * number for number, name in enumerate(names)},
        "test_sums": dict.fromkeys(names, sums),
        "distilled_fraction": distilled_fraction,
        "best_epoch": 1,
        "seconds": 1.5,
    }
    (path / "summary.json").write_text(json.dumps(reported))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_has_its_run_file_and_every_run_file_its_row(table):
    assert {f"{row.run}.toml" for row in table.rows} == {path.name for path in table.runs.glob("*.toml")}
    for row in table.rows:
        run = read_run(table.runs / f"{row.run}.toml")
        assert run.run_name == f"{table.name}-{row.run}"
        assert bool(run.data.teacher_cache) == bool(row.teacher)
        assert row.run.startswith(f"{row.number:02}-")


def test_each_session_tests_once_and_never_where_it_trains():
    assert [fold.test for fold in IEMOCAP.folds] == [(f"Session{number}",) for number in range(1, 6)]
    assert [fold.valid for fold in IEMOCAP.folds] == [(f"Session{number}",) for number in (2, 3, 4, 5, 1)]
    for fold in IEMOCAP.folds:
        assert sorted((*fold.train, *fold.valid, *fold.test)) == [f"Session{number}" for number in range(1, 6)]
    first = read_run(IEMOCAP.runs / "02-hubert-base.toml").data
    assert (first.train_splits, first.valid_splits, first.test_splits) == (
        IEMOCAP.folds[0].train, IEMOCAP.folds[0].valid, IEMOCAP.folds[0].test,
    )  # fmt: skip


def test_row_brings_its_teacher_and_the_cache_and_no_other_row(tmp_path: Path):
    wanted = Reproduction(
        table=MSP, folder=tmp_path, shards="s3://ours/msp", only=(12,), seeds=(17, 18), overrides=("train.epochs=3",)
    )
    stages = _stages(wanted, wanted.runnable())
    assert [stage.name for stage in stages] == [
        "09-teacher-seed17", "cache-seed17", "12-cts-seed17", "09-teacher-seed18", "cache-seed18", "12-cts-seed18",
    ]  # fmt: skip
    cache, student = stages[4].command, stages[5].command
    assert cache[cache.index("--teacher") + 1] == str(tmp_path / "runs" / "09-teacher-seed18" / "best")
    overrides = [student[at + 1] for at, word in enumerate(student) if word == "--set"]
    run = read_run(stages[5].inputs[0], overrides)
    assert run.data.teacher_cache == cache[cache.index("--out") + 1]
    assert (run.seed, run.data.shards, run.train.epochs) == (18, "s3://ours/msp", 3)
    assert run.output_dir == str(tmp_path / "runs" / "12-cts-seed18")
    assert run.tracking.parent_run_name == f"msp table in {tmp_path.name}"


def test_students_are_run_with_each_distance_and_the_papers_norm_is_that_of_the_run_files(tmp_path: Path):
    args = build_parser().parse_args(
        ["--table", "msp", "--out", str(tmp_path), "--only", "10", "12", "--distances", "l2", "mse"]
    )
    wanted = reproduction_of(args)
    runs = {}
    for stage in _stages(wanted, wanted.runnable()):
        if stage.inputs:
            overrides = [stage.command[at + 1] for at, word in enumerate(stage.command) if word == "--set"]
            runs[stage.name] = read_run(stage.inputs[0], overrides)
    assert list(runs) == ["09-teacher-seed17", "10-hubert-base-tuned-seed17", "12-cts-seed17", "12-cts-mse-seed17"]
    plain, squared = runs["12-cts-seed17"], runs["12-cts-mse-seed17"]
    assert plain.distill is not None
    assert squared.distill is not None
    assert (plain.distill.embedding_loss, squared.distill.embedding_loss) == ("l2", "mse")
    assert squared.output_dir == str(tmp_path / "runs" / "12-cts-mse-seed17")
    assert squared.data.teacher_cache == plain.data.teacher_cache
    assert [row.words for row in wanted.runnable()][-1] == "10 + teacher 9: cT/S, mse distance"


RUN_FILES = sorted(Path("launch/runs").rglob("*.toml"))


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_run_files_name_what_decides_the_papers_figures(path: Path):
    tree, run = tomllib.loads(path.read_text()), read_run(path)
    branches = [tree["model"][name] for name in ("speech", "text") if name in tree["model"]]
    for branch in branches:
        assert branch["encoder"] in ("scratch", "filterbank") or "trainable" in branch, (
            "frozen or tuned is for the file to state"
        )
    if run.distill is not None and "related" not in path.parts:
        assert "embedding_loss" in tree["distill"]
        assert run.distill.embedding_loss == ("mse" if path.parent.name == "demo" else "l2")
    speech = run.model.speech
    if "paper" in path.parts and speech is not None and speech.trainable != "none":
        assert "dropout" in tree["model"]
        assert speech.encoder_dropout is not None
        assert speech.spec_augment is not None


def test_every_fold_has_a_teacher_of_its_own(tmp_path: Path):
    wanted = Reproduction(table=IEMOCAP, folder=tmp_path, only=(6,))
    runs = {}
    for stage in _stages(wanted, wanted.runnable()):
        if stage.inputs:
            overrides = [stage.command[at + 1] for at, word in enumerate(stage.command) if word == "--set"]
            runs[stage.name] = read_run(stage.inputs[0], overrides).data
    assert len(runs) == 10
    for number, fold in enumerate(IEMOCAP.folds, start=1):
        teacher, student = runs[f"04-teacher-fold{number}-seed17"], runs[f"06-cts-fold{number}-seed17"]
        assert teacher.train_splits == student.train_splits == fold.train
        assert student.teacher_cache.endswith(f"row4-fold{number}-seed17")


def test_corpus_is_built_first_with_what_a_recogniser_read(tmp_path: Path):
    wanted = Reproduction(table=MSP, folder=tmp_path, corpus=Path("MSP"), transcripts=Path("asr.jsonl"), only=(8,))
    build = _stages(wanted, wanted.runnable())[0]
    assert build.command[1:] == (
        "shards/build.py", "msp-podcast", "MSP", "--out", str(tmp_path / "shards"), "--transcripts", "asr.jsonl",
    )  # fmt: skip


def test_row_that_lacks_its_encoder_is_left_out_and_taken_once_it_is_there(tmp_path: Path):
    wanted = Reproduction(table=MSP, folder=tmp_path)
    assert [row.number for row in wanted.runnable()] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    (tmp_path / "encoders" / "modified-cpc").mkdir(parents=True)
    assert [row.number for row in wanted.runnable()] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_that_are_compared_are_those_with_a_teacher_and_the_teacher(table):
    rows = {row.number: row for row in table.rows}
    assert {one for one, _ in table.compared} == {row.number for row in rows.values() if row.teacher} | {
        row.teacher for row in rows.values()
    } - {0}
    assert all(other in rows for _, other in table.compared)


def test_row_that_the_paper_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"--only 2: the table msp has the rows 3, 4, .*, 12"):
        MSP.choose([2])


def test_figures_stand_beside_the_papers_with_their_spread(tmp_path: Path):
    wanted = Reproduction(table=MSP, folder=tmp_path, only=(12,), seeds=(1, 2))
    rows = wanted.runnable()
    for seed, ccc in ((1, 0.6), (2, 0.7)):
        summary(tmp_path / "runs" / f"09-teacher-seed{seed}", 0.5, SUMS["right"])
        summary(tmp_path / "runs" / f"12-cts-seed{seed}", ccc, SUMS["right"], distilled_fraction=0.9 - 0.1 * seed)
    seconds = {f"{row}-seed{seed}": 10.4 for row in ("09-teacher", "12-cts") for seed in (1, 2)}
    header, _, teacher, student = map(cells, table_text(wanted, rows, seconds).splitlines()[2:])
    assert header[2:8] == ["A paper", "A ours", "A diff", "V paper", "V ours", "V diff"]
    assert student == [
        "12", "10 + teacher 9: cT/S", "0.757", "0.650", "-0.107", "0.627", "0.750", "+0.123", "0.671", "0.850",
        "+0.179", "2", "0.050", "25.0%", "21",
    ]  # fmt: skip
    assert teacher[-3:] == ["0.000", "-", "21"]


def test_rows_are_compared_in_pairs_of_one_seed(tmp_path: Path):
    wanted = Reproduction(table=MSP, folder=tmp_path, only=(11, 12), seeds=(1, 2), distances=("l2", "mse"))
    for seed in wanted.seeds:
        # The seed shifts every row alike; T/S to cT/S is .02 and .04 by seed.
        for row, ccc in (("09-teacher", 0.5), ("11-ts", 0.4), ("11-ts-mse", 0.3), ("12-cts", 0.4 + 0.02 * seed),
                         ("12-cts-mse", 0.2)):  # fmt: skip
            summary(tmp_path / "runs" / f"{row}-seed{seed}", ccc + 0.1 * seed, SUMS["right"])
    rows = wanted.runnable()
    seconds = {f"{row.name}-seed{seed}": 1.0 for row in rows for seed in wanted.seeds}
    text = table_text(wanted, rows, seconds).splitlines()
    place = text.index("Differences of rows, 2 pairs of runs of one seed: mean and 95 % interval (Student's t).")
    found = {line[0]: line[1:] for line in map(cells, text[place + 4 :])}
    assert list(found) == ["11 mse - 11", "12 - 11", "12 mse - 11 mse", "12 mse - 12"]
    assert found["11 mse - 11"] == ["-0.100 (-0.100 to -0.100)"] * 3
    # Mean .03, standard deviation .01 sqrt(2), t(1) = 12.706: half width 12.706 x .01.
    assert found["12 - 11"] == ["+0.030 (-0.097 to +0.157)"] * 3
    alone = replace(wanted, seeds=(1,))
    assert "Differences" not in table_text(alone, rows, seconds)


@pytest.mark.integration
def test_figures_of_a_tracked_run_are_those_of_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "mlflow.db"
    output = tmp_path / "runs" / "08-bert-base-seed17"
    summary(output, 0.1, SUMS["right"])
    config = TrackingConfig(tracking_uri=f"sqlite:///{store}")
    tracking = open_tracking(config, run_name="msp-08", output=output, resume=False)
    tracking.metrics({"test/ccc_activation": 0.5, "test/ccc_valence": 0.6, "test/ccc_dominance": 0.7}, 40)
    tracking.close("FINISHED")
    wanted = Reproduction(table=MSP, folder=tmp_path, only=(8,))

    def ours() -> list[str]:
        row = cells(table_text(wanted, wanted.runnable(), {output.name: 1.0}).splitlines()[-1])
        return [row[at] for at in (3, 6, 9)]

    assert ours() == ["0.500", "0.600", "0.700"]
    store.unlink()
    with pytest.raises(ConfigError, match=r"there is no file .*mlflow\.db to read it from"):
        ours()
    forget_run_file(output)
    assert ours() == ["0.100", "0.200", "0.300"], "a run that was never tracked has its summary alone"


def test_folds_are_averaged_and_pooled(tmp_path: Path):
    wanted = Reproduction(table=IEMOCAP, folder=tmp_path, only=(2,))
    for number in range(1, 6):
        # Three folds right, two wrong: CCC of the ten together is 2 cov / (var + var) = (3 - 2) / 5.
        summary(
            tmp_path / "runs" / f"02-hubert-base-fold{number}-seed17", 0.1 * number,
            SUMS["right" if number <= 3 else "wrong"],
        )  # fmt: skip
    seconds = {f"02-hubert-base-fold{number}-seed17": 1.0 for number in range(1, 6)}
    text = table_text(wanted, wanted.runnable(), seconds).splitlines()
    assert cells(text[4])[2:5] == ["0.663", "0.300", "-0.363"]
    assert cells(text[-1]) == ["2", "HuBERT base, frozen", "0.200", "0.200", "0.200"]


def test_some_folds_alone(tmp_path: Path):
    wanted = Reproduction(table=IEMOCAP, folder=tmp_path, only=(2,), fold_numbers=(5, 2))
    assert [stage.name for stage in _stages(wanted, wanted.runnable())] == [
        "02-hubert-base-fold2-seed17", "02-hubert-base-fold5-seed17",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--folds 6: the table iemocap has 1 to 5"):
        Reproduction(table=IEMOCAP, folder=tmp_path, fold_numbers=(6,)).cases()


def test_table_without_shards_and_corpus_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"there are no shards\. Give --corpus, or --shards"):
        reproduce(Reproduction(table=MSP, folder=tmp_path / "made"))
    assert not (tmp_path / "made").exists()
