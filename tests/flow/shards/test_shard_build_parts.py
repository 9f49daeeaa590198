"""Several processes and several builders at once: the bytes of one, whatever dies meanwhile."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from ccts_dist.errors import ShardError
from ccts_dist.records import Utterance
from ccts_dist.shards.build.pool import run_tasks
from tests.helpers.examples.shard_examples import build_example, make_utterances
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, run_forked

MANIFEST = "key,audio,split,transcript,valence\n"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "shards" / "build.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain manifest of a small corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        f"utterance {number},{one.audio},{one.split},words,{number % 7 + 1}\n"
        for number, one in enumerate(make_utterances(folder, 40))
    ]
    (folder / "corpus.csv").write_text(MANIFEST + "".join(rows))
    return folder / "corpus.csv"


def test_several_processes_make_the_bytes_of_one(tmp_path: Path):
    utterances = make_utterances(tmp_path / "corpus", 24)
    utterances.append(_gone(utterances[0], tmp_path))
    seen: list[int] = []
    build_example(utterances, tmp_path / "one", tmp_path / "corpus", max_rejected=0.1)
    summary = build_example(
        utterances, tmp_path / "three", tmp_path / "corpus", num_processes=3, max_rejected=0.1, progress=seen.append
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert sum(seen) == 25
    assert summary.made_s > 0


def test_parts_at_the_same_time_are_joined_into_the_set_of_one_builder(table: Path, tmp_path: Path):
    options = ["manifest", table, "--shard-mb", 0.012, "--processes", 1]
    parts = [
        Forked(
            command(*options, "--out", tmp_path / "parts", "--part", f"{number}/3"),
            cwd=ROOT,
            env=environment(),
        )
        for number in (1, 2, 3)
    ]
    for part in parts:
        text, _ = part.communicate(timeout=300)
        assert part.wait() == 0, text
    for words in (("join", tmp_path / "parts"), (*options[:-1], 2, "--out", tmp_path / "whole")):
        done = run_forked(command(*words))
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_process_that_dies_gives_one_line_and_what_was_made_is_kept(tmp_path: Path):
    utterances = make_utterances(tmp_path / "corpus", 24)
    build_example(utterances, tmp_path / "whole", tmp_path / "corpus")
    mine = psutil.Process()
    before = {child.pid for child in mine.children(recursive=True)}

    def kill_one(count: int) -> None:
        workers = [child for child in mine.children(recursive=True) if child.pid not in before and is_worker(child)]
        if workers:
            workers[0].kill()

    with pytest.raises(ShardError, match=r"a process that makes shards died .* run the same command again"):
        build_example(utterances, tmp_path / "s", tmp_path / "corpus", num_processes=2, progress=kill_one)
    assert not (tmp_path / "s" / "manifest.json").exists()
    build_example(utterances, tmp_path / "s", tmp_path / "corpus", num_processes=2)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


def is_worker(process: psutil.Process) -> bool:
    """A process that the server of the pool has forked."""
    parent = process.parent()
    return parent is not None and "forkserver" in " ".join(parent.cmdline())


def fail_at_three(task: int, progress: object) -> int:
    if task == 3:
        raise ShardError("three")
    return task


def test_the_first_fault_of_a_task_ends_the_others(tmp_path: Path):
    with pytest.raises(ShardError, match="three"):
        run_tasks(fail_at_three, list(range(100)), num_processes=2, progress=lambda _: None)


def test_workers_end_when_their_builder_is_killed(table: Path, tmp_path: Path):
    script = textwrap.dedent(
        """
        import sys, time
        from ccts_dist.shards.build.pool import run_tasks
        from tests.flow.shards.test_shard_build_parts import sleep_long
        if __name__ == "__main__":
            run_tasks(sleep_long, [1, 2, 3, 4], num_processes=3, progress=lambda _: print("at work", flush=True))
        """
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "at work\n"
        children = psutil.Process(builder.pid).children(recursive=True)
        assert sum(map(is_worker, children)) == 2
        builder.kill()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert len(gone) == len(children)


def sleep_long(task: int, progress: object) -> int:
    progress(1)
    threading.Event().wait(600)
    return task


def _gone(utterance: Utterance, folder: Path) -> Utterance:
    return Utterance(key="gone", audio=folder / "gone.wav", split="Train", labels={}, scale=utterance.scale)
