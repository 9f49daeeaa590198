import json
import math
import resource
from pathlib import Path

import pytest

from ccts_dist.errors import OutputError
from ccts_dist.train.checkpoints.history import History


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_history_is_cut_back_to_the_checkpoint_and_a_half_line_is_dropped(tmp_path: Path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    history = History(path, 2)
    history.write({"step": 3, "loss": 0.5})
    history.close()
    history.check()
    assert steps_of(path) == [1, 2, 3]


def test_file_that_takes_no_more_raises_nothing_until_it_is_asked(tmp_path: Path):
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for step in range(1, 21):
            history.write({"step": step})
        history.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(OutputError, match=r"history\.jsonl: cannot be written or read back: File too large"):
        history.check()


def test_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path):
    with pytest.raises(OutputError, match="No such file or directory"):
        History(tmp_path / "gone" / "history.jsonl", 0)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "loss": \xff\x80}',
        '{"step": 2, "é'.encode("latin-1"),
        b"[2]",
        b'{"loss": 0.5}',
        b'{"step": "2"}',
        b"\0" * 30,
    ],
    ids=["no UTF-8", "Latin-1", "a list", "no step", "step is text", "zeros"],
)
def test_damaged_line_of_a_history_costs_that_line_and_not_the_run(tmp_path: Path, capfd, damage: bytes):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n{"step": 4}\n')
    history = History(path, 3)
    history.close()
    assert steps_of(path) == [1, 3]
    assert "1 of its 4 lines are not steps" in capfd.readouterr().err


def test_last_line_without_its_end_is_kept_when_it_is_whole(tmp_path: Path, capfd):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    History(path, 9).close()
    assert steps_of(path) == [1, 2]
    assert capfd.readouterr().err == ""


def test_figure_that_is_not_finite_is_null_in_a_history(tmp_path: Path):
    history = History(tmp_path / "validations.jsonl", 0)
    history.write({"step": 1, "valid/ccc_valence": math.nan, "valid/loss": math.inf, "train/loss": 0.5})
    history.close()
    (line,) = (tmp_path / "validations.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "valid/ccc_valence": null, "valid/loss": null, "train/loss": 0.5}'
