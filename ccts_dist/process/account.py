"""Accounts without a name, a home, or one that can be written to: containers are often run under a bare number."""

import os
import pwd
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path


def complete_account(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give the account of this process a name and a home in the environment, where libraries would look in vain.

    A home that is there stays, also a read-only one: models may have been put into its caches.
    """
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        entry = None
    if entry is None and not any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        environ["USER"] = f"uid{os.getuid()}"
    home = environ.get("HOME") or (entry.pw_dir if entry is not None else "")
    if not home or not os.path.isdir(home):
        environ["HOME"] = str(_own_folder())


def user_cache() -> Path:
    """The folder for caches: XDG_CACHE_HOME, else ``.cache`` in the home, else a folder for temporary files."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    complete_account()
    usual = Path("~/.cache").expanduser()
    there = next((place for place in (usual, *usual.parents) if place.exists()), Path("/"))
    return usual if os.access(there, os.W_OK | os.X_OK) else _own_folder()


def _own_folder() -> Path:
    """A folder among the temporary files that nobody else can write to, the same for every process of the account."""
    folder = Path(tempfile.gettempdir(), f"ccts-dist-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="ccts-dist-"))  # another account has put it there
    return folder
