"""Files that are whole or not there, whoever writes them at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ccts_dist.files.atomic import atomic_write


def test_writers_of_one_file_at_the_same_time_all_succeed_and_leave_one_whole(tmp_path: Path):
    path = tmp_path / "plan.json"
    texts = [bytes([letter]) * 200_000 for letter in b"abcdefgh"]
    with ThreadPoolExecutor(len(texts)) as threads:
        list(threads.map(lambda text: [atomic_write(path, text, shared=True) for _ in range(20)], texts))
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    atomic_write(path, b"whole", shared=True)
    assert path.read_bytes() == b"whole"
