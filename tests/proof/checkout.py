"""Two revisions side by side: the code of each, and a folder where its commands find the demo's relative paths."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.processes.launching import ROOT, environment, inner_launcher
from tests.proof.compare import ProofError

_LINKED = ("launch", "shards", "ds_configs")
"""What the commands and run files of a revision name relative to the folder they are started in."""

_POLL_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The code of one revision."""

    name: str
    """"BASE" or "HEAD"."""

    tree: Path
    """Its files."""

    folder: Path
    """Where its commands are run: links to the tree, and what the commands make."""

    spellings: dict[str, int] = field(default_factory=dict)
    """Which of several names of a run-file key this revision knows; filled by ``runs.train``."""

    def python(self, *command: str) -> str:
        """What a Python command prints.

        Raises:
            ProofError: it failed; with the end of its output.
        """
        code, printed, _ = self.start([sys.executable, *command])
        if code != 0:
            raise ProofError(f"{self.name}: {' '.join(command)} ended with exit code {code}:\n{printed[-4000:]}")
        return printed

    def launch(self, num_ranks: int, *command: str, history: Path | None = None) -> tuple[int, str, list[float]]:
        """Exit code and output of a script under the DeepSpeed launcher, and when each line of ``history`` came."""
        return self.start([*inner_launcher(num_ranks), *command], history=history)

    def start(self, command: Sequence[str], *, history: Path | None = None) -> tuple[int, str, list[float]]:
        """Run a command to its end, with the code of this revision; nothing of it is left after an exception."""
        log = self.folder / "log.txt"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment({"PYTHONPATH": str(self.tree)}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                moments = _watch(process, history)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        return code, log.read_text(encoding="utf-8", errors="replace"), moments

    def check_imported(self) -> None:
        """Refuse to go on when another tree's library would be imported.

        Raises:
            ProofError: as with an installation that comes before PYTHONPATH.
        """
        found = Path(self.python("-c", "import ccts_dist; print(ccts_dist.__file__)").splitlines()[-1])
        if not found.is_relative_to(self.tree):
            raise ProofError(f"{self.name}: {found} is imported, must be below {self.tree}. Remove that installation.")


@contextmanager
def checkouts(revision: str) -> Iterator[tuple[Checkout, Checkout]]:
    """BASE in a folder of its own, and the working tree; the folder is removed at the end, whatever happens.

    Raises:
        ProofError: git knows no such revision.
    """
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", what=revision)
    with tempfile.TemporaryDirectory(prefix="ccts-proof-") as scratch:
        tree = Path(scratch).resolve() / "tree"
        try:
            git("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit, what=revision)
            pair = [_made(name, at, tree.with_name(name)) for name, at in (("BASE", tree), ("HEAD", ROOT))]
            for checkout in pair:
                checkout.check_imported()
            yield pair[0], pair[1]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, capture_output=True)


def git(*command: str, what: str) -> str:
    """What git prints of this repository.

    Raises:
        ProofError: it failed, or is not there.
    """
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ProofError("git is missing, and BASE is taken from it. Install git.") from error
    if done.returncode != 0:
        raise ProofError(f"{what!r} is no revision here ({done.stderr.strip() or 'unknown to git'}). Name a commit.")
    return done.stdout.strip()


def _made(name: str, tree: Path, folder: Path) -> Checkout:
    folder.mkdir()
    for linked in _LINKED:
        (folder / linked).symlink_to(tree / linked)
    return Checkout(name=name, tree=tree, folder=folder)


def _watch(process: subprocess.Popen[bytes], history: Path | None) -> list[float]:
    """When each line of the file came; waits for the process to end."""
    if history is None:
        process.wait()
        return []
    moments: list[float] = []
    size = 0
    while process.poll() is None:
        with suppress(FileNotFoundError):
            if history.stat().st_size != size:
                now, data = time.monotonic(), history.read_bytes()
                size = len(data)
                moments += [now] * (data.count(b"\n") - len(moments))
        time.sleep(_POLL_S)
    return moments
