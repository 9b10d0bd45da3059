"""Where a module can be cut: places that all features go through, at which a slot can sit."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from torch.fx import Node

from esper.leyline.config import ConfigError
from esper.tezzeret.modules.trace import Traced, is_tensor, operation, sample_shape

FOLLOWERS = frozenset(
    [
        "batch_norm",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "relu",
        "gelu",
        "silu",
        "elu",
        "selu",
        "leaky_relu",
        "hardtanh",
        "hardswish",
        "tanh",
        "sigmoid",
        "softplus",
        "mish",
        "prelu",
        "dropout",
        "feature_dropout",
        "max_pool2d",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "contiguous",
        "view_as",
        "alias",
    ]
)
"""What belongs to the stretch before it: a slot sits behind the activation rather than before."""


class Cut(NamedTuple):
    """A place that all features go through.

    Attributes:
      name: of the module that gives them, or of the operation, such as ``add_1``.
      node: what gives them.
      shape: per sample.
      goes_on: whether a norm, an activation or the like follows.
    """

    name: str
    node: Node
    shape: tuple[int, ...]
    goes_on: bool


def is_aside(node: Node) -> bool:
    """Whether an operation only checks something."""
    return operation(node).startswith("_assert") or operation(node) in ("sym_constrain_range_for_size",)


def flow(traced: Traced) -> list[Node]:
    """The operations that features go through, in order. Sizes, and what depends on parameters alone, are not among
    them: they are computed wherever they are needed.
    """
    reached, found = {traced.inputs}, list[Node]()
    for node in traced.graph.nodes:
        if node.op != "call_function" or not is_tensor(node) or is_aside(node):
            continue
        if any(before in reached for before in node.all_input_nodes):
            reached.add(node)
            found.append(node)
    return found


def find_cuts(traced: Traced) -> list[Cut]:
    """All cuts behind something learned and before the output, in order."""
    nodes = flow(traced)
    number = {node: index for index, node in enumerate(nodes)}
    last = {node: max((number[user] for user in node.users if user in number), default=-1) for node in nodes}
    last[traced.inputs] = max((number[user] for user in traced.inputs.users if user in number), default=-1)
    last[traced.output] = len(nodes)
    names = node_names(nodes)
    open_, learned, found = {traced.inputs}, False, list[Cut]()
    for index, node in enumerate(nodes):
        others = (each for each in node.all_input_nodes if each not in number and each is not traced.inputs)
        learned = learned or any(is_tensor(each) for each in others)
        open_ = {each for each in (*open_, node) if last[each] > index}
        shape = sample_shape(traced, node)
        if learned and open_ == {node} and shape is not None and len(shape) <= 3 and node is not traced.output:
            following = [operation(user) for user in node.users if user in number]
            found.append(Cut(names[node], node, shape, set(following) <= FOLLOWERS))
    return found


def module_paths(node: Node) -> list[str]:
    """The modules within which an operation runs, outermost first, without the whole."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path.removeprefix("L['self']").removeprefix(".") for path, _ in stack.values()]
    return [path for path in paths if path]


def module_outputs(nodes: Sequence[Node]) -> dict[str, Node]:
    """Module -> the operation whose result leaves it, if there is one."""
    inside: dict[str, list[Node]] = {}
    for node in nodes:
        for path in module_paths(node):
            inside.setdefault(path, []).append(node)
    found = {}
    for path, members in inside.items():
        leaving = [node for node in members if any(user not in members and is_flow(user) for user in node.users)]
        if len(leaving) == 1:
            found[path] = leaving[0]
    return found


def is_flow(node: Node) -> bool:
    """Whether a node uses features, not only their size."""
    return node.op == "output" or (is_tensor(node) and not is_aside(node))


def node_names(nodes: Sequence[Node]) -> dict[Node, str]:
    """A name for every operation: of the outermost module whose result it is, else its own with a number."""
    names: dict[Node, str] = {}
    counts: dict[str, int] = {}
    for path, node in sorted(module_outputs(nodes).items(), key=lambda item: item[0].count(".")):
        names.setdefault(node, path)
    for node in nodes:
        if node not in names:
            count = counts[operation(node)] = counts.get(operation(node), -1) + 1
            names[node] = f"{operation(node)}_{count}" if count else operation(node)
    return names


def choose(place: str, traced: Traced, sites: str | Sequence[str]) -> list[Cut]:
    """The cuts at which slots shall sit.

    Args:
      place: what messages call the module.
      traced: the module in inference.
      sites: names, in any order; or "auto": behind every stretch of layers with its norm and activation.

    Raises:
      ConfigError: a name that is no module or operation, or no cut; one line.
    """
    cuts = find_cuts(traced)
    if sites == "auto":
        return [cut for cut in cuts if not cut.goes_on]
    nodes, wanted = flow(traced), [sites] if isinstance(sites, str) else list(sites)
    known: dict[str, Node] = {name: node for node, name in node_names(nodes).items()} | module_outputs(nodes)
    by_node = {cut.node: cut for cut in cuts}
    chosen: dict[Node, Cut] = {}
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{place}: no module or operation {name!r} with one result{hint}")
        if known[name] not in by_node:
            allowed = ", ".join(cut.name for cut in cuts) or "none: a slot can lead from the input to the logits alone"
            raise ConfigError(f"{place}: features pass by {name!r}, which is no place for a slot; expected {allowed}")
        chosen[known[name]] = by_node[known[name]]._replace(name=name)
    return [chosen[cut.node] for cut in cuts if cut.node in chosen]


def match(traced: Traced, cuts: Sequence[Cut]) -> dict[str, Cut]:
    """Of some cuts by name, those that another form of the module has, too."""
    nodes = flow(traced)
    known: dict[str, Node] = {name: node for node, name in node_names(nodes).items()} | module_outputs(nodes)
    by_node = {cut.node: cut for cut in find_cuts(traced)}
    pairs = {cut: by_node.get(known[cut.name]) for cut in cuts if cut.name in known}
    return {cut.name: there for cut, there in pairs.items() if there is not None and there.shape == cut.shape}
