"""A series of checkpoints, each of a moment: the newest that can be read counts, and old ones are removed.

A moment that was written is never written again, so what is read cannot change under its reader.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from esper.urza.checkpoint import Checkpoint, CheckpointError, load
from esper.utils.files import remove_folder

NAME = re.compile(r"round-([0-9]{6,})(?:-step-([0-9]{4,}))?")


class Moment(NamedTuple):
    """When: so many rounds done, and so many decisions of the next one."""

    rounds: int
    steps: int = 0


def member(folder: Path, moment: Moment) -> Path:
    """Where the checkpoint of a moment lies."""
    inside = f"-step-{moment.steps:04d}" if moment.steps else ""
    return folder / f"round-{moment.rounds:06d}{inside}"


def moments(folder: Path) -> list[Moment]:
    """Those that there are, in order."""
    names = (NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(Moment(int(found[1]), int(found[2] or 0)) for found in names if found is not None)


def newest(
    folder: Path,
    warn: Callable[[str], object],
    check: Callable[[Moment, Checkpoint], object] = lambda moment, loaded: None,
) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read; None where there is none at all.

    Args:
      folder: of the series.
      warn: takes a line for each newer one that is passed over, with the reason.
      check: raises ``CheckpointError`` for one that is not of its moment, or of another kind.

    Raises:
      CheckpointError: there are some, and none can be read.
    """
    found, first = moments(folder), CheckpointError("")
    for moment in reversed(found):
        path = member(folder, moment)
        try:
            loaded = load(path)
            check(moment, loaded)
            return path, loaded
        except CheckpointError as error:
            first = first if str(first) else error
            warn(f"{error}; an older one is taken")
    if found:
        raise first
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep``."""
    for moment in moments(folder)[:-keep]:
        remove_folder(member(folder, moment))


def take_back(folder: Path, moment: Moment) -> None:
    """Remove those beyond a moment: they could not be read, or lie ahead of where a run goes on."""
    for later in reversed(moments(folder)):
        if later > moment:
            remove_folder(member(folder, later))
