"""Environments for peers that this project's does not hold: next to it, never in it."""

import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What every environment takes from this project's, so that all systems run on the same torch.
_SHARED = ("torch", "torchaudio")


class NotInstalledError(Exception):
    """Why a peer is not in the table."""


def python_of(folder: Path, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment with ``requirements`` over this project's packages; made if it is not there.

    Raises:
        NotInstalledError: there is no uv, or it could not install them.
    """
    if not requirements:
        return Path(sys.executable)
    python, ready = folder / "bin" / "python", folder / "ready.txt"
    wanted = "\n".join([*requirements, site.getsitepackages()[0]])
    if ready.exists() and ready.read_text() == wanted:
        return python
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise NotInstalledError("no uv here to make its environment with (pip install uv)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    # Read after the environment's own packages, which therefore win.
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_project.pth").write_text(site.getsitepackages()[0] + "\n")
    (folder / "overrides.txt").write_text("".join(f"{name}; python_version < '0'\n" for name in _SHARED))
    options = ["--quiet", "--python", str(python), "--overrides", str(folder / "overrides.txt"), "--system-certs"]
    _run([uv, "pip", "install", *options, *requirements])
    ready.write_text(wanted)
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotInstalledError((done.stderr.strip().splitlines() or ["no reason given"])[-1].strip())
