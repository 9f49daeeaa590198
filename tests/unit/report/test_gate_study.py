"""The gate study: its plan, its corpora's facts, and its figures, from runs whose figures are written by hand."""

import json
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ccts_dist.config import read_run
from ccts_dist.corpus.demo.phrases import read_lexicon
from ccts_dist.corpus.demo.spoken import plan_spoken_corpus
from ccts_dist.errors import ConfigError
from ccts_dist.records import Utterance
from ccts_dist.report.command import build_parser, gate_study_of, is_study
from ccts_dist.report.gate_study.corpora import (
    OFF,
    confidence,
    facts_of,
    splits_of,
    spoken_config,
    valence,
    with_errors,
)
from ccts_dist.report.gate_study.files import write_results
from ccts_dist.report.gate_study.plan import (
    CELLS,
    ERRORS,
    PARTS,
    Cell,
    GateStudy,
    chains,
    corpus_stages,
    count_stages,
    stages_of,
)
from ccts_dist.report.gate_study.results import CONFIDENCE, FINDS, GAIN, PRIMARY, contrasts, detectable, read_results
from ccts_dist.report.stages import Stage

FACTS = {
    f"{labels}-{errors}": {"rejected": "0.2", "confidence": "0.65", "keys": f"oracle-{errors}.txt"}
    for labels in ("full", "few")
    for errors in ERRORS
}


def overrides(stage: Stage) -> list[str]:
    return [stage.command[at + 1] for at, word in enumerate(stage.command) if word == "--set"]


def run_of(cell: Cell):
    stage = stages_of(GateStudy(folder=Path("s")), 7, cell, FACTS)[0]
    return read_run(stage.inputs[0], overrides(stage))


def test_every_seed_has_the_primary_cells_before_any_has_the_others():
    study = GateStudy(folder=Path("s"), seeds=(3, 4))
    assert [seed for seed, _ in chains(study)] == [3, 4] * len(PARTS)
    assert [part for _, part in chains(study)] == [part for part in PARTS for _ in study.seeds]
    assert len(CELLS) == len(set(CELLS)) == 43
    first = {cell for part in PARTS[:2] for cell in part}
    compared = {(one.question, one.cell.labels, one.cell.term) for one in contrasts(*PRIMARY) if one.cell in first}
    assert compared == {
        (GAIN, "few", "prediction"),
        (GAIN, "full", "embedding"),
        (FINDS, "full", "embedding"),
        (CONFIDENCE, "few", "prediction"),
    }
    assert all(one.less in first for one in contrasts(*PRIMARY) if one.cell in first)


def test_every_cell_is_a_run_that_its_run_file_allows():
    for cell in CELLS:
        run = run_of(cell)
        assert run.seed == 7
        assert run.output_dir == f"s/seed7/runs/{cell.name}"
        assert (
            run.data.train_splits
            == {
                "full": ("Few", "More"),
                "few": ("Few", "Unrated") if cell.system == "student" else ("Few",),
            }[cell.labels]
        )
        assert run.batch.labelled_share == (0.5 if (cell.labels, cell.system) == ("few", "student") else None)
        assert (run.model.text is not None) == (cell.system == "teacher")
        assert (run.distill is not None) == (cell.system == "student")


def test_gates_get_what_the_corpus_says_of_itself():
    student = {"labels": "few", "errors": "audible", "term": "prediction"}
    random_gate = run_of(Cell(**student, gate="random as oracle")).distill
    assert random_gate is not None
    assert (random_gate.gate, random_gate.reject_fraction) == ("random", 0.2)
    confident, oracle = (run_of(Cell(**student, gate=gate)).distill for gate in ("confidence", "oracle"))
    assert confident is not None
    assert confident.min_confidence == 0.65
    assert oracle is not None
    assert oracle.gate_keys == "oracle-audible.txt"


def test_random_gate_beside_the_condition_rejects_as_many_as_it_would():
    student = {"labels": "full", "errors": "random", "term": "embedding"}
    condition, beside = (run_of(Cell(**student, gate=gate)).distill for gate in ("condition", "random as condition"))
    assert condition is not None
    assert beside is not None
    assert (beside.gate, beside.reject_fraction) == ("random", 0.0), "0 stands for the share of the same threshold"
    same = ("threshold", "residual_scale", "gate_targets", "embedding_weight", "embedding_loss", "standardize")
    assert [getattr(condition, key) for key in same] == [getattr(beside, key) for key in same]


def test_teachers_cache_is_the_one_that_its_students_read():
    study = GateStudy(folder=Path("s"))
    _, cache = stages_of(study, 7, Cell(labels="few", errors="audible"), {})
    student = run_of(Cell(labels="few", errors="audible", term="prediction", gate="all"))
    assert cache.command[cache.command.index("--out") + 1] == student.data.teacher_cache
    assert cache.command[cache.command.index("--shards") + 1] == student.data.shards
    assert cache.command[-2:] == ("Few", "Unrated")


