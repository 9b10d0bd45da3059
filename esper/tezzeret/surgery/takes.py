"""Units among numbers that are carried about: windows, transposes, heads, joined features."""

import torch
from torch import Tensor

from esper.tezzeret.native.graph import Attribute, Node
from esper.tezzeret.surgery.units import Found, Tracing, Units


def _index(node: Node) -> Tensor:
    return torch.tensor(node.row("index"), dtype=torch.int64)


def _starts(found: Tracing, node: Node) -> list[int]:
    """Where each input begins among all of them."""
    starts = [0]
    for source in node.inputs:
        starts.append(starts[-1] + found.node(source).size)
    return starts


def _units_of(found: Tracing, units: Units, places: Tensor) -> Tensor:
    return torch.div(places, units.post, rounding_mode="floor") % found.count


def _fit(found: Tracing, owners: Tensor, places: Tensor, size: int) -> Units | None:
    """How units lie among so many numbers, if the unit of some places is known; the widest runs that fit."""
    if size % found.count:
        return None
    runs = size // found.count
    for post in (each for each in range(runs, 0, -1) if runs % each == 0):
        if bool((places // post % found.count == owners).all()):
            return Units(runs // post, post)
    return None


def take(found: Tracing, number: int, node: Node) -> Found:
    """Where the units are behind a take, and then in all of its inputs."""
    index, starts = _index(node), _starts(found, node)
    reads = False
    if number not in found.units:
        places, owners = list[Tensor](), list[Tensor]()
        for source, start, end in zip(node.inputs, starts, starts[1:], strict=False):
            if source in found.units:
                reads = found.units[source].reads
                here = ((index >= start) & (index < end)).nonzero().squeeze(1)
                places.append(here)
                owners.append(_units_of(found, found.units[source], index[here] - start))
        if not places:
            return
        units = _fit(found, torch.cat(owners), torch.cat(places), node.size)
        if units is None:
            raise found.refusal(f"is torn apart where numbers are carried about, {node.shape}")
        yield number, units._replace(reads=reads)
        return
    units = found.units[number]
    for source, start, end in zip(node.inputs, starts, starts[1:], strict=False):
        here = ((index >= start) & (index < end)).nonzero().squeeze(1)
        own = _fit(found, _units_of(found, units, here), index[here] - start, end - start)
        if own is None:
            raise found.refusal(f"meets numbers that belong to no unit, {node.shape}")
        yield source, own._replace(reads=units.reads)


def taken(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    """The same carrying-about of another number of units: each new one goes the way of the first."""
    if number not in found.units:
        return {}
    units, index, starts = found.units[number], _index(node), _starts(found, node)
    index = index.reshape(units.pre, found.count, units.post)
    grown, start = torch.full((units.pre, count, units.post), -1), 0
    each = torch.arange(count).reshape(1, -1, 1)
    for source, old, end in zip(node.inputs, starts, starts[1:], strict=False):
        own = found.units[source]
        inside = (index >= old) & (index < end)
        pre, post = (index - old) // (found.count * own.post), (index - old) % own.post
        for part in (inside, torch.where(inside, pre, 0), torch.where(inside, post, 0)):
            if bool((part != part[:, :1]).any()):
                raise found.refusal(f"goes other ways from unit to unit, {node.shape}")
        place = start + (pre[:, :1] * count + each) * own.post + post[:, :1]
        grown = torch.where(inside[:, :1], place, grown)
        start += own.pre * count * own.post
    return {"index": tuple(grown.flatten().tolist())}
