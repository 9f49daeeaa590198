"""Which packages a run was made with."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ccts_dist.redaction import redact
from ccts_dist.tracking.mlflow_client import prepare_mlflow

_PACKAGE = Path(__file__).resolve().parents[1]


def source_tags() -> dict[str, str]:
    """Program, git commit and user of this process, under the names that MLflow's pages look for.

    The commit is that of the program's repository; of an installed program that of the package, if it is a checkout.
    """
    prepare_mlflow()
    from mlflow.tracking.context.default_context import DefaultRunContext
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    has_git = shutil.which("git") is not None  # without it MLflow would warn
    contexts = [DefaultRunContext(), *([GitRunContext()] if has_git else [])]
    tags = {key: str(value) for one in contexts if one.in_context() for key, value in one.tags().items()}
    commit = _commit_of(_PACKAGE) if has_git and MLFLOW_GIT_COMMIT not in tags else ""
    return {key: redact(value) for key, value in (tags | ({MLFLOW_GIT_COMMIT: commit} if commit else {})).items()}


def _commit_of(folder: Path) -> str:
    """The commit of the repository that keeps a folder; "" where none does, or ignores it, as it does packages.

    By git itself: the library that MLflow takes leaves a process behind.
    """

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)

    try:
        not_ignored = git("check-ignore", "-q", ".").returncode == 1  # 128 outside of any repository
        return git("rev-parse", "--verify", "-q", "HEAD").stdout.strip() if not_ignored else ""
    except (OSError, subprocess.SubprocessError):
        return ""


def installed_packages() -> str:
    """Python and every installed package with its version, a line each, as pip writes them.

    Known from the names of the folders that installers leave, without opening what is in them: milliseconds.
    """
    found = set()
    for place in sys.path:
        for path in Path(place or ".").glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
            if name:
                found.add(f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}")
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *sorted(found)]) + "\n"
