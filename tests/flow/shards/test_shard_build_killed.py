"""A builder that is killed outright, wherever it is, goes on and ends with the same bytes."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ccts_dist.shards.build.output import BUILDING
from ccts_dist.shards.check.check import check_shard_set
from tests.helpers.examples.shard_examples import build_example, make_utterances
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment

COUNT = 24

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from ccts_dist.errors import run_main
    from tests.helpers.examples.shard_examples import build_example, make_utterances
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    def progress(count):
        print("one\\n" * count, end="", flush=True)
        time.sleep(0.02)
    def main(argv):
        utterances = make_utterances(corpus, 24)
        build_example(utterances, out, corpus, progress=progress, num_processes=int(sys.argv[3]))
        return 0
    if __name__ == "__main__":
        raise SystemExit(run_main(main))
    """
)


def start(corpus: Path, out: Path, num_processes: int, script: Path) -> Forked:
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(corpus), str(out), str(num_processes)]
    return Forked(command, cwd=ROOT, env=environment({"PYTHONPATH": str(ROOT)}), stderr=subprocess.PIPE)


@pytest.mark.parametrize(("after", "num_processes"), [(3, 1), (11, 1), (23, 1), (1, 2), (11, 2)])
def test_a_killed_builder_goes_on_and_ends_byte_equal(tmp_path: Path, after: int, num_processes: int):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    utterances = make_utterances(corpus, COUNT)
    build_example(utterances, tmp_path / "whole", corpus)
    with start(corpus, out, num_processes, tmp_path / "script.py") as builder:
        assert builder.stdout is not None
        for _ in range(after):
            assert builder.stdout.readline() == "one\n"
        builder.send_signal(signal.SIGKILL)
    assert builder.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    records = [path.name.removesuffix(".json") for path in (out / BUILDING).glob("*.tar.json")]
    kept = {name: (out / name).stat().st_mtime_ns for name in records}
    build_example(utterances, out, corpus)
    assert after < 11 or num_processes > 1 or kept
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    assert check_shard_set(out) == []


@pytest.mark.parametrize("num_processes", [1, 2])
def test_ctrl_c_is_one_line_and_the_builder_goes_on_afterwards(tmp_path: Path, num_processes: int):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    utterances = make_utterances(corpus, COUNT)
    build_example(utterances, tmp_path / "whole", corpus)
    with start(corpus, out, num_processes, tmp_path / "script.py") as builder:
        assert builder.stdout is not None
        assert builder.stderr is not None
        for _ in range(5):
            assert builder.stdout.readline() == "one\n"
        os.killpg(builder.pid, signal.SIGINT)
        assert builder.stderr.read() == "stopped by Ctrl-C; what was finished is kept\n"
    assert builder.returncode == -signal.SIGINT
    build_example(utterances, out, corpus)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
