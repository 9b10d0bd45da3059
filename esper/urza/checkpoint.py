"""Checkpoints: named tensors and a small table, in a folder that is there whole or not at all, and is never changed.

The folder holds ``tensors.safetensors`` and ``manifest.json``: the table, size and sha256 of the tensors' file, and the
sha256 of all of this. Nothing on the way in can execute anything, and nothing is allocated before sizes were compared.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from esper.urza.archive import read_archive
from esper.utils.documents import json_ready
from esper.utils.files import commit_folder, read_file
from esper.utils.resilience.causes import is_want

MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"

FORMAT = 2
"""Of what is written; 1 was an NPZ archive, see ``esper.urza.archive``."""

LARGEST_MANIFEST = 1 << 26
"""Bytes that are read of one."""

LARGEST_ARCHIVE = 1 << 32
"""Bytes that are read of a checkpoint of format 1."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; one line with the file, what was found and what was expected."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    table: dict[str, Any]


def _sealed(entry: dict[str, Any]) -> bytes:
    """A manifest with its own digest: one spelling of every manifest, so that each byte of it counts."""
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    return (json.dumps(entry | {"sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def save(folder: Path, tensors: dict[str, Tensor], table: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
      folder: where; there must be nothing.
      tensors: name -> tensor, any device.
      table: small facts; what JSON lacks is written as ``esper.utils.documents.json_ready`` says.

    Raises:
      CheckpointError: something is there.
      OSError: it could not be written; nothing is there then.
    """
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    file = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = _sealed({"format": FORMAT, "table": json_ready(table), "files": {TENSORS: file}})
    try:
        commit_folder(folder, {TENSORS: data, MANIFEST: manifest})
    except FileExistsError:
        raise CheckpointError(f"checkpoint {folder}: there already; expected a new name") from None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint: a folder, or a file of format 1.

    Raises:
      CheckpointError: missing, truncated, altered, or of a newer format.
      Exception: as it is, where this process lacks memory or handles: that says nothing of the checkpoint.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        return Checkpoint(*read_archive(path, read_file(path, LARGEST_ARCHIVE)))
    except FileNotFoundError as error:
        missing = f" ({Path(error.filename).name})" if path.is_dir() else ""
        raise CheckpointError(f"checkpoint {path}: no such file{missing}") from None
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader say
        if is_want(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path}: not readable ({reason}); expected an esper checkpoint") from None


def _read_folder(folder: Path) -> Checkpoint:
    text = read_file(folder / MANIFEST, LARGEST_MANIFEST)
    entry = json.loads(text)
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int):
        raise ValueError(f"{MANIFEST} names no format")
    if entry["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {folder}: format {entry['format']}, written by a newer version; expected {FORMAT} or less"
        )
    entry.pop("sha256", None)
    if _sealed(entry) != text:
        raise ValueError(f"{MANIFEST} does not match its checksum")
    if not isinstance(entry["table"], dict):
        raise ValueError(f"{MANIFEST} holds no table")
    found = entry["files"][TENSORS]
    data = read_file(folder / TENSORS, found["bytes"])
    if len(data) != found["bytes"] or hashlib.sha256(data).hexdigest() != found["sha256"]:
        raise ValueError(f"{TENSORS} does not match its checksum")
    return Checkpoint(safetensors.torch.load(data), entry["table"])
