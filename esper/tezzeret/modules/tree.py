"""Modules by dotted names: what a network's tensors are, and where they lie."""

from enum import Enum
from typing import NamedTuple

from torch import Tensor, nn

SITES = "sites"
"""The submodule of a network that holds its sites, which compute nothing."""


class Role(Enum):
    """What becomes of a tensor."""

    PARAMETER = "parameter"
    FROZEN = "frozen"
    BUFFER = "buffer"


class Entry(NamedTuple):
    """A tensor of a network."""

    value: Tensor
    role: Role


def place(module: nn.Module, name: str, thing: Entry | nn.Module) -> None:
    """Put a tensor or a module at a dotted name; modules on the way are made."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(thing, nn.Module):
        module.add_module(last, thing)
    elif thing.role is Role.BUFFER:
        module.register_buffer(last, thing.value)
    else:
        module.register_parameter(last, nn.Parameter(thing.value, thing.role is Role.PARAMETER))


def entries(module: nn.Module) -> dict[str, Entry]:
    """All tensors of a module by name; one that has two names by the first."""
    roles = {True: Role.PARAMETER, False: Role.FROZEN}
    params = {name: Entry(value, roles[value.requires_grad]) for name, value in module.named_parameters()}
    return params | {name: Entry(value, Role.BUFFER) for name, value in module.named_buffers()}
