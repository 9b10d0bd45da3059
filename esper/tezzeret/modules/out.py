"""Networks that leave: what has grown in an environment, as a plain ``torch.nn.Module`` without a trace of Esper."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.kasmina.structure import Structure
from esper.leyline.state import State
from esper.tezzeret.modules.graphs import fold, own_graph
from esper.tezzeret.modules.grown import Grown
from esper.tezzeret.modules.source import load, write
from esper.tezzeret.modules.trace import trace
from esper.tezzeret.modules.tree import entries
from esper.utils import rng

SAMPLES = 3
"""Of the batch that a network is traced with; their number is left open."""


class Written(NamedTuple):
    """A network that is its own source.

    Attributes:
      module: the network.
      source: Python that defines ``Network``, of which the module is one; it imports torch alone.
    """

    module: nn.Module
    source: str


class Export(NamedTuple):
    """An environment's network.

    Attributes:
      whole: trains and infers.
      folded: infers alone; every batch norm that could become a part of the layer before it has.
      norms: how many have.
      example: inputs [B, *input_shape] that it takes.
    """

    whole: Written
    folded: Written
    norms: int
    example: Tensor


def network_of(structure: Structure, state: State, env: int) -> nn.Module:
    """One environment's network; see ``esper.engine.Engine.network_of``."""
    return export(structure, state, env).whole.module


def export(structure: Structure, state: State, env: int) -> Export:
    """One environment's network, whole and folded.

    Args:
      structure: what the networks are.
      state: [E].
      env: which, 0 <= env < E.

    Raises:
      ConfigError: a block or a seed that draws random numbers in its own way, or does what no graph can say.
      IndexError: no such environment.
    """
    count = state.key.shape[0]
    if not 0 <= env < count:
        raise IndexError(f"network_of: env = {env}: expected 0 to {count - 1}")
    host, grown = structure.host, Grown(structure, state, env)
    example = example_of(structure, state)
    graphs, tensors = {}, entries(grown)
    for form, is_training in (("trained", True), ("inferred", False)):
        traced = trace(f"network_of: {host.name}", grown.train(is_training), example)
        graphs[form], constants = own_graph(traced, form)
        tensors |= constants
    read = {str(node.target) for graph in graphs.values() for node in graph.nodes if node.op == "get_attr"}
    tensors = {name: entry for name, entry in tensors.items() if name in read}
    title = f"{host.name}, grown: takes {list(host.input_shape)}, gives {host.num_outputs} outputs."
    whole = write(title, graphs, tensors)
    graph, fewer, norms = fold(graphs["inferred"], tensors)
    small = write(f"{title[:-1]}; in inference alone.", {"inferred": graph}, fewer)
    return Export(Written(load(whole, tensors), whole), Written(load(small, fewer).eval(), small), norms, example)


def example_of(structure: Structure, state: State) -> Tensor:
    """A batch that the hosts take."""
    host, params = structure.host, state.host.params
    shape = (SAMPLES, *host.input_shape)
    if host.takes_tokens:
        return (rng.uniform(rng.key(0), shape) * host.num_outputs).to(params.device, torch.int64)
    return rng.normal(rng.key(0), shape, params.dtype).to(params.device)
