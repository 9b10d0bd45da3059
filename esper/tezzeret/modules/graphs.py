"""Graphs of a network, made ready to be written down: what stands in two forms, and what folds into what."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from esper.tezzeret.modules.cuts import module_paths
from esper.tezzeret.modules.lone_axis import without_lone_axes
from esper.tezzeret.modules.trace import Traced, is_tensor, operation, writes
from esper.tezzeret.modules.tree import SITES, Entry, Role

ATEN = torch.ops.aten
Tensors = dict[str, Entry]


def own_graph(traced: Traced, form: str) -> tuple[Graph, Tensors]:
    """A traced module as a graph that reads its tensors by name, and the constants that it brought.

    Args:
      traced: the module.
      form: of it; constants are named after it.
    """
    constants = {name: f"constants.{form}{number}" for number, name in enumerate(traced.constants)}
    graph = Graph()
    nodes: dict[Node, Node] = {traced.inputs: graph.placeholder("x")}
    for node, name in traced.names.items():
        if node.users:
            nodes[node] = graph.get_attr(constants.get(name, name))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            nodes[node] = graph.node_copy(node, lambda before: nodes[before])
    graph.output(nodes[traced.output])
    graph = without_lone_axes(graph)
    for node in _calls(graph):
        _mark_site(graph, node)
    tidy(graph)
    values = {constants[name]: Entry(value, Role.BUFFER) for name, value in traced.constants.items()}
    return graph, values


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def _mark_site(graph: Graph, node: Node) -> None:
    """Let what a site computes, which is nothing, be the site again."""
    path = next((path for path in module_paths(node) if path.startswith(f"{SITES}.")), None)
    if path is None or not is_tensor(node):
        return
    with graph.inserting_before(node):
        site = graph.call_module(path, (node.args[0],))
    site.meta = dict(node.meta)
    node.replace_all_uses_with(site)
    graph.erase_node(node)


def tidy(graph: Graph) -> None:
    """Take out what only adds an axis of one network and takes it away, and what nothing depends on."""
    for node in _calls(graph):
        before = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if before is None or operation(node) != "select" or tuple(node.args[1:]) != (0, 0):
            continue
        if operation(before) == "unsqueeze" and before.args[1] == 0:
            node.replace_all_uses_with(before.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        idle = not node.users and node.op in ("call_function", "call_module", "get_attr")
        if idle and not (node.op == "call_function" and writes(node)):
            graph.erase_node(node)


def fold(graph: Graph, tensors: Tensors) -> tuple[Graph, Tensors, int]:
    """Let every batch norm that follows a convolution or a linear layer of its own be a part of it.

    Args:
      graph: in inference.
      tensors: that it reads.

    Returns:
      another graph, its tensors, and how many norms were folded. A norm stays where the layer's result or its weights
      are used elsewhere, or where it has no running statistics.
    """
    folded, values, count = Graph(), dict(tensors), 0
    nodes: dict[Node, Node] = {}
    result = folded.graph_copy(graph, nodes)
    folded.output(result)
    for node in _calls(folded):
        layer = _layer_before(node)
        if layer is None:
            continue
        scaled = _scaled(node, layer, values)
        names = [f"{layer.args[1].target!s}_folded", f"{layer.args[1].target!s}_folded_bias"]  # type: ignore
        values |= {name: Entry(value, Role.FROZEN) for name, value in zip(names, scaled, strict=True)}
        with folded.inserting_before(layer):
            weight, bias = (folded.get_attr(name) for name in names)
        layer.args = (layer.args[0], weight, bias, *layer.args[3:])
        node.replace_all_uses_with(layer)
        folded.erase_node(node)
        count += 1
    tidy(folded)
    read = {str(node.target) for node in folded.nodes if node.op == "get_attr"}
    return folded, {name: entry for name, entry in values.items() if name in read}, count


def _layer_before(node: Node) -> Node | None:
    """The layer that a norm can become a part of."""
    if operation(node) != "batch_norm" or node.args[5] or not isinstance(node.args[0], Node):
        return None
    layer, statistics = node.args[0], node.args[1:5]
    if operation(layer) not in ("conv2d", "linear") or len(layer.users) != 1:
        return None
    if not all(isinstance(each, Node) and each.op == "get_attr" for each in (*statistics, layer.args[1])):
        return None
    return layer if _uses_of(layer.graph, layer.args[1]) == 1 else None  # type: ignore[arg-type]


def _uses_of(graph: Graph, weight: Node) -> int:
    named = [node for node in graph.nodes if node.op == "get_attr" and node.target == weight.target]
    return sum(len(node.users) for node in named)


def _scaled(norm: Node, layer: Node, values: Tensors) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer and the norm behind it."""

    def value(node: Any) -> Tensor:
        return values[str(node.target)].value.detach()

    epsilon: Any = norm.args[7]
    gain, shift, mean, variance = (value(each) for each in norm.args[1:5])
    weight = value(layer.args[1])
    bias = value(layer.args[2]) if len(layer.args) > 2 and layer.args[2] is not None else torch.zeros_like(mean)
    scale = gain * torch.rsqrt(variance + epsilon)
    return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1)), (bias - mean) * scale + shift


def sites_of(graphs: Iterable[Graph]) -> list[str]:
    """Names of the sites that are called, within ``sites``."""
    called = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"]
    return list(dict.fromkeys(name.removeprefix(f"{SITES}.") for name in called))
