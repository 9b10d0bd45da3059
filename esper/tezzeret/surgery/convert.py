"""Into surgery and out of it: a host as a body, its networks' rows as what they learned, and both ways back."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from esper.kasmina.host import Host, HostBlock, Tie
from esper.kasmina.layout import Param, Params
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.graph import Graph, Node
from esper.tezzeret.native.observe import NotCaptured
from esper.tezzeret.surgery.anatomy import (
    LEAVES,
    Anatomy,
    End,
    Impossible,
    Learned,
    before,
    name_of,
    rewritten,
    rows_of,
    users_of,
    with_attributes,
)
from esper.tezzeret.surgery.forward import Forward


def anatomy_of(host: Host) -> Anatomy:
    """A host as one graph.

    Raises:
      Impossible: a block draws random numbers, does what no operation of a graph can say, or computes in inference what
        does not follow from its training form; one line with the block.
    """
    nodes: list[Node] = [Node("input", (), host.input_shape, True)]
    buffers, marks, output = list[int](), list[tuple[int, int]](), 0
    for index, block in enumerate(host.blocks):
        graph = _captured(host, index, nodes[output].shape)
        places = _appended(nodes, graph, output, _names(host, index))
        buffers += [places[number] for number in graph.buffers]
        output = places[graph.output]
        if block.site is not None and index + 1 < len(host.blocks):
            marks.append((output, index))
    whole = rewritten(_with_biases(nodes), output, tuple(buffers))
    ends = tuple(End(whole.places[number], host.sites[index], index) for number, index in marks)
    return Anatomy(host.name, whole.graph, ends, host.input_shape, host.num_outputs, host.takes_tokens)


def _captured(host: Host, index: int, shape: tuple[int, ...]) -> Graph:
    """A block in training; its form in inference must follow from it."""
    block, place = host.blocks[index], f"{host.name}, block {index}"
    if block.draws:
        raise Impossible(f"{place}: draws random numbers; expected a block without dropout")
    layouts, vocabulary = (block.reads, block.buffer_layout), host.num_outputs * (host.takes_tokens and index == 0)
    try:
        graph = capture(lambda p, b, x: block.train(p, b, x, None), shape, *layouts, vocabulary)
        inferred = capture(block.infer, shape, *layouts, vocabulary)
    except NotCaptured as reason:
        raise Impossible(f"{place}: {reason}; expected operations that a graph can say") from None
    if inference(graph) != rewritten(inferred.nodes, inferred.output, ()).graph:
        raise Impossible(f"{place}: computes in inference what does not follow from its training form")
    return graph


def inference(graph: Graph) -> Graph:
    """The form in inference: norms by the batch's statistics go by the running averages of these.

    Raises:
      Impossible: a norm whose statistics no buffers average.
    """
    statistics: dict[tuple[int, str], int] = {}
    for number in graph.buffers:
        held, source = graph.nodes[number].inputs
        statistics[graph.nodes[source].inputs[0], graph.nodes[source].op] = held
    nodes = dict(enumerate(graph.nodes))
    for number, node in enumerate(graph.nodes):
        if node.op == "batch_norm":
            rows = [statistics.get((number, op)) for op in ("batch_mean", "batch_variance")]
            if None in rows:
                raise Impossible("a batch norm without running averages; expected some")
            nodes[number] = node._replace(op="affine_norm", inputs=(*node.inputs, *(row for row in rows if row)))
    return rewritten(nodes, graph.output, ()).graph


def _with_biases(nodes: list[Node]) -> dict[int, Node]:
    """Let what is added to a layer's every output channel, and to nothing else, be its bias."""
    table, users = dict(enumerate(nodes)), users_of(Graph(tuple(nodes), 0))
    for number, node in enumerate(nodes):
        if node.op != "add":
            continue
        source = node.inputs[0]
        layer, bias = table[source], node.inputs[1]
        bias = nodes[bias].inputs[0] if nodes[bias].op == "reshape" else bias
        shift = nodes[bias]
        repeats = 1 if layer.op == "convolve" else node.size // node.shape[-1]
        fits = layer.op in ("convolve", "linear") and layer.shape == node.shape and node.number("repeats", 1) == repeats
        channels = node.shape[0 if layer.op == "convolve" else -1] if fits else -1
        if (
            fits
            and len(layer.inputs) == 2
            and shift.op == "parameter"
            and shift.size == channels
            and users[source] == [number]
        ):
            table[number] = layer._replace(inputs=(*layer.inputs, bias))
    return table


def _names(host: Host, index: int) -> dict[str, str]:
    """A block's name of a tensor -> the body's."""
    owned = [param.name for block in host.blocks for param in (*block.params, *block.buffers)]
    is_unclear = len(set(owned)) < len(owned)

    def prefix(number: int) -> str:
        return f"block{number}." if is_unclear else ""

    block = host.blocks[index]
    own = {param.name: f"{prefix(index)}{param.name}" for param in (*block.params, *block.buffers)}
    return own | {tie.param.name: f"{prefix(tie.block)}{tie.param.name}" for tie in block.ties}


