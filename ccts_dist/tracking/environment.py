"""Which packages a run was made with."""

import platform
import re
import shutil
import sys
from pathlib import Path

from ccts_dist.redaction import redact
from ccts_dist.tracking.mlflow_client import prepare_mlflow


def source_tags() -> dict[str, str]:
    """Program, git commit and user of this process, under the names that MLflow's pages look for."""
    prepare_mlflow()
    from mlflow.tracking.context.default_context import DefaultRunContext
    from mlflow.tracking.context.git_context import GitRunContext

    # Without git on the machine MLflow would warn.
    contexts = [DefaultRunContext(), *([GitRunContext()] if shutil.which("git") else [])]
    return {key: redact(str(value)) for one in contexts if one.in_context() for key, value in one.tags().items()}


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
