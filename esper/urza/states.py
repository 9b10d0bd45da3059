"""States on the disk: any ``State`` saved and loaded to the bit, to be stepped on with."""

from pathlib import Path
from typing import Any

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.actions import NONE
from esper.leyline.state import State, lock
from esper.urza import checkpoint
from esper.urza.checkpoint import CheckpointError

KIND = "state"

LATER = {"slots.target": ("slots.alpha", float(NONE))}
"""Fields that states of older versions do not have: of what shape and type they are, and what they hold then."""


OPTIONAL = ("decisions",)
"""Fields that a state has only where its structure asks for them."""


def save_state(path: Path | str, state: State) -> None:
    """Write a state, every environment of it.

    Args:
      path: where; there must be nothing. It becomes a folder, whole or not at all.
      state: from ``engine.init`` or ``engine.step``, on any device.

    Raises:
      CheckpointError: something is there, or it is no state.
      OSError: it could not be written; nothing is there then.
    """
    if not isinstance(state, State):
        raise CheckpointError(f"checkpoint {path}: got {type(state).__name__}; expected a State")
    checkpoint.save(Path(path), tensors_of(state), {"kind": KIND, "batch": batches_of(state)})


def load_state(path: Path | str, device: torch.device | str = "cpu") -> State:
    """Read a state.

    Args:
      path: what ``save_state`` made.
      device: where its tensors shall be.

    Returns:
      the state, locked. Law: an engine as the one it came from steps on with the same bits.

    Raises:
      CheckpointError: missing, altered, or something else; one line.
    """
    loaded = checkpoint.load(Path(path))
    if loaded.table.get("kind") != KIND:
        raise CheckpointError(f"checkpoint {path}: holds {', '.join(loaded.table)}; expected a state")
    tensors = {name: value.to(device) for name, value in loaded.tensors.items()}
    try:
        return state_of(tensors, loaded.table["batch"])
    except KeyError as error:
        raise CheckpointError(f"checkpoint {path}: a state {error.args[0]}, of another version") from None


def tensors_of(state: State) -> dict[str, Tensor]:
    """The tensors of a state by place, with dots between."""
    return _tensors(state, "")


def batches_of(state: State) -> dict[str, list[int]]:
    """Batch sizes of a state and of all its parts by place."""
    return _batches(state, "")


def state_of(tensors: dict[str, Tensor], batches: dict[str, list[int]]) -> State:
    """A state, locked, from what ``tensors_of`` and ``batches_of`` gave.

    Raises:
      KeyError: "without ..." a field that there should be, or "with ..." one that there should not be.
    """
    left = dict(tensors)
    for name, (like, value) in LATER.items():
        if name not in left and like in left:
            left[name] = torch.full_like(left[like], value)
    try:
        state: State = _built(State, left, "", batches)
    except KeyError as error:
        raise KeyError(f"without {error.args[0]}") from None
    if left:
        raise KeyError(f"with {min(left)}")
    return lock(state)


def _parts(kind: type[Any]) -> dict[str, type[Any]]:
    """The fields of a class that are trees themselves."""
    fields = kind.__annotations__.items()
    return {name: part for name, part in fields if isinstance(part, type) and issubclass(part, TypedTensorDict)}


def _tensors(tree: Any, place: str) -> dict[str, Tensor]:
    """The tensors of a tree and of all its parts by place."""
    found: dict[str, Tensor] = {}
    nested = _parts(type(tree))
    for name in type(tree).__annotations__:
        inside = f"{place}.{name}".strip(".")
        if name in OPTIONAL and tree.get(name, None) is None:
            continue
        found |= _tensors(tree.get(name), inside) if name in nested else {inside: tree.get(name)}
    return found


def _batches(tree: Any, place: str) -> dict[str, list[int]]:
    """Batch sizes of a tree and of all its parts by place."""
    found = {place: list(tree.batch_size)}
    for name in _parts(type(tree)):
        found |= _batches(tree.get(name), f"{place}.{name}".strip("."))
    return found


def _built(kind: type[Any], tensors: dict[str, Tensor], place: str, batches: dict[str, list[int]]) -> Any:
    """A tree of the fields that its class names, each taken out of ``tensors``."""
    parts, nested = {}, _parts(kind)
    for name in kind.__annotations__:
        inside = f"{place}.{name}".strip(".")
        if name in OPTIONAL and inside not in tensors:
            continue
        parts[name] = _built(nested[name], tensors, inside, batches) if name in nested else tensors.pop(inside)
    return kind(**parts, batch_size=batches[place])
