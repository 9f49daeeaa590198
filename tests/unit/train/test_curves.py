"""The picture of a training."""

import json
from pathlib import Path

import pytest

from ccts_dist.errors import OutputError
from ccts_dist.train.curves import curves_of, draw_training


def _write(folder: Path, num_steps: int) -> None:
    steps = [
        {"step": step, "epoch": 0, "keys": 7, "train/loss": 1.0 / step, "train/ccc_valence": float("nan")}
        for step in range(1, num_steps + 1)
    ]
    for name, rows in (("history.jsonl", steps), ("validations.jsonl", steps[-1:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("num_steps", [1, 50])
def test_a_picture_is_drawn_of_however_many_steps(tmp_path: Path, num_steps: int) -> None:
    _write(tmp_path, num_steps)
    path = draw_training(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_hold_finite_numbers_alone_and_are_thinned_out() -> None:
    rows = [{"step": step, "keys": step, "a": float(step), "b": float("nan")} for step in range(1, 5_001)]
    curves = curves_of(rows)
    assert list(curves) == ["a"]
    at, values = curves["a"]
    assert at == list(range(1, 5_001, 3))
    assert values == [float(step) for step in at]


def test_a_run_without_a_history_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"curves\.png: cannot be written or read back: No such file"):
        draw_training(tmp_path)