def test_shards_of_audible_errors_wait_for_the_cells_that_need_them():
    names = [[stage.name for stage in corpus_stages(GateStudy(folder=Path("s")), 1, part)] for part in PARTS[:3]]
    assert names == [
        ["corpus", "shards-random"],
        ["corpus", "shards-audible"],
        ["corpus", "shards-random", "shards-audible"],
    ]
    counted = [stage.name for part in PARTS for stage in count_stages(GateStudy(folder=Path("s")), 1, part)]
    assert len(set(counted)) == len(counted) == 8, "no part takes another's counting for its own"


@pytest.fixture(scope="module")
def planned():
    return {errors: plan_spoken_corpus(spoken_config(errors, 5, 1600)) for errors in ERRORS}


def test_both_kinds_of_errors_do_similar_damage_to_valence(planned):
    lexicon = read_lexicon()
    found = {}
    for errors, lines in planned.items():
        both = np.array([[valence(one.text, lexicon), valence(one.transcript, lexicon)] for one in lines])
        found[errors] = np.corrcoef(both.T)[0, 1]
    assert found["random"] == pytest.approx(found["audible"], abs=0.05)


def test_voices_of_development_are_not_tested_and_two_thirds_of_what_is_left_is_unrated(planned):
    lines = planned["random"]
    splits = splits_of(lines, 300)
    of = {split: [line for line in lines if splits[line.key] == split] for split in set(splits.values())}
    assert {split: len(of[split]) for split in ("Few", "More", "Unrated")} == {"Few": 300, "More": 305, "Unrated": 611}
    voices = {split: {line.speaker.number for line in of[split]} for split in of}
    assert (len(voices["Development"]), len(voices["Test1"])) == (2, 8)
    assert not voices["Development"] & voices["Test1"]
    assert not voices["Test1"] & (voices["Few"] | voices["More"] | voices["Unrated"])


def test_unrated_utterances_have_no_label_and_audible_errors_a_confidence(planned):
    spoken = Utterance(
        key=planned["audible"][0].key, audio=Path("a.wav"), split="Train", labels={"valence": 0.5}, scale=(1.0, 7.0),
        label_variance={"valence": 0.1}, num_raters=5, category="H",
    )  # fmt: skip
    heard = with_errors(spoken, planned["audible"][0], "Unrated", "audible", 5)
    assert (dict(heard.labels), dict(heard.label_variance), heard.num_raters, heard.category) == ({}, {}, None, None)
    assert 0 < (heard.transcript_confidence or 0) < 1
    read = with_errors(spoken, planned["random"][0], "More", "random", 5)
    assert (dict(read.labels), read.transcript_confidence) == ({"valence": 0.5}, None)
    assert read.transcript == planned["random"][0].transcript


def test_recognizer_is_less_sure_of_words_that_it_mistakes():
    source = random.Random(0)
    right = [confidence("the river was bad", "the river was bad", source) for _ in range(400)]
    wrong = [confidence("the river was bad", "that river was sad", source) for _ in range(400)]
    assert np.mean(right) == pytest.approx(0.75, abs=0.01)
    assert (np.mean(right) - np.mean(wrong)) / np.std(right) == pytest.approx(1.3, abs=0.2)


def test_valence_of_words_is_the_lexicons_mean_and_a_harmless_error_is_sound():
    lexicon = {"bad": -2.5, "sad": -2.1, "great": 3.1}
    assert valence("so bad and great", lexicon) == pytest.approx(0.3)
    assert valence("it was", lexicon) == 0.0
    assert abs(valence("it was bad", lexicon) - valence("that was sad", lexicon)) < OFF


def test_confidence_rejects_as_many_as_the_oracle():
    def heard(number: int) -> Utterance:
        return Utterance(
            key=f"u{number}", audio=Path("a.wav"), split="Few", labels={}, scale=(1.0, 7.0),
            transcript_confidence=number / 10,
        )  # fmt: skip

    facts = facts_of([heard(number) for number in range(10)], {f"u{number}" for number in range(3, 10)})
    assert float(facts["rejected"]) == 0.3
    assert sum(number / 10 < float(facts["confidence"]) for number in range(10)) == 3


def write_run(study: GateStudy, seed: int, cell: Cell, valence: float, counted: dict[str, float] | None = None) -> None:
    folder = study.run_folder(seed, cell)
    folder.mkdir(parents=True)
    ccc = {"activation": 0.5, "valence": valence, "dominance": 0.25}
    fraction = None if cell.system != "student" else 0.8
    rest = {"test_sums": {}, "distilled_fraction": fraction, "best_epoch": 3, "seconds": 1.5}
    (folder / "summary.json").write_text(json.dumps({"test": ccc, **rest}))
    if counted is not None:
        (folder / "rejected.json").write_text(json.dumps(counted))


