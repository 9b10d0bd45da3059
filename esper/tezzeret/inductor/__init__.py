"""The compiled backend: the definition under torch.compile, in units on a CPU, as one graph elsewhere."""

import torch

from esper.kasmina.structure import Structure
from esper.tezzeret.backend import Backend, BackendError
from esper.tezzeret.inductor.compiled import require_compiler
from esper.tezzeret.inductor.graph import build_graph
from esper.tezzeret.inductor.unit_calls import build_units


def build(structure: Structure, device: torch.device) -> Backend:
    """The compiled backend of a structure. Nothing of it is compiled before it is called.

    Raises:
      BackendError: Inductor needs a C++ compiler on a CPU and there is none, or what is here does not serve; or the
        host is a ``torch.nn.Module``, whose layers would be compiled anew for every number of networks.
    """
    if any(block.one is not None for block in structure.host.blocks):
        found = f"host {structure.host.name}, a torch.nn.Module lifted over networks"
        raise BackendError(f"backend 'inductor': {found}; expected layers of many networks, or backend 'eager'")
    require_compiler(device)
    # within one graph the compiler would find what is computed twice, and keep it
    in_units = device.type == "cpu" or structure.config.recompute
    return build_units(structure) if in_units else build_graph(structure)
