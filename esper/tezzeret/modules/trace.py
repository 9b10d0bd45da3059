"""A module as a graph: what ``torch.export`` sees it do, with the number of samples left open."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node

from esper.leyline.config import ConfigError
from esper.utils.documents import cause

TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Traced(NamedTuple):
    """What a module does to a batch.

    Attributes:
      graph: operations in order; every number of samples is an expression of the first size of ``inputs``.
      inputs: the batch.
      output: what the module returns.
      names: parameters, buffers and constants -> their names in the module.
      constants: the values of those that are neither.
    """

    graph: Graph
    inputs: Node
    output: Node
    names: dict[Node, str]
    constants: dict[str, Tensor]


def trace(place: str, module: nn.Module, example: Tensor) -> Traced:
    """Write down what a module does, in the form (training or inference) that it is in.

    Args:
      place: what messages call it.
      module: of one argument, the batch.
      example: a batch of 2 samples or more.

    Raises:
      ConfigError: the module does what no graph can say, or depends on the number of samples; one line.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said is said where the module runs for its result
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # a module may fail in any way
        raise ConfigError(f"{place}: torch.export cannot follow it: {cause(error, 400)}") from error
    signature, graph = program.graph_signature, program.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    kinds = dict(zip(placeholders, signature.input_specs, strict=True))
    inputs = [node for node, spec in kinds.items() if spec.kind is InputKind.USER_INPUT]
    firsts = _first_names(module)
    given = {node: str(spec.target) for node, spec in kinds.items() if spec.kind in TENSORS}
    names = {node: firsts.get(name, name) for node, name in given.items()}
    (last,) = (node for node in graph.nodes if node.op == "output")
    results = zip(signature.output_specs, last.args[0], strict=True)
    outputs = [node for spec, node in results if spec.kind is OutputKind.USER_OUTPUT]
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise ConfigError(f"{place}: {node.op} {node.target!r} in its forward; expected tensor operations alone")
    if len(inputs) != 1 or len(names) + 1 < len(kinds) or len(outputs) != 1 or not isinstance(outputs[0], Node):
        raise ConfigError(f"{place}: {len(inputs)} inputs, {len(outputs)} outputs; expected one tensor of both")
    constants = {
        str(spec.target): program.constants[str(spec.target)]
        for spec in signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    return Traced(graph, inputs[0], outputs[0], names, constants)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Name of a tensor -> the first name of the same tensor: what is tied has one."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in named}


def operation(node: Node) -> str:
    """The name of what a node does, such as ``relu``, also of its form in place."""
    return _name(node).rstrip("_")


def writes(node: Node) -> bool:
    """Whether a node changes its first argument in place."""
    return _name(node).endswith("_") and not _name(node).startswith("_")


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def is_tensor(node: Node) -> bool:
    """Whether a node gives a tensor, or several."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list)


def sample_shape(traced: Traced, node: Node) -> tuple[int, ...] | None:
    """The shape of one sample's features, if a node gives floating features of every sample."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    lead, *rest = value.shape
    if str(lead) != str(traced.inputs.meta["val"].shape[0]) or not all(isinstance(size, int) for size in rest):
        return None
    return tuple(int(size) for size in rest)
