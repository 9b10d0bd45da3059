"""Parcels: named tensors and a small table as bytes with their own digest, for files of one piece and for servers."""

import hashlib
import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from esper.urza.checkpoint import Checkpoint, CheckpointError
from esper.utils.documents import json_ready

TABLE = "table"

DIGITS = 64
"""Of the digest, before the rest."""


def encode(tensors: dict[str, Tensor], table: dict[str, Any]) -> bytes:
    """What ``decode`` reads.

    Args:
      tensors: name -> tensor, any device.
      table: small facts; what JSON lacks is written as ``esper.utils.documents.json_ready`` says.

    Returns:
      a sha256 in hexadecimal digits, and behind it what it is of: tensors as safetensors, the table among their
      metadata.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(held, {TABLE: json.dumps(json_ready(table))})
    return hashlib.sha256(data).hexdigest().encode() + data


def decode(data: bytes, place: str) -> Checkpoint:
    """The tensors and the table that ``encode`` was given.

    Args:
      data: its bytes.
      place: what a message calls it.

    Raises:
      CheckpointError: truncated, altered, or something else; one line.
    """
    digest, rest = data[:DIGITS], data[DIGITS:]
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise CheckpointError(f"{place}: its bytes do not match their digest; expected what esper kept there")
    try:
        size = int.from_bytes(rest[:8], "little")
        header = json.loads(rest[8 : 8 + size])
        return Checkpoint(safetensors.torch.load(rest), json.loads(header["__metadata__"][TABLE]))
    except Exception as error:  # whatever bytes of another kind make a reader say
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{place}: not readable ({reason}); expected what esper kept there") from None
