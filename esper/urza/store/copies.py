"""Copies of artefacts as tiers hand them on, and as the bytes that Redis holds."""

import json
from typing import NamedTuple

from esper.urza.store.contract import Failure, id_of
from esper.urza.store.entries import Record, sealed


class Copy(NamedTuple):
    """An artefact: its row and its bytes."""

    record: Record
    data: bytes


def encode(copy: Copy) -> bytes:
    """The bytes of a copy: length of its row, its row with its seal, its data."""
    record = copy.record
    row = json.dumps([record.id, record.format, record.size, record.written, record.facts, record.seal]).encode()
    return len(row).to_bytes(8, "little") + row + copy.data


def decode(data: bytes, id: str) -> Copy | None:
    """The copy of an id; None where the bytes are anything else."""
    size = int.from_bytes(data[:8], "little")
    try:
        row = json.loads(data[8 : 8 + size])
        record = sealed(row)
    except (ValueError, TypeError, RecursionError):
        return None
    rest = data[8 + size :]
    if isinstance(record, Failure) or record.id != id or id_of(rest) != id:
        return None
    return Copy(record, rest)
