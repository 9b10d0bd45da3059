"""Text: any UTF-8 file."""

import os
from pathlib import Path

from esper.tolaria.formats.files import as_path, broken, opened, read_up_to

MIN_CHARACTERS = 2
"""The shortest text in which one character follows another."""

MAX_BYTES = 2**28
"""The longest text: 256 MiB, 2 GiB as int64 tokens of a character each."""


def text(path: str | os.PathLike[str]) -> str:
    r"""Read a text.

    A byte order mark at the beginning is dropped; a line's end is ``\n``, whichever of ``\r\n``, ``\r`` and
    ``\n`` the file has. Nothing else is changed: no Unicode normalisation, no stripping.

    Args:
      path: a file of UTF-8.

    Returns:
      At least ``MIN_CHARACTERS`` characters, none of them NUL.

    Raises:
      DatasetError: the file is missing, unreadable, empty, too large (``MAX_BYTES``), not UTF-8 (names the offset
        of the first wrong byte), contains NUL, or is too short.
    """
    return read_text(as_path(path))


def read_text(path: Path) -> str:
    """As ``text``, for a path that exists."""
    with opened(path, MAX_BYTES) as (file, size):
        data = read_up_to(file, size)
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"0x{data[error.start]:02X} ({error.reason})"
        raise broken(path, f"byte {error.start}", found, "UTF-8") from None
    if "\0" in content:
        raise broken(path, f"byte {data.index(0)}", "NUL (0x00)", "text without NUL")
    content = content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if len(content) < MIN_CHARACTERS:
        raise broken(path, "text", f"{len(content)} characters", f"at least {MIN_CHARACTERS}")
    return content
