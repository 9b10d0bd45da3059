"""A network as Python source that needs nothing but torch, and the module that this source makes."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from esper.tezzeret.modules.graphs import Tensors, sites_of
from esper.tezzeret.modules.tree import SITES, Role

BEGINNING = '''"""{title}"""

import torch
{imports}
PARAMETERS = {parameters}
"""Trained tensors: name -> shape and dtype."""

FROZEN = {frozen}
"""Parameters that do not learn."""

BUFFERS = {buffers}
"""Running statistics and constants."""

SITES = {sites}
"""Places where something could be inserted; they compute nothing."""


class Site(torch.nn.Module):
    """The features as they are."""

    def forward(self, x):
        return x.view_as(x)


def place(module, name, thing):
    """Put a parameter, a buffer or a module at a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, torch.nn.Module())
        module = module.get_submodule(part)
    if isinstance(thing, torch.nn.Module):
        module.add_module(last, thing)
    elif isinstance(thing, torch.nn.Parameter):
        module.register_parameter(last, thing)
    else:
        module.register_buffer(last, thing)


class Network(torch.nn.Module):
    """{title}"""

    def __init__(self):
        super().__init__()
        for table, learns in ((PARAMETERS, True), (FROZEN, False)):
            for name, (shape, dtype) in table.items():
                place(self, name, torch.nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=learns))
        for name, (shape, dtype) in BUFFERS.items():
            place(self, name, torch.zeros(shape, dtype=dtype))
        for name in SITES:
            place(self, "{sites_name}." + name, Site())

    def forward(self, x):
        return {dispatch}
'''

FORMS = {"trained": "self._trained(x)", "inferred": "self._inferred(x)"}
"""Names of the forms that a network may have, and their calls."""


def write(title: str, graphs: Mapping[str, Graph], tensors: Tensors) -> str:
    """The source of a network.

    Args:
      title: a line on it.
      graphs: by form: "trained" and "inferred", or the latter alone.
      tensors: all that they read.
    """
    bodies, imports = [], dict[str, str]()
    for form, graph in graphs.items():
        code = graph.python_code("self")
        bodies.append(re.sub(r"def forward\(", f"def _{form}(", code.src.strip("\n"), count=1))
        used = set(re.findall(r"\w+", code.src)) - {"torch"}
        imports |= {name: _import(name, thing) for name, thing in code.globals.items() if name in used}
    both = len(graphs) > 1
    tables = {role: {name: e for name, e in tensors.items() if e.role is role} for role in Role}
    text = BEGINNING.format(
        title=title,
        imports="".join(f"{line}\n" for line in sorted(set(imports.values()))),
        parameters=_table(tables[Role.PARAMETER]),
        frozen=_table(tables[Role.FROZEN]),
        buffers=_table(tables[Role.BUFFER]),
        sites=tuple(sites_of(graphs.values())),
        sites_name=SITES,
        dispatch=f"{FORMS['trained']} if self.training else {FORMS['inferred']}" if both else FORMS["inferred"],
    )
    return text + "".join(f"\n{textwrap.indent(body, '    ')}\n" for body in bodies)


def _table(tensors: Tensors) -> str:
    rows = [f"    {name!r}: ({tuple(e.value.shape)}, {e.value.dtype}),\n" for name, e in tensors.items()]
    return "{\n" + "".join(rows) + "}"


def _import(name: str, thing: Any) -> str:
    """The line that makes a name of generated code known."""
    known = {"inf": "from math import inf", "nan": "from math import nan", "device": "from torch import device"}
    if name in known:
        return known[name]
    if isinstance(thing, type(torch)):
        return f"import {thing.__name__}" + ("" if thing.__name__ == name else f" as {name}")
    return f"from {thing.__module__} import {thing.__qualname__}" + (
        "" if thing.__qualname__ == name else f" as {name}"
    )


def load(source: str, tensors: Tensors) -> nn.Module:
    """The module that a source makes, with its tensors."""
    space: dict[str, Any] = {"__name__": "network"}
    exec(compile(source, "<network>", "exec"), space)
    device = next(iter(tensors.values())).value.device
    network: nn.Module = space["Network"]().to(device)
    network.load_state_dict({name: entry.value for name, entry in tensors.items()})
    return network
