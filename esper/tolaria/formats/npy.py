r"""One array of the NPY format, read from an untrusted stream: nothing is evaluated, unpickled or allocated ahead.

Source: NumPy's description of the format (NEP 1 and ``numpy.lib.format``): the magic string ``\x93NUMPY``, a major and
a minor version, the header's length (little-endian, 16 bits in version 1, 32 bits after it), and the header, a Python
dictionary with ``descr``, ``fortran_order`` and ``shape``, padded with blanks; then the elements.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper.tolaria.formats.files import MAX_BYTES, Readable, broken, read_up_to

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Bytes of the longest header; NumPy's own limit."""

MAX_RANK = 8
DTYPES = ("f2", "f4", "f8", "u1", "u2", "u4", "i1", "i2", "i4", "i8")
"""Elements that are read, in either byte order."""

_ENTRY = re.compile(r"\s*'(descr|fortran_order|shape)'\s*:\s*('[^']*'|True|False|\([0-9,\s]*\))\s*(,\s*|$)")


class Header(NamedTuple):
    """What the header of an array says; ``size`` counts its own bytes."""

    dtype: np.dtype
    fortran_order: bool
    shape: tuple[int, ...]
    size: int


def read_npy(path: Path, place: str, stream: Readable, size: int) -> np.ndarray:
    """Read an array that with its header takes ``size`` bytes of the stream.

    Args:
      path, place: what errors name.
      stream: the array's file.
      size: its length as its container declares it.

    Returns:
      A C-ordered writable array in the machine's byte order, of a dtype of ``DTYPES``.

    Raises:
      DatasetError: not the NPY format; an element type that is not read (objects among them); an empty axis; more
        than ``MAX_BYTES``; a header that asks for more or fewer bytes than ``size``; a stream that ends early.
    """
    header = read_header(path, place, stream)
    wanted = math.prod(header.shape) * header.dtype.itemsize
    says = f"{header.size + wanted} bytes, as its header with shape {header.shape} of {header.dtype} says"
    if wanted > MAX_BYTES:
        raise broken(path, place, says, f"at most {MAX_BYTES} bytes")
    if size != header.size + wanted:
        raise broken(path, place, f"{size} bytes", says)
    data = read_up_to(stream, wanted)
    if len(data) < wanted:
        raise broken(path, place, "its end", says)
    if stream.read(1):
        raise broken(path, place, f"more than {size} bytes", says)
    array = np.frombuffer(data, dtype=header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
    return np.ascontiguousarray(array.astype(header.dtype.newbyteorder("="), copy=False)).reshape(header.shape)


def read_header(path: Path, place: str, stream: Readable) -> Header:
    """Read the magic string, version and header."""
    start = read_up_to(stream, len(MAGIC) + 2)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 2:
        raise broken(path, place, f"0x{start.hex().upper()} at its beginning", f"0x{MAGIC.hex().upper()} (NPY)")
    if start[-2] not in (1, 2, 3):
        raise broken(path, place, f"NPY version {start[-2]}", "1, 2 or 3")
    width = 2 if start[-2] == 1 else 4
    field = read_up_to(stream, width)
    length = int.from_bytes(field, "little")
    if len(field) < width or length > MAX_HEADER:
        raise broken(path, place, f"a header of {length} bytes", f"at most {MAX_HEADER}")
    content = read_up_to(stream, length)
    if len(content) < length:
        raise broken(path, place, f"{len(content)} bytes of header", f"{length}")
    size = len(start) + width + length
    return _parse(path, place, content.decode("latin-1"), size)


def _parse(path: Path, place: str, text: str, size: int) -> Header:
    """The fields of a header's dictionary."""
    fields = dict(_entries(text))
    descr, shape = fields.get("descr", "").strip("'"), fields.get("shape", "")
    if len(fields) != 3 or not shape.startswith("(") or fields["fortran_order"] not in ("True", "False"):
        expected = "a dictionary of descr, fortran_order and shape"
        raise broken(path, place, f"the header {text[:120].strip()!r}", expected)
    if descr.removeprefix(descr[:1] if descr[:1] in "<>|=" else "") not in DTYPES:
        objects = " (Python objects, which are never read)" if descr.endswith("O") else ""
        raise broken(path, place, f"elements {descr[:40]!r}{objects}", f"one of {', '.join(DTYPES)}")
    sizes = [word.strip() for word in shape[1:-1].split(",") if word.strip()]
    if len(sizes) > MAX_RANK or any(not word.isdigit() or len(word) > 19 or int(word) == 0 for word in sizes):
        raise broken(path, place, f"shape {shape[:120]}", f"at most {MAX_RANK} sizes from 1 to 10**19 - 1")
    return Header(np.dtype(descr), fields["fortran_order"] == "True", tuple(map(int, sizes)), size)


def _entries(text: str) -> list[tuple[str, str]]:
    """Keys and values of the dictionary ``{...}``; none if it holds anything else."""
    inside = text.strip()
    if not (inside.startswith("{") and inside.endswith("}")):
        return []
    inside, entries, place = inside[1:-1].strip(), [], 0
    while place < len(inside):
        match = _ENTRY.match(inside, place)
        if match is None:
            return []
        entries.append((match[1], match[2]))
        place = match.end()
    return entries
