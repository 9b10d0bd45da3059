"""Batch norms of a host that comes from a ``torch.nn.Module``, as operations of a graph."""

from torch import Tensor

from esper.kasmina.layers import EPSILON, RUNNING_MOMENTUM
from esper.tezzeret.native.observe import NotCaptured, Observer, Rule, Seen, Value
from esper.tezzeret.native.rules import only, tell


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
    for result, op in zip(statistics, ("batch_mean", "batch_variance"), strict=True):
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


NORMS: dict[str, Rule] = {"by_batch": by_batch, "by_statistics": by_statistics, "tracked": tracked}
"""By the name of a function of ``esper.tezzeret.modules.segment``."""
