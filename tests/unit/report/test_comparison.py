"""Where two runs part, on hand-made histories."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.config import TrackingConfig
from ccts_dist.errors import ConfigError
from ccts_dist.report.comparison import compare_runs, difference
from ccts_dist.report.comparison_text import comparison_in_words
from ccts_dist.report.recorded import RecordedRun, parse_history, read_recorded, read_run_of
from ccts_dist.tracking import open_tracking
from launch.compare import main

NAN, INF = math.nan, math.inf


def recorded(losses: Sequence[float], *, first: int = 1, name: str = "run", **metrics: Sequence[Any]) -> RecordedRun:
    """A run with these losses; ``metrics`` are further columns, "keys" if there are none."""
    columns: dict[str, Sequence[Any]] = {"train/loss": losses, "keys": [7] * len(losses)} | metrics
    steps = {
        first + place: {"step": first + place, **{key: values[place] for key, values in columns.items()}}
        for place in range(len(losses))
    }
    return RecordedRun(name=name, settings={}, steps=steps, scores={})


def write_run(folder: Path, lines: Sequence[Mapping[str, Any]], *, end: str = "", **files: str) -> Path:
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def lines_of(losses: Sequence[float]) -> list[dict[str, Any]]:
    return [{"step": step, "keys": 10 + step, "train/loss": loss} for step, loss in enumerate(losses, start=1)]


def test_step_where_curves_part_and_their_largest_difference_by_hand():
    found = compare_runs(recorded([1.0, 0.5, 0.25, 0.25]), recorded([1.0, 0.625, 0.75, 0.5]), tolerance=0.2)
    assert not found.agrees
    assert (found.primary.diverges_at, found.primary.largest, found.primary.largest_at) == (3, 0.5, 3)
    assert found.primary.last == (0.25, 0.5)
    assert found.common_steps == (1, 2, 3, 4)


def test_difference_equal_to_the_tolerance_agrees():
    assert compare_runs(recorded([0.5]), recorded([0.75]), tolerance=0.25).agrees
    assert not compare_runs(recorded([0.5]), recorded([0.75]), tolerance=0.24).agrees


def test_tolerance_of_0_asks_for_equality():
    assert compare_runs(recorded([0.1, 0.2]), recorded([0.1, 0.2]), tolerance=0.0).agrees
    assert not compare_runs(recorded([0.1, 0.2]), recorded([0.1, math.nextafter(0.2, 1)]), tolerance=0.0).agrees


def test_runs_of_different_length_are_compared_in_their_common_steps():
    found = compare_runs(recorded([1.0, 2.0, 3.0]), recorded([2.0, 3.0, 4.0, 5.0], first=2))
    assert found.common_steps == (2, 3)
    assert found.agrees
    assert not found.same_steps
    assert found.num_steps == (3, 4)
    assert "steps: 3 and 4; compared are the 2 that both have, 2 to 3" in comparison_in_words(found)


@pytest.mark.parametrize(
    ("x", "y", "far"),
    [(1.0, 3.0, 2.0), (NAN, NAN, 0.0), (INF, INF, 0.0), (INF, -INF, INF), (NAN, 1.0, INF), (1.0, INF, INF)],
)
def test_difference_with_what_is_not_finite(x, y, far):
    assert difference(x, y) == far


def test_run_that_lost_a_step_parts_there_unless_the_other_lost_it_too():
    lost = recorded([1.0, NAN, 1.0])
    assert compare_runs(lost, lost).agrees
    found = compare_runs(lost, recorded([1.0, 1.0, 1.0]), tolerance=1e9)
    assert (found.primary.diverges_at, found.primary.largest) == (2, INF)


def test_figure_that_is_absent_in_a_step_of_one_run_parts_there():
    b = recorded([1.0, 1.0], **{"train/grad_norm": [3.0, 3.0]})
    a = recorded([1.0, 1.0], **{"train/grad_norm": [3.0, None]})
    assert compare_runs(a, b, key="train/grad_norm").primary.diverges_at == 2


def test_first_figure_to_part_may_be_another_than_the_compared_one():
    a = recorded([1.0, 1.0, 1.0], **{"train/grad_norm": [2.0, 2.0, 2.0]})
    b = recorded([1.0, 1.0, 1.5], **{"train/grad_norm": [2.0, 2.5, 2.0]})
    found = compare_runs(a, b)
    assert found.primary.diverges_at == 3
    assert found.first_to_part is not None
    assert (found.first_to_part.metric, found.first_to_part.diverges_at) == ("train/grad_norm", 2)
    assert "the first figure to part: train/grad_norm, at step 2" in comparison_in_words(found)
    assert compare_runs(a, b, key="train/grad_norm").primary.diverges_at == 2
    assert compare_runs(a, a).first_to_part is None


def test_speeds_and_sizes_part_nothing_unless_asked_for():
    a, b = (
        recorded([1.0], **{"throughput/utterances_per_s": [rate], "train/memory_gb": [rate]}) for rate in (10.0, 20.0)
    )
    assert [one.metric for one in compare_runs(a, b).metrics] == ["train/loss"]
    assert compare_runs(a, b, key="train/memory_gb").primary.largest == 10


def test_step_at_which_the_global_batches_part_is_named():
    a, b = recorded([1.0, 1.0, 1.0], keys=[5, 6, 7]), recorded([1.0, 1.0, 1.0], keys=[5, 9, 7])
    found = compare_runs(a, b)
    assert (found.keys_part_at, found.agrees) == (2, True)
    assert "utterances: the global batches part at step 2" in comparison_in_words(found)
    assert compare_runs(a, a).keys_part_at is None


def test_utterances_that_were_not_recorded_are_not_called_the_same():
    a = recorded([1.0], keys=[None])
    found = compare_runs(a, a)
    assert (found.keys_known, found.keys_part_at) == (False, None)
    assert "not recorded" in comparison_in_words(found)


def test_figures_of_one_run_alone_are_named_not_compared():
    found = compare_runs(recorded([1.0], **{"distill/fraction": [0.5]}), recorded([1.0]))
    assert found.only_in == (("distill/fraction",), ())
    assert "only in A: distill/fraction" in comparison_in_words(found)


@pytest.mark.parametrize(
    ("key", "tolerance", "first", "words"),
    [
        ("train/los", 1e-5, 1, "--key 'train/los': run has no such figure in the common steps. Did you mean 'train/lo"),
        ("zzz", 1e-5, 1, "It has: train/loss"),
        ("train/loss", -1.0, 1, r"--tolerance -1.0: must be a number of at least 0"),
        ("train/loss", NAN, 1, r"--tolerance nan: must be"),
        ("train/loss", 1e-5, 9, "run has steps 1 to 2, run has 9 to 10: none in common"),
    ],
)
def test_comparison_that_makes_no_sense_is_refused(key, tolerance, first, words):
    with pytest.raises(ConfigError, match=words):
        compare_runs(recorded([1.0, 2.0]), recorded([1.0, 2.0], first=first), key=key, tolerance=tolerance)


def test_half_written_last_line_is_left_out_and_noted():
    text = '{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/lo'
    steps, notes = parse_history(text, "h")
    assert list(steps) == [1]
    assert notes == ("its last line is half-written and omitted",)


def test_whole_last_line_without_its_line_break_counts():
    assert parse_history('{"step": 1}\n{"step": 2}', "h") == ({1: {"step": 1}, 2: {"step": 2}}, ())


def test_of_replayed_steps_the_later_line_counts():
    text = "".join(f'{{"step": {step}, "train/loss": {loss}}}\n' for step, loss in ((1, 1), (2, 9), (2, 5), (3, 4)))
    steps, notes = parse_history(text, "h")
    assert [row["train/loss"] for row in steps.values()] == [1, 5, 4]
    assert notes == ("1 of its lines are of steps that were replayed; the later ones count",)


@pytest.mark.parametrize("line", ['{"step": 1', "[1]", "{}", '{"step": "1"}', '{"step": true}', ""])
def test_line_in_the_middle_that_is_no_step_is_refused(line):
    with pytest.raises(ConfigError, match=r"some\.jsonl: line 2 is not a step as training writes it"):
        parse_history(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', "some.jsonl")


def test_command_compares_two_folders_states_all_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = json.dumps({"steps": 3, "valid": {"valence": 0.5}, "distilled_fraction": None})
    a = write_run(tmp_path / "a", lines_of([1.0, 0.5, NAN]), run_toml='seed = 1\n[optim]\nname = "sgd"')
    b = write_run(
        tmp_path / "b",
        lines_of([1.0, 0.5, NAN, 0.1]),
        end='{"ste',
        run_toml="seed = 2\n[optim]\n",
        summary_json=summary,
    )
    assert main([str(a), str(b), "--plot", str(tmp_path / "curves.png")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in printed.splitlines() if line.startswith("|")
    }
    assert {("optim.name", "'sgd'", "(absent)"), ("seed", "1", "2")} <= rows
    assert {("valid.valence", "-", "0.5", "inf"), ("distilled_fraction", "-", "-", "0")} <= rows
    assert ("train/loss", "-", "0", "1", "-", "-", "0") in rows
    assert f"B  {b}: 4 steps; its last line is half-written and omitted" in printed
    assert "utterances: the same in each of the 3 common steps" in printed
    assert printed.endswith("agrees within 1e-05 over all 3 common steps; largest difference 0, at step 1\n")


def test_command_ends_with_1_when_the_runs_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = (write_run(tmp_path / name, lines_of([1.0, last])) for name, last in (("a", 0.5), ("b", 0.6)))
    assert main([str(a), str(b), "--plot", str(tmp_path / "curves.svg")]) == 1
    assert "train/loss: parts at step 2 by more than 1e-05" in capsys.readouterr().out
    assert main([str(a), str(b), "--tolerance", "0.2"]) == 0
    one = write_run(tmp_path / "one", lines_of([1.25]))
    assert main([str(a), str(one), "--tolerance", "0", "--plot", str(tmp_path / "one.pdf")]) == 1
    assert "settings: the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: None, "no such folder"),
        (lambda place: place.mkdir(), "no history.jsonl in it"),
        (lambda place: write_run(place, [], end='{"step"'), "no step in it yet"),
        (
            lambda place: write_run(place, lines_of([1.0]), run_toml="seed ="),
            "run.toml: not what training writes there",
        ),
        (lambda place: write_run(place, lines_of([1.0]), summary_json="[1]"), "summary.json: holds list, not a table"),
        (lambda place: (write_run(place, []) / "history.jsonl").write_bytes(b"\xff\n"), "cannot be read"),
    ],
)
def test_folder_that_is_no_run_is_refused(tmp_path: Path, make, words):
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match=words) as caught:
        read_recorded(tmp_path / "run")
    assert caught.value.exit_code == 2


@pytest.mark.integration
def test_tracked_run_is_compared_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = open_tracking(TrackingConfig(tracking_uri=uri), run_name="a", output=tmp_path / "t", resume=False)
    tracked.params({"seed": 1, "optim": {"learning_rate": 1e-3}, "data": {"train_splits": ["Train"]}, "num_ranks": 2})
    for step, loss in enumerate([1.0, 0.5, 0.25], start=1):
        tracked.metrics({"train/loss": loss}, step)
    tracked.metrics({"valid/loss": 0.5, "test/ccc_valence": 0.75}, 3)
    tracked.close("FINISHED")
    run_toml = 'seed = 1\n[optim]\nlearning_rate = 2e-3\n[data]\ntrain_splits = ["Train"]\n'
    summary = json.dumps({"test": {"valence": 0.5}})
    folder = write_run(tmp_path / "f", lines_of([1.0, 0.5, 0.2]), run_toml=run_toml, summary_json=summary)
    assert main([f"runs:/{tracked.run_id}", str(folder), "--tracking-uri", uri]) == 1
    printed = capsys.readouterr().out
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in printed.splitlines() if line.startswith("|")
    }
    assert {("optim.learning_rate", "'0.001'", "0.002"), ("num_ranks", "'2'", "(absent)")} <= rows
    assert not {row for row in rows if row[0] in ("seed", "data.train_splits")}
    assert ("test.valence", "0.75", "0.5", "0.25") in rows
    assert "utterances: not recorded" in printed
    assert "train/loss: parts at step 3" in printed
    for address in ("runs:/", "runs:/no/such", "runs:/0123"):
        with pytest.raises(ConfigError, match=f"{address}: "):
            read_run_of(address, tracking_uri=uri)


def test_reading_where_nothing_was_tracked_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"runs:/0123: there is no file .*mlflow\.db"):
        read_run_of("runs:/0123")
    with pytest.raises(ConfigError, match="runs:/0123: there is no file"):
        read_run_of("runs:/0123", tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    assert list(tmp_path.iterdir()) == []
