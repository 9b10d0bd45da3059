"""Which modules can compute with features of fewer bits than their weights, found by trying them.

What is written with ``esper.kasmina.layers`` can. A ``torch.nn.Module`` and a function that multiplies a weight and
features on its own mostly cannot: torch refuses factors of different types. Such a module gets features in its weights'
type and gives back what it gives; between it and the others features have fewer bits.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host
from esper.kasmina.layout import Layout
from esper.kasmina.slot import Slot
from esper.leyline.config import Precision
from esper.utils.documents import cause

Part = tuple[str | int, ...]
"""("block", i) or ("seed", slot, k)."""

TRIED = 2
"""Networks and samples of a trial."""


def find_wide(
    precision: Precision, host: Host, blueprints: Sequence[Blueprint], slots: Sequence[Slot]
) -> Mapping[Part, str]:
    """The parts that cannot compute with features of the precision's type, and why; none where it has one type."""
    if not precision.is_mixed:
        return MappingProxyType({})
    shapes = [site.shape for site in host.points.values()]
    reasons: dict[Part, str | None] = {}
    for index, block in enumerate(host.blocks):
        tokens = host.num_outputs if host.takes_tokens and index == 0 else 0
        reasons["block", index] = _why_not(block, (block.reads, block.buffer_layout), shapes[index], tokens, precision)
    for number, slot in enumerate(slots):
        tokens = host.num_outputs if host.takes_tokens and slot.source == 0 else 0
        for kind in slot.offers:
            layouts = slot.row(kind), slot.buffer_row(kind)
            part = "seed", number, kind
            reasons[part] = _why_not(blueprints[kind], layouts, slot.reads.shape, tokens, precision)
    return MappingProxyType({part: reason for part, reason in reasons.items() if reason is not None})


def _why_not(
    module: Any, layouts: tuple[Layout, Layout], shape: Sequence[int], tokens: int, precision: Precision
) -> str | None:
    """Why a block or a blueprint cannot compute with such features; None if it can."""

    def views(layout: Layout, kind: torch.dtype) -> dict[str, Tensor]:
        return layout.views(torch.ones(TRIED, layout.size, dtype=kind))

    own, held = layouts
    params = views(own, precision.features if tokens else precision.dtype)
    buffers = views(held, precision.dtype)
    kind = torch.int64 if tokens else precision.features
    x, keys = torch.zeros(TRIED, TRIED, *shape, dtype=kind), torch.zeros(TRIED, 2, dtype=torch.int64)
    forms: tuple[Callable[[], Any], ...] = (
        lambda: module.train(params, buffers, x, keys if module.draws else None)[0],
        lambda: module.infer(params, buffers, x),
    )
    try:
        for form in forms:
            form()
    except Exception as error:  # of a user's function: with features in its weights' type it runs, or raises again
        return cause(error)
    return None
