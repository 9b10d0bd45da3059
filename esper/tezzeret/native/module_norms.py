"""Batch norms of a host that comes from a ``torch.nn.Module``, as operations of a graph."""

from typing import Any

from torch import Tensor

from esper.kasmina.layers import EPSILON, RUNNING_MOMENTUM
from esper.tezzeret.native.algebra import added, multiplied
from esper.tezzeret.native.observe import NotCaptured, Observer, Rule, Seen, Value
from esper.tezzeret.native.rules import only, tell

STATISTICS = ("batch_mean", "batch_variance")
"""What a batch norm shows of its batch."""


def _rows(o: Observer, rows: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    if any(row is None for row in rows):
        raise NotCaptured("a batch norm without weight or bias")
    return tuple(o.value(row).node for row in rows)


def by_batch(o: Observer, seen: Seen, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> None:
    """By the batch's statistics."""
    only("batch_norm", eps=(epsilon, EPSILON))
    value, rows, (y, *statistics) = o.value(x), _rows(o, (weight, bias)), seen.result
    node = o.draft.add("batch_norm", (value.node, *rows), o.node(value).shape)
    o.tell(y, Value(node, value.lead))
    for result, op in zip(statistics, STATISTICS, strict=True):
        o.tell(result, Value(o.draft.add(op, (node,), o.node(value).shape[:1], by_sample=False), ()))


def by_statistics(o: Observer, seen: Seen, x: Tensor, *given: Tensor | None) -> None:
    """By running statistics."""
    *rows, epsilon = given
    only("batch_norm", eps=(epsilon, EPSILON))
    value, nodes = o.value(x), _rows(o, tuple(rows))
    tell(o, seen.result, Value(o.draft.add("affine_norm", (value.node, *nodes), o.node(value).shape), value.lead))


def tracked(o: Observer, seen: Seen, running: Tensor, statistic: Tensor, momentum: float) -> None:
    """A running average."""
    only("batch_norm", momentum=(momentum, RUNNING_MOMENTUM))
    held, seen_now = o.value(running), o.value(statistic)
    node = o.draft.add("running", (held.node, seen_now.node), o.node(held).shape)
    o.tell(seen.result, Value(node, held.lead))


def lerp(o: Observer, seen: Seen, x: Tensor, y: Tensor, weight: Any) -> None:
    """A running average, where it leads from a buffer to a batch's statistic; between other values their mixture."""
    start, end = o.value(x), o.value(y)
    held, statistic = (_but_for_shape(o, value) for value in (start, end))
    nodes = o.draft.nodes
    if nodes[held].op == "buffer" and nodes[statistic].op in STATISTICS:
        only("lerp", weight=(weight, RUNNING_MOMENTUM))
        node = o.draft.add("running", (held, statistic), nodes[held].shape)
        tell(o, seen.result, Value(node, start.lead))
        return
    share = weight if isinstance(weight, int | float) else o.value(weight)
    way = added(o, end, multiplied(o, start, -1.0))
    tell(o, seen.result, added(o, start, multiplied(o, way, share)))


def _but_for_shape(o: Observer, value: Value) -> int:
    node = value.node
    while o.draft.nodes[node].op == "reshape":
        (node,) = o.draft.nodes[node].inputs
    return node


NORMS: dict[str, Rule] = {"by_batch": by_batch, "by_statistics": by_statistics, "tracked": tracked, "lerp": lerp}
"""By the name of a function of ``esper.tezzeret.modules.segment``, and ``torch.lerp``."""
