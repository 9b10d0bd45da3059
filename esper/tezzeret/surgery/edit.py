"""Writing into a copy of a body's graph."""

from collections.abc import Mapping

import torch
from torch import Tensor

from esper.tezzeret.native.graph import Attribute, Node, Shape
from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned, before, rewritten
from esper.tezzeret.surgery.layers import STATISTICS
from esper.tezzeret.surgery.resize import moved


class Edit:
    """A graph that is being changed; the body that it comes from stays as it is."""

    def __init__(self, body: Anatomy) -> None:
        self.body, self.nodes = body, dict(enumerate(body.graph.nodes))
        self.output, self.buffers = body.graph.output, body.graph.buffers
        self.ends = list(body.ends)
        self._first = len(self.nodes)

    def add(
        self, op: str, inputs: tuple[int, ...], shape: Shape, by_sample: bool = True, **attributes: Attribute
    ) -> int:
        """Write a node."""
        number = len(self.nodes)
        self.nodes[number] = Node(op, inputs, tuple(shape), by_sample, tuple(sorted(attributes.items())))
        return number

    def parameter(self, name: str, shape: Shape) -> int:
        """Write a trained tensor."""
        return self.add("parameter", (), shape, False, name=name, place=len(self.nodes))

    def buffer(self, name: str, shape: Shape) -> int:
        """Write a running statistic."""
        return self.add("buffer", (), shape, False, name=name, place=len(self.nodes))

    def batch_norm(self, x: int, name: str) -> int:
        """Write a batch norm over the first axis, its tensors behind a name, with running averages."""
        channels = self.nodes[x].shape[:1]
        rows = (self.parameter(f"{name}.weight", channels), self.parameter(f"{name}.bias", channels))
        norm = self.add("batch_norm", (x, *rows), self.nodes[x].shape)
        for op, held in zip(STATISTICS, ("mean", "variance"), strict=True):
            statistic = self.add(op, (norm,), channels, False)
            running = self.add("running", (self.buffer(f"{name}.{held}", channels), statistic), channels, False)
            self.buffers = (*self.buffers, running)
        return norm

    def convolve(self, x: int, weight: int, bias: int | None, kernel: int = 1) -> int:
        """Write a layer of another number of channels, for maps [C, ...] and vectors."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        shape = (self.nodes[weight].shape[0], *self.nodes[x].shape[1:])
        return self.add("convolve", inputs, shape, kernel=kernel, groups=1)

    def linear(self, x: int, weight: int, bias: int | None) -> int:
        """Write an affine map of the last axis, for sequences [T, D]."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return self.add("linear", inputs, (*self.nodes[x].shape[:-1], self.nodes[weight].shape[0]))

    def moved(self, source: int, index: Tensor) -> int:
        """Write numbers of a node at places, in the shape of these."""
        return self.add("take", (source,), tuple(index.shape), index=tuple(index.flatten().tolist()))

    def redirect(self, old: int, new: int) -> None:
        """Let all that reads a node, but what is new, read another."""
        for number in range(self._first):
            node = self.nodes[number]
            if node.op not in STATISTICS and old in node.inputs:
                inputs = tuple(new if source == old else source for source in node.inputs)
                self.nodes[number] = node._replace(inputs=inputs)
        self.output = new if self.output == old else self.output
        self.ends = [end._replace(node=new) if end.node == old else end for end in self.ends]

    def done(self) -> Anatomy:
        """The body as it is now, with those ends that all features still go through.

        Raises:
          Impossible: a node would depend on itself.
        """
        kept = self._buffers()
        graph = rewritten(self.nodes, self.output, kept)
        ends = [end for end in self.ends if end.node in graph.places]
        body = moved(self.body._replace(ends=tuple(ends)), graph)
        return body._replace(ends=tuple(end for end in body.ends if is_cut(body, end.node)))

    def _buffers(self) -> tuple[int, ...]:
        """Running averages of norms that the output still needs."""
        needed, waiting = set[int](), [self.output]
        while waiting:
            number = waiting.pop()
            if number not in needed:
                needed.add(number)
                waiting += self.nodes[number].inputs
        return tuple(n for n in self.buffers if self.nodes[self.nodes[n].inputs[1]].inputs[0] in needed)


def is_cut(body: Anatomy, number: int) -> bool:
    """Whether all features go through a node."""
    reached = before(body.graph, [body.graph.output], [number])
    return number in reached and not any(body.graph.nodes[each].op == "input" for each in reached - {number})


def fitted(learned: Learned, body: Anatomy, new: Mapping[str, Tensor]) -> Learned:
    """What networks have learned, for another body: new tensors are added, with moments of 0, and lost ones go.

    Args:
      learned: of E networks.
      body: the new one.
      new: name -> [*shape] or [E, *shape].
    """
    count, like = len(learned.steps), next(iter(learned.params.values()))
    slots = next(iter(learned.moments.values())).shape[1]
    params, moments = dict(learned.params), dict(learned.moments)
    for name, value in new.items():
        shape = (body.params | body.buffers)[name].shape
        params[name] = value.to(like).expand(count, *shape).clone()
        if name not in moments or moments[name].shape[2:] != shape:
            moments[name] = like.new_zeros(count, slots, *shape)
    buffers = {name: params[name] if name in new else learned.buffers[name] for name in body.buffers}
    params, moments = ({name: table[name] for name in body.params} for table in (params, moments))
    return Learned(params, moments, buffers, learned.steps)


def eye(out: int, into: int, kernel: int = 1) -> Tensor:
    """A weight [out, into, kernel, kernel] that passes channels on, as far as there are both."""
    weight = torch.zeros(out, into, kernel, kernel)
    channel = torch.arange(min(out, into))
    weight[channel, channel, kernel // 2, kernel // 2] = 1.0
    return weight


def expect(condition: bool, what: str) -> None:
    """Raise ``Impossible`` unless a condition holds."""
    if not condition:
        raise Impossible(what)


def source_of(nodes: Mapping[int, Node], number: int) -> int:
    """What a node is but for its shape."""
    while nodes[number].op == "reshape":
        (number,) = nodes[number].inputs
    return number