@pytest.fixture
def study(tmp_path: Path) -> GateStudy:
    """Three seeds; the last lacks a condition."""
    study = GateStudy(folder=tmp_path / "study", seeds=(1, 2, 3))
    embedding = {"labels": "full", "errors": "random", "term": "embedding"}
    heard = {"labels": "few", "errors": "audible", "term": "prediction"}
    for seed, gain, found, confident in ((1, 0.02, 0.01, 0.03), (2, 0.04, -0.01, 0.03), (3, 0.06, None, 0.03)):
        base = 0.3 + 0.1 * seed
        write_run(study, seed, Cell(labels="full"), base - 0.1)
        write_run(study, seed, Cell(**embedding, gate="all"), base)
        write_run(study, seed, Cell(**embedding, gate="random as oracle"), base)
        write_run(study, seed, Cell(**embedding, gate="oracle"), base + gain, {"off": 1.0, "sound": 0.0})
        write_run(study, seed, Cell(**embedding, gate="random as condition"), base)
        if found is not None:
            write_run(study, seed, Cell(**embedding, gate="condition"), base + found, {"off": 0.6, "sound": 0.1})
        write_run(study, seed, Cell(**heard, gate="random as oracle"), base)
        write_run(study, seed, Cell(**heard, gate="confidence"), base + confident)
    return study


def test_primary_differences_are_of_one_seed_and_have_students_interval(study: GateStudy):
    runs = read_results(study)
    estimates = [(one.question, one.estimate(runs, "valence")) for one in contrasts(*PRIMARY)]
    found = {question: value for question, value in estimates if value is not None}
    assert set(found) == {GAIN, FINDS, CONFIDENCE}
    gain, finds, confident = found[GAIN], found[FINDS], found[CONFIDENCE]
    # .02, .04, .06: standard deviation .02, over the root of 3, times t(2) = 4.303.
    assert (gain.mean, gain.half_width, gain.count) == (pytest.approx(0.04), pytest.approx(0.04968, abs=1e-5), 3)
    # t(2) of .8 is 1.061: (4.303 + 1.061) .02 / 1.732.
    assert detectable(gain) == pytest.approx(0.06194, abs=1e-5)
    # .01, -.01, two seeds: standard deviation .01414, over the root of 2 .01, times 12.706.
    assert (finds.mean, finds.half_width, finds.count) == (pytest.approx(0.0), pytest.approx(0.12706, abs=1e-5), 2)
    assert (confident.mean, confident.half_width) == (pytest.approx(0.03), pytest.approx(0.0, abs=1e-9))


def test_tables_have_what_is_there(study: GateStudy):
    text = write_results(study)
    assert "+0.040 (-0.010 to +0.090)" in text
    assert "100.0%" in text
    first, *others = (study.folder / "runs.csv").read_text().splitlines()
    assert first.startswith("labels,errors,term,gate,seed,activation,valence")
    assert len(others) == len(read_results(study)) == 23
    picture = (study.folder / "differences.svg").read_bytes()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    write_results(study)
    assert (study.folder / "differences.svg").read_bytes() == picture


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", '{"test": '),
        ("summary.json", "[]"),
        ("summary.json", '{"test": 3}'),
        ("rejected.json", "\xff"),
        ("rejected.json", "[]"),
    ],
)
def test_damaged_file_of_a_stage_is_named(study: GateStudy, name: str, text: str):
    path = next(study.folder.rglob(name))
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"{name}: not what its stage wrote \(.*Restore it, or begin in an empty"):
        write_results(study)


def test_study_of_which_nothing_is_there_has_tables_and_a_picture(tmp_path: Path):
    assert "Primary differences" in write_results(GateStudy(folder=tmp_path / "new"))


def test_command_line_makes_the_study():
    args = build_parser().parse_args(["--table", "gate", "--seeds", "1", "2", "--jobs", "2", "--out", "here"])
    assert not is_study(args)
    assert gate_study_of(args) == GateStudy(folder=Path("here"), seeds=(1, 2), jobs=2)
    usual = gate_study_of(build_parser().parse_args(["--table", "gate"]))
    assert (usual.folder, usual.seeds) == (Path("demo/gate-study"), tuple(range(1, 21)))


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--seeds", "1", "1"], r"--seeds: each of \[1, 1\] must be there, and only once"),
        (["--jobs", "0"], r"--jobs 0: must be at least 1"),
        (["--report-only", "--out", "no/such"], r"--report-only: no/such is no folder"),
        (["--corrupt-transcripts", "10"], r"the table gate has shares of its own"),
    ],
)
def test_options_that_make_no_study_are_refused(words, rule):
    args = build_parser().parse_args(["--table", "gate", *words])
    with pytest.raises(ConfigError, match=rule):
        assert is_study(args) or gate_study_of(args)
