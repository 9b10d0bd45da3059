"""A series of checkpoints, numbered: the newest that can be read counts, and old ones are removed.

A number that was written is never written again, so what is read cannot change under its reader.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from esper.urza.checkpoint import Checkpoint, CheckpointError, load
from esper.utils.files import remove_folder

NAME = re.compile(r"round-(\d{6,})")


def member(folder: Path, number: int) -> Path:
    """Where the checkpoint of a number lies."""
    return folder / f"round-{number:06d}"


def numbers(folder: Path) -> list[int]:
    """The numbers that there are, in order."""
    names = (NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(found[1]) for found in names if found is not None)


def newest(folder: Path, warn: Callable[[str], object]) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read; None where there is none at all.

    Args:
      folder: of the series.
      warn: takes a line for each newer one that is passed over, with the reason.

    Raises:
      CheckpointError: there are some, and none can be read.
    """
    found, first = numbers(folder), CheckpointError("")
    for number in reversed(found):
        path = member(folder, number)
        try:
            return path, load(path)
        except CheckpointError as error:
            first = first if str(first) else error
            warn(f"{error}; an older one is taken")
    if found:
        raise first
    return None


def prune(folder: Path, keep: int, needed: Collection[int] = ()) -> None:
    """Remove all but the newest ``keep`` and those that are needed."""
    for number in numbers(folder)[:-keep]:
        if number not in needed:
            remove_folder(member(folder, number))


def take_back(folder: Path, number: int) -> None:
    """Remove those beyond a number: they could not be read, or lie ahead of where a run goes on."""
    for later in reversed(numbers(folder)):
        if later > number:
            remove_folder(member(folder, later))
