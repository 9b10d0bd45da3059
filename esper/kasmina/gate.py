"""The learned gate of a gated blend: one weight per sample, from the features the seed sees.

sigmoid(W2 relu(W1 mean(x) + b1) + b2), hidden width max(8, C // 4); its parameters belong to the seed and are
trained with it. It starts at sigmoid(OPEN) for every sample. Where the site has an axis of time there is one weight
per position, from that position alone: a mean over time would tell a position what comes after it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.kasmina.layers import linear
from esper.kasmina.layout import Layout, Params, constant, fan_in_uniform
from esper.kasmina.site import Site

OPEN = 2.0
"""Initial bias: the gate starts at sigmoid(2) = 0.88, open but not saturated."""


def can_weigh(reads: Site, acts: Site) -> bool:
    """Whether a gate that sees one site can weigh what a seed gives at another.

    It averages features, which tokens are not; and a weight per position needs the same positions there.
    """
    if reads.kind == "tokens":
        return False
    if reads.time_axis is None:
        return True
    return reads.time_axis == acts.time_axis == 0 and reads.shape[0] == acts.shape[0]


def layout(site: Site) -> Layout:
    """The gate's row: C*h + 2h + 1 numbers, h = max(8, C // 4)."""
    channels = site.channels
    hidden = max(8, channels // 4)
    return Layout(
        (
            fan_in_uniform("hidden.weight", (hidden, channels), channels),
            fan_in_uniform("hidden.bias", (hidden,), channels),
            constant("out.weight", (1, hidden), 0.0),
            constant("out.bias", (1,), OPEN),
        )
    )


def opening(site: Site) -> Callable[[Params, Tensor], Tensor]:
    """The gate at a site: (named params, x [n, B, *site.shape]) -> weight in (0, 1).

    The weight is [n, B], or [n, B, T] where the site has an axis of time.
    """

    def weight(params: Params, x: Tensor) -> Tensor:
        hidden = torch.relu(linear(site.pool(x), params["hidden.weight"], params["hidden.bias"]))
        return torch.sigmoid(linear(hidden, params["out.weight"], params["out.bias"])).squeeze(-1)

    return weight


def unit(site: Site) -> Callable[[Tensor, Tensor], Tensor]:
    """``opening`` with flat params [n, size]."""
    row, weight = layout(site), opening(site)
    return lambda params, x: weight(row.views(params), x)
