"""A host with its slots as a graph of numbers, for policies that know points, slots and seeds by what they are.

Nothing in it has a name or a fixed count. All numbers are shares or ratios, so that hosts of other sizes give numbers
of the same range.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SITE_KINDS = ("conv", "token", "vector")
"""Kinds of sites that are told apart; another kind is none of these."""

POINT_FEATURES = ("depth", "flops", "params", *SITE_KINDS)
"""What is said of a point: its place between the input (0) and the logits (1), the shares of the host's multiply-adds
and parameters that the block before it has (0 at the input), and the kind of its features as flags.
"""

SEED_FEATURES = ("size", "flops", "tensors", "bypass", "moves")
"""What is said of a blueprint at a slot: ln(1 + parameters / host's) and ln(1 + multiply-adds / host's), ln(1 + trained
tensors), all times LOG_UNIT; whether it is a bypass; whether it starts away from the identity.
"""

LOG_UNIT = 0.25
"""Factor of the logarithms: a seed of 54 times the host's parameters has size 1."""


class HostGraph(NamedTuple):
    """Points, slots, and seeds on offer."""

    points: Tensor  # float32 [P, POINT_FEATURES]; in order: the input, then behind block after block
    slots: Tensor  # int64 [S, 2]; source and target of every slot, points by number
    seeds: Tensor  # float32 [S, K, SEED_FEATURES]; 0 where a blueprint does not fit

    def to(self, device: torch.device | None) -> "HostGraph":
        """The same on a device."""
        return HostGraph(*(part.to(device) for part in self))


def flows(graph: HostGraph) -> Tensor:
    """Which node's features flow into which: bool [N, N], row = where to, column = where from.

    Nodes are the P points, then the S slots. A block leads from point to point, a slot from its source to itself and
    on to its target.
    """
    points, slots = graph.points.shape[0], graph.slots.shape[0]
    found = torch.zeros(points + slots, points + slots, dtype=torch.bool, device=graph.slots.device)
    blocks = torch.arange(points - 1, device=found.device)
    own = points + torch.arange(slots, device=found.device)
    found[blocks + 1, blocks] = True
    found[own, graph.slots[:, 0]] = True
    found[graph.slots[:, 1], own] = True
    return found
