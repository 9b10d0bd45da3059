"""Paths as people write them, and folders that can be written to."""

import os
import re
import stat
import tempfile
from pathlib import Path

LONGEST = 100
"""Characters of a name that is made of something else."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path in which ``~`` and ``~name`` at the beginning mean a home folder, where there is one."""
    return Path(os.path.expanduser(text))


def folder_name(text: str) -> str:
    """A text as the name of one folder: letters, digits and ``._,-``, never a way out of where it is made."""
    words = re.sub(r"[^A-Za-z0-9._,]+", "-", text)
    return re.sub(r"(^|-)[.,-]+", r"\1", words).strip("-.,")[-LONGEST:].lstrip("-.,") or "run"


def cache_folder(name: str) -> Path:
    """A folder for what can be made again, writable by this user: made if it is not there.

    It lies in ``esper``, which nobody else can write into, under ``XDG_CACHE_HOME``, else under ``~/.cache``; where
    there is no home or nothing can be written into it, in a folder of this user's under that for temporary files.

    Args:
      name: of the folder.

    Raises:
      OSError: nothing can be written anywhere.
    """
    named, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    roots = [Path(named)] if named and os.path.isabs(named) else [] if home == "~" else [Path(home) / ".cache"]
    for root in roots:
        folder = root / "esper" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK) and _made_private(folder.parent):
            return folder
    folder = _own_temporary_folder() / name
    folder.mkdir(exist_ok=True)
    return folder


def _made_private(folder: Path) -> bool:
    """Whether a folder is this user's, closed to others by now if it was not: what lies in it is executed."""
    if not hasattr(os, "geteuid"):
        return True
    facts = folder.stat()
    if facts.st_uid != os.geteuid():
        return False
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(stat.S_IMODE(facts.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    return True


def _own_temporary_folder() -> Path:
    """A folder that no other user can write into; libraries are loaded from it."""
    user = getattr(os, "getuid", lambda: "user")()
    folder = Path(tempfile.gettempdir()) / f"esper-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return Path(tempfile.mkdtemp(prefix="esper-"))
    facts = folder.lstat()
    private = not hasattr(os, "getuid") or (facts.st_uid == user and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return folder if private and not folder.is_symlink() else Path(tempfile.mkdtemp(prefix="esper-"))
