"""Parts of bytes side by side, each behind its length; what is read is checked before it is taken apart."""

from collections.abc import Sequence

LENGTH = 8
"""Bytes of a length, big-endian."""


def join(parts: Sequence[bytes]) -> bytes:
    """All lengths, then all parts."""
    return b"".join(len(part).to_bytes(LENGTH, "big") for part in parts) + b"".join(parts)


def split(data: bytes, largest: Sequence[int]) -> tuple[bytes, ...]:
    """What ``join`` wrote.

    Args:
      data: all of it.
      largest: bytes of each part, at most; as many parts as there are numbers.

    Raises:
      ValueError: it did not write this.
    """
    begin = LENGTH * len(largest)
    sizes = [int.from_bytes(data[LENGTH * part : LENGTH * part + LENGTH], "big") for part in range(len(largest))]
    if len(data) < begin or begin + sum(sizes) != len(data):
        raise ValueError(f"{len(data)} bytes in parts of {sizes}")
    found = list[bytes]()
    for size, most in zip(sizes, largest, strict=True):
        if size > most:
            raise ValueError(f"a part of {size} bytes, more than {most}")
        found.append(data[begin : begin + size])
        begin += size
    return tuple(found)
