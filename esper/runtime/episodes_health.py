"""Whether recorded episodes teach anything: the variety of what was done, as a whole and in like states."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.nissa.actions import mix_entropy
from esper.simic.episodes.dataset import Episodes
from esper.tamiyo.interface import from_table
from esper.utils import rng

LEAST_SHARE = 0.02
"""Of all decisions, that each operation must have."""

LEAST_ENTROPY = 0.3
"""Nats, of the mix of operations."""

MOST_UNIFORM = 0.5
"""Share of the clusters of states in which one operation alone was chosen, at most."""

CLUSTERS, LOOKED_AT, LEAST_ROWS = 64, 20_000, 10
"""Clusters, decisions that are looked at for them, and how many of these a cluster must have to count."""

SEED, STREAM = 0, 0xC105
"""Of the draw of the decisions that are looked at."""


class Variety(NamedTuple):
    """How varied the decisions of a dataset are.

    Attributes:
      shares: of all decisions, by the name of the operation that was chosen.
      entropy: of that mix, nats.
      clusters: of states, with enough decisions to count.
      uniform: how many of them know one operation alone.
    """

    shares: dict[str, float]
    entropy: float
    clusters: int
    uniform: int

    def errors(self) -> list[str]:
        """What is wrong, a line each; none where all is well."""
        found = [
            f"{name} is {100 * share:.2g} % of the decisions; expected {100 * LEAST_SHARE:g} % or more"
            for name, share in self.shares.items()
            if share < LEAST_SHARE
        ]
        if self.entropy < LEAST_ENTROPY:
            found.append(f"the mix of operations has {self.entropy:.2g} nats; expected {LEAST_ENTROPY} or more")
        if self.uniform > MOST_UNIFORM * self.clusters:
            found.append(
                f"{self.uniform} of {self.clusters} clusters of states know one operation alone; expected "
                f"{100 * MOST_UNIFORM:g} % of them or fewer"
            )
        return found


def variety(episodes: Episodes) -> Variety:
    """How varied the decisions of a dataset are, as they were chosen, whether or not they were carried out.

    Clusters are the cells of ``CLUSTERS`` observations drawn from the dataset: a state belongs to the one that is
    nearest in the squared distance of the columns.
    """
    codec = from_table(episodes.manifest.facts["interface"]).codec
    op = codec.op[episodes.read("action")]
    counted = torch.stack([(op == int(kind)).sum() for kind in codec.ops])
    shares = (counted.double() / max(1, int(counted.sum()))).tolist()
    rows = drawn(episodes.steps)
    seen = episodes.read("observation", rows)
    cells = torch.cdist(seen, seen[:CLUSTERS]).argmin(1)
    table = torch.zeros(CLUSTERS, len(codec.ops), dtype=torch.int64)
    place = torch.searchsorted(torch.tensor(list(map(int, codec.ops))), op[rows])
    table.index_put_((cells, place), torch.ones_like(cells), accumulate=True)
    counts = table.sum(1) >= LEAST_ROWS
    return Variety(
        shares={kind.name: share for kind, share in zip(codec.ops, shares, strict=True)},
        entropy=mix_entropy(counted.unsqueeze(0)),
        clusters=int(counts.sum()),
        uniform=int((((table > 0).sum(1) == 1) & counts).sum()),
    )


def drawn(steps: int) -> Tensor:
    """Rows that are looked at, int64 [n], in random order; all where they are few."""
    key = rng.fold_in(rng.key(SEED), STREAM)
    if steps <= LOOKED_AT:
        return rng.permutation(key, steps)
    return (rng.bits(key, (LOOKED_AT,)) * steps) >> 32
