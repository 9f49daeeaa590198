"""Which packages a run was made with."""

import platform
import re
import sys
from pathlib import Path


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
