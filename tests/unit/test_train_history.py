import json
import resource
from pathlib import Path

import pytest

from ccts_dist.errors import OutputError
from ccts_dist.train.history import History


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
