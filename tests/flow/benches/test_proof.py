"""``make proof`` at a small size, on a repository of its own: a comment changes nothing, a constant is found."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes.launching import ROOT, environment, hear_interrupts

pytestmark = pytest.mark.long

COPIED = ("ccts_dist", "launch", "shards", "ds_configs", "tests")
SMALL = ("--only", "text", "--steps", "3", "--utterances", "120")


def git(repository: Path, *command: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *command], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one commit with the code as it is here."""
    folder = tmp_path_factory.mktemp("proof") / "repository"
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", folder)
    git(folder.parent, "init", "--quiet", str(folder))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it is")
    return folder


def changed(repository: Path, path: str, old: str, new: str) -> None:
    """Commit a replacement on top of the first commit."""
    git(repository, "checkout", "--quiet", "--detach", git(repository, "rev-list", "--max-parents=0", "HEAD"))
    text = (repository / path).read_text(encoding="utf-8")
    assert old in text, "what is to be changed is there"
    (repository / path).write_text(text.replace(old, new), encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message", "changed")


def proof(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), capture_output=True, text=True, timeout=1200, check=False, **at(repository)
    )


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tests.proof", *options]


def at(repository: Path) -> dict:
    own = {"PYTHONPATH": str(repository), "XDG_CACHE_HOME": str(repository.parent / "cache")}
    return {"cwd": repository, "env": environment(own)}


def check_nothing_is_left(repository: Path) -> None:
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert git(repository, "status", "--porcelain") == ""


def test_comment_changes_nothing(repository: Path):
    changed(repository, "ccts_dist/losses/ccc.py", "import torch\n", "# A comment.\nimport torch\n")
    done = proof(repository, "HEAD~1", *SMALL)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "equal"), done.stdout + done.stderr
    assert "text: 3 steps and weights equal" in done.stdout
    assert "time per step: " in done.stdout
    check_nothing_is_left(repository)


def test_constant_is_found_with_run_step_figure_and_both_values(repository: Path):
    changed(repository, "ccts_dist/losses/ccc.py", "(mean_p - mean_y) ** 2 + eps", "(mean_p - mean_y) ** 2 + 2 * eps")
    done = proof(repository, "HEAD~1", *SMALL)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("different: run text, step 1, train/loss: "), last
    assert " at BASE, " in last
    check_nothing_is_left(repository)


def test_ctrl_c_leaves_neither_processes_nor_a_checkout(repository: Path):
    with subprocess.Popen(
        command("HEAD", *SMALL), stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts, **at(repository)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("BASE is ")
        assert len(git(repository, "worktree", "list").splitlines()) == 2
        time.sleep(1)  # a build or a training is under way
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    check_nothing_is_left(repository)


def test_unknown_revision_is_one_line(repository: Path):
    done = proof(repository, "no-such-revision")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "proof: 'no-such-revision' is no revision here (unknown to git). Name a commit.\n"