def _appended(nodes: list[Node], graph: Graph, features: int, names: Mapping[str, str]) -> dict[int, int]:
    """Write a graph behind others."""
    places: dict[int, int] = {}
    known = {(node.op, name_of(node)): number for number, node in enumerate(nodes) if node.op in LEAVES}
    for number, node in enumerate(graph.nodes):
        if node.op == "input":
            places[number] = features
            continue
        node = node._replace(inputs=tuple(places[source] for source in node.inputs))
        if node.op in LEAVES:
            # the row is laid out anew when the whole is written; until then a place tells tensors apart
            node = with_attributes(node, name=names[name_of(node)], place=len(nodes))
            places[number] = known.get((node.op, name_of(node)), len(nodes))
        places[number] = places.get(number, len(nodes))
        if places[number] == len(nodes):
            nodes.append(node)
    return places


def learned_of(host: Host, learners: Learners) -> Learned:
    """What the networks of a host have learned, by the body's names."""
    params, moments, buffers = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    weights, first, held = learners.host, 0, 0
    for index, block in enumerate(host.blocks):
        names = _names(host, index)
        for param in block.params:
            columns = slice(first, first + param.size)
            params[names[param.name]] = weights.params[:, columns].unflatten(1, param.shape or (1,))
            moments[names[param.name]] = weights.moments[:, :, columns].unflatten(2, param.shape or (1,))
            first += param.size
        for param in block.buffers:
            buffers[names[param.name]] = learners.buffers[:, held : held + param.size].unflatten(1, param.shape or (1,))
            held += param.size
    return Learned(params, moments, buffers, weights.steps)


def host_of(body: Anatomy) -> Host:
    """A body as a host: one block up to each end, and one behind. It starts from zeros: networks come by ``learners``.

    Raises:
      Impossible: features pass by an end.
    """
    blocks, owners, start = list[HostBlock](), dict[str, Tie](), 0
    shape = body.input_shape
    for index, number in enumerate([*(end.node for end in body.ends), body.graph.output]):
        graph = _block_graph(body, start, number, shape)
        read = [Param(name, node.shape, "constant", 0.0) for name, node in _leaves(graph, "parameter")]
        buffers = tuple(Param(name, node.shape, "constant", 0.0) for name, node in _leaves(graph, "buffer"))
        params = tuple(param for param in read if param.name not in owners)
        ties = tuple(owners[param.name] for param in read if param.name in owners)
        owners |= {param.name: Tie(index, param) for param in params}
        train, infer = Forward(graph), Forward(inference(graph))
        site = body.ends[index].site if index < len(body.ends) else None
        blocks.append(
            HostBlock(params, buffers, partial(_train, train), partial(_infer, infer), site, flops(graph), ties)
        )
        start, shape = number, graph.nodes[graph.output].shape
    return Host(body.name, body.input_shape, body.num_outputs, tuple(blocks), body.takes_tokens)


def _leaves(graph: Graph, kind: str) -> list[tuple[str, Node]]:
    found = [node for node in graph.nodes if node.op == kind]
    return [(name_of(node), node) for node in sorted(found, key=lambda node: node.number("place"))]


def _block_graph(body: Anatomy, start: int, end: int, shape: tuple[int, ...]) -> Graph:
    """What lies between two places that all features go through."""
    nodes = body.graph.nodes
    inside = before(body.graph, [end], [start])
    if start and any(nodes[number].op == "input" for number in inside):
        raise Impossible("features pass by the end of a block; expected a place that all go through")
    table = dict(enumerate(nodes)) | {start: Node("input", (), shape, True)}
    buffers = tuple(
        number for number in body.graph.buffers if nodes[nodes[number].inputs[1]].inputs[0] in inside - {start}
    )
    return rewritten(table, end, buffers).graph


def flops(graph: Graph) -> int:
    """Multiply-adds per sample of the products of a graph."""
    total = 0
    for node in graph.nodes:
        inputs = [graph.nodes[number] for number in node.inputs]
        if node.op == "convolve":
            total += node.size // node.shape[0] * inputs[1].size
        elif node.op == "linear":
            total += node.size // node.shape[-1] * inputs[1].size
        elif node.op == "matmul":
            total += node.size * node.number("inner")
    return total


def _train(forward: Forward, params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    del key
    found = forward(params, buffers, x)
    return found.output, found.buffers


def _infer(forward: Forward, params: Params, buffers: Params, x: Tensor) -> Tensor:
    return forward(params, buffers, x).output


def learners(host: Host, learned: Learned, seeds: Weights, seed_buffers: Tensor) -> Learners:
    """What networks have learned as rows of ``host_of`` their body; seeds as given."""
    names = [param.name for block in host.blocks for param in block.params]
    held = [param.name for block in host.blocks for param in block.buffers]
    steps, like = learned.steps, next(iter(learned.params.values()))
    buffers = rows_of(learned.buffers, held) if held else like.new_zeros(len(steps), 0)
    weights = Weights(rows_of(learned.params, names), rows_of(learned.moments, names, 2), steps)
    return Learners(weights, buffers, seeds, seed_buffers)
