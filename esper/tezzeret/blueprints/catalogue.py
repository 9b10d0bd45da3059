"""The documents that are shipped: every blueprint of the presets, and those of its kind."""

from functools import cache
from pathlib import Path

from esper.tezzeret.blueprints.document import Document
from esper.tezzeret.blueprints.reading import parse
from esper.tezzeret.blueprints.refusals import DocumentError

FOLDER = Path(__file__).parent / "shipped"


def names() -> tuple[str, ...]:
    """Of all, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def shipped_bytes(name: str) -> bytes:
    """A document as it is shipped.

    Raises:
      DocumentError: there is none of this name.
    """
    if name not in names():
        raise DocumentError("esper blueprint", "parse", "", f"name {name!r}", ", ".join(names()))
    return (FOLDER / f"{name}.json").read_bytes()


@cache
def _parsed(name: str) -> Document:
    return parse(shipped_bytes(name), f"{name}.json")


def shipped() -> dict[str, Document]:
    """All, by the names of their files: those of blueprints, behind their kind of site where two have one name."""
    return {name: _parsed(name) for name in names()}
