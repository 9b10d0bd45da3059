"""Training a contender with many initialisations at every rate, and what came of it at the best one."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import esper
from bench.frontier_contenders import Contender
from bench.frontier_flops import Spent, nothing, step_flops
from esper.engine import Engine
from esper.kasmina.structure import seed_sizes
from esper.leyline.stages import MERGED, is_in
from esper.leyline.state import State
from esper.runtime.tasks import Task
from esper.tamiyo.policies import Policy, PolicyInput
from esper.utils import rng

DRAWS = 0xF407
"""Folded into the seed for the policies' own draws."""


class Study(NamedTuple):
    """What all contenders have in common.

    Attributes:
      task: whose data.
      envs: initialisations N of each.
      epochs: decisions, of as many SGD steps each as the task says.
      rates: on offer.
      seed: of the initialisations; equal for all, so that number i sees the same minibatches everywhere.
      backend: how networks are run.
    """

    task: Task
    envs: int
    epochs: int
    rates: tuple[float, ...]
    seed: int
    backend: str


class Played(NamedTuple):
    """Networks at the end, [M] each unless said."""

    params: Tensor  # float64; host and merged seeds, the network that is tested
    curve: Tensor  # [T, M]; validation accuracy in pp after every epoch
    test: Tensor  # pp
    test_loss: Tensor  # nats
    spent: Spent  # of the whole run

    def rows(self, index: slice) -> "Played":
        """Some of the networks."""
        spent = Spent(*(part[index] for part in self.spent))
        return Played(self.params[index], self.curve[:, index], self.test[index], self.test_loss[index], spent)


class Point(NamedTuple):
    """A contender at its best rate, by validation; N initialisations."""

    name: str
    kind: str
    rate: float | None
    rates: dict[float, float]  # mean validation accuracy by rate, pp
    played: Played
    seconds: float  # of training at all rates
    partner: str = ""

    @property
    def late_gain(self) -> float | None:
        """Mean validation accuracy gained in the last fifth of the epochs, pp: small if the horizon is long enough."""
        curve = self.played.curve.mean(1)
        fifth = max(1, round(curve.shape[0] / 5))
        return float(curve[-1] - curve[-1 - fifth]) if curve.shape[0] > fifth else None


def make_engine(contender: Contender, study: Study, rates: Sequence[float]) -> Engine:
    """An engine of every rate with N initialisations: environment r N + i has rate r and the numbers of i."""
    every = torch.tensor(rates).repeat_interleave(study.envs)
    settings = contender.task.settings | {"host_lr": every, "seed_lr": every, "horizon": study.epochs}
    return esper.make(contender.task._replace(settings=settings), every.shape[0], backend=study.backend)


def init(engine: Engine, study: Study) -> State:
    """Fresh states, initialisations repeated for every rate."""
    repeats = engine.config.num_envs // study.envs
    return engine.init(study.seed, torch.arange(study.envs).repeat(repeats))


def epochs_of(
    engine: Engine, state: State, policy: Policy, epochs: int, seed: int = 0
) -> Iterator[tuple[State, Tensor, State]]:
    """Play some epochs: of each the state before, the action [E] and the state after."""
    count = state.batch_size[0]
    memory = policy.init(count)
    keys = rng.fold_in(rng.fold_in(rng.key(seed), DRAWS), torch.arange(count))
    for number in range(epochs):
        seen = PolicyInput(state, engine.observe(state), engine.mask(state), rng.fold_in(keys, number))
        memory, decision = policy.act(memory, seen)
        before, (state, _) = state, engine.step(state, decision.action)
        yield before, decision.action, state


def advance(engine: Engine, state: State, policy: Policy, epochs: int, seed: int = 0) -> tuple[State, Tensor, Spent]:
    """Play some epochs.

    Returns:
      state, validation accuracy [epochs, E] in pp, and what it cost.
    """
    spent, curve = nothing(state.batch_size[0]), list[Tensor]()
    for before, action, after in epochs_of(engine, state, policy, epochs, seed):
        spent, state = spent.plus(step_flops(engine, before, action)), after
        curve.append(state.signals.val_accuracy.double())
    return state, torch.stack(curve), spent


def judged(engine: Engine, state: State, curve: Tensor, spent: Spent) -> Played:
    """The networks as they stand: the one look at the test part."""
    merged = is_in(state.slots.stage, MERGED)
    seeds = torch.where(merged, seed_sizes(engine.structure, state.slots), 0).sum(1)
    found = engine.test(state)
    params = engine.structure.host.num_params + seeds.double()
    return Played(params, curve, found.accuracy.double(), found.loss.double(), spent)


def best(contender: Contender, study: Study, played: Played, seconds: float) -> Point:
    """The rate with the highest mean validation accuracy at the end; M = rates x N."""
    by_rate = played.curve[-1].reshape(len(study.rates), study.envs).mean(1).nan_to_num(nan=-1.0)
    chosen = int(by_rate.argmax())
    own = played.rows(slice(chosen * study.envs, (chosen + 1) * study.envs))
    rates = dict(zip(study.rates, by_rate.tolist(), strict=True))
    return Point(contender.name, contender.kind, study.rates[chosen], rates, own, seconds, contender.partner)


def play(contender: Contender, study: Study) -> Point:
    """Train a contender at every rate, and choose."""
    begun = time.perf_counter()
    engine = make_engine(contender, study, study.rates)
    state = contender.start(engine, init(engine, study))
    state, curve, spent = advance(engine, state, contender.policy(engine.codec), study.epochs, study.seed)
    played = judged(engine, state, curve, spent)
    return best(contender, study, played, time.perf_counter() - begun)


def play_run(engine: Engine, policy: Policy, study: Study, name: str, kind: str) -> Point:
    """An engine of N environments with numbers of its own, such as that of a training run, under its policy."""
    begun = time.perf_counter()
    state, curve, spent = advance(engine, init(engine, study), policy, study.epochs, study.seed)
    played = judged(engine, state, curve, spent)
    return Point(name, kind, None, {}, played, time.perf_counter() - begun)
