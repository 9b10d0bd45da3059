"""What one would do without growing, in the same environments: one static network, or a search over sizes.

Static networks learn what the hosts of a scene learn: the same samples, labels, rates and prices, environment by
environment. Parameters beyond those of the scene's host count as added, so that J has one meaning.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.book import GIGA, Page
from bench.frontier_flops import step_flops
from bench.frontier_play import epochs_of
from esper.kasmina.host import Host
from esper.leyline.state import validated
from esper.runtime.scene import Scene
from esper.runtime.scripts import waiting
from esper.runtime.yardsticks import STATIC, static_engine
from esper.simic.utility import own_price, utility

LOST = -1e9
"""J of a network that was never validated, below that of any other."""


class Course(NamedTuple):
    """A static network in E environments, after every one of T epochs.

    Attributes:
      host: its name.
      added: parameters beyond those of the scene's host, [E].
      seen, tested: accuracy on validation and on test samples, pp, float64 [T, E].
      seen_utility, tested_utility: J by them, pp, float64 [T, E].
      gflops: what an epoch of training costs, [E].
    """

    host: str
    added: Tensor
    seen: Tensor
    tested: Tensor
    seen_utility: Tensor
    tested_utility: Tensor
    gflops: Tensor


def course(scene: Scene, host: Host, seed: int) -> Course:
    """Train a static network in the environments of a seed; the test part is read after every epoch, for the record."""
    engine, grows = static_engine(scene, host), scene.engine.structure.host.num_params
    state, horizon = engine.init(seed), engine.config.horizon
    added = torch.full((engine.config.num_envs,), float(host.num_params - grows), dtype=torch.float64)
    price = own_price(scene.params.price, state).double()
    seen, tested = list[Tensor](), list[Tensor]()
    for before, action, after in epochs_of(engine, state, waiting(engine), horizon):
        if not seen:
            spent = step_flops(engine, before, action).training / GIGA
        seen.append(validated(after.signals)[0].double())
        tested.append(engine.test(after).accuracy.double())
    curves = torch.stack(seen), torch.stack(tested)
    worth = (utility(curve, added, grows, price) for curve in curves)
    return Course(f"{STATIC} {host.name}", added, *curves, *worth, spent)


def halved(courses: Sequence[Course], last: int) -> tuple[Tensor, Tensor]:
    """Successive halving over sizes, in every environment by itself (Jamieson and Talwalkar 2016).

    All sizes begin; of K halvings the k-th comes after ``last / 2^(K - k + 1)`` epochs and keeps the better half by J
    on validation samples; the one that is left goes on to epoch ``last``.

    Args:
      courses: N networks in the same E environments.
      last: epochs of the one that is kept, in 1 to T.

    Returns:
      which is kept, int64 [E]; and what all of them cost, GFLOP, float64 [E].
    """
    seen = torch.stack([each.seen_utility for each in courses]).nan_to_num(nan=LOST)
    cost, left = torch.stack([each.gflops for each in courses]), len(courses)
    alive = torch.ones_like(cost, dtype=torch.bool)
    spent, done = torch.zeros_like(cost[0]), 0
    halvings = math.ceil(math.log2(left)) if left > 1 else 0
    for number in range(halvings, 0, -1):
        rung, left = max(1, round(last / 2**number)), math.ceil(left / 2)
        spent, done = spent + (alive * cost).sum(0) * (rung - done), rung
        ranked = torch.where(alive, seen[:, rung - 1], -torch.inf).argsort(dim=0, descending=True, stable=True)
        alive = torch.zeros_like(alive).scatter(0, ranked[:left], True)
    return alive.long().argmax(0), spent + (alive * cost).sum(0) * (last - done)


def affordable(courses: Sequence[Course], budget: float) -> int:
    """Most epochs of the one kept by ``halved`` such that a mean environment costs at most a budget in GFLOP; 0 if
    none.
    """
    horizon = courses[0].seen.shape[0]
    return max((last for last in range(1, horizon + 1) if float(halved(courses, last)[1].mean()) <= budget), default=0)


def as_page(name: str, courses: Sequence[Course], which: Tensor, last: int, gflops: Tensor) -> Page:
    """The networks of a choice, int64 [E], after some epochs, as a page; nobody decided anything for a reward."""

    def taken(column: str) -> Tensor:
        return torch.stack([getattr(each, column)[last - 1] for each in courses]).gather(0, which[None])[0]

    added = torch.stack([each.added for each in courses]).gather(0, which[None])[0]
    none = torch.zeros_like(added)
    facts = {"epochs": last, "chosen": {each.host: int((which == n).sum()) for n, each in enumerate(courses)}}
    unpaid = torch.full_like(added, torch.nan)
    return Page(name, taken("tested"), taken("seen"), taken("tested_utility"), unpaid, added, none, gflops, facts)


def always(courses: Sequence[Course], chosen: int) -> Page:
    """One size everywhere, after all epochs."""
    one = courses[chosen]
    horizon, envs = one.seen.shape
    return as_page(one.host, courses, torch.full((envs,), chosen), horizon, one.gflops * horizon)


def searched(courses: Sequence[Course], last: int) -> Page:
    """The sizes that ``halved`` keeps."""
    which, spent = halved(courses, last)
    return as_page(f"{STATIC}, halving over {len(courses)} sizes, {last} epochs", courses, which, last, spent)
