"""How long a change of structure takes: ``python -m bench.latency``.

Surgery on a host of ten layers: the operation (checks, structure, state), what is compiled for the new structure, and
the first step and a later one behind it; and orchestration, from a state to that in which its decision has been carried
out, warm. One thread.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import esper
from esper.kasmina import arena, lifecycle
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.runtime.operate import operate, samples_of
from esper.runtime.policies import orchestrator_of
from esper.runtime.tasks import digits
from esper.tamiyo.orchestration import SlotStrategy
from esper.tamiyo.orchestration_policy import orchestration_policy
from esper.tamiyo.policies import Policy, PolicyInput
from esper.tezzeret.surgery import AddSkip, InsertLayer, ModifyLayer, Operation, RemoveLayer, SurgeryRules
from esper.tolaria import operating
from esper.utils import rng

OPS = (
    InsertLayer("new", "8"),
    RemoveLayer("8"),
    ModifyLayer("8", width=12),
    ModifyLayer("8", width=12, start="zero"),
    ModifyLayer("8", kernel=5),
    AddSkip("2", "12"),
)
"""On layers by their places in ``deep``."""

RULES = SurgeryRules(topology=True, accuracy_loss=101.0, growth=9.0)
"""Nothing is refused for its time or its effect."""


def deep() -> nn.Module:
    """Nine convolutions and a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 10))


def spread(seconds: Sequence[float]) -> str:
    """Median and 95th percentile, in ms."""
    found = torch.tensor(sorted(seconds), dtype=torch.float64) * 1e3
    return f"median {found.quantile(0.5):.1f}, p95 {found.quantile(0.95):.1f} ms"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def surgery(num_envs: int, ops: Sequence[Operation] = OPS * 5) -> None:
    """Operations one by one, each on the same state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noqa: TID251 (torch's layers draw from its global generator)
        host = esper.host(deep(), torch.zeros(2, 1, 8, 8), ())
    engine = esper.make(digits()._replace(host=host), num_envs, slots=(), steps_per_epoch=1, val_samples=64)
    state, wait = engine.init(0), torch.zeros(num_envs, dtype=torch.int64)
    engine.step(state, wait)
    taken, compiled, first, later = list[float](), list[float](), list[float](), list[float]()
    for op in ops:
        seconds, (other, grown, report) = timed(partial(operate, engine, state, op, RULES))
        if not report.done:
            raise SystemExit(f"{op}: {report}")
        values = partial(operating.operate, engine.structure, state, op, samples_of(engine), RULES)
        taken.append(timed(values)[0])
        compiled.append(seconds - taken[-1])
        first.append(timed(partial(other.step, grown, wait))[0])
        later.append(timed(partial(other.step, grown, wait))[0])
    print(f"surgery on ten layers, {num_envs} environments, {len(taken)} operations: {spread(taken)}")
    print(f"compiling the new structure for {other.backend.name}: {spread(compiled)}")
    print(f"the first step behind it on {other.backend.name}: {spread(first)}; a later one: {spread(later)}")


def orchestration(num_envs: int, repeats: int = 40) -> None:
    """Decisions on a state with seeds of several ages."""
    engine = esper.make("digits", num_envs, steps_per_epoch=2, val_samples=64, retarget=True)
    fixed, state = orchestrator_of(engine), engine.init(0)
    grower = orchestration_policy(SlotStrategy.DIVERSIFY, fixed)
    agenda = grower.init(num_envs)
    for epoch in range(12):
        agenda, decision = grower.act(agenda, seen_in(engine, state, epoch))
        state, _ = engine.step(state, decision.action)
    for strategy in SlotStrategy:
        policy = orchestration_policy(strategy, fixed)
        fresh, taken = policy.init(num_envs), []
        for epoch in range(repeats):
            taken.append(timed(partial(carried, engine, state, policy, fresh, epoch))[0])
        print(f"orchestration, {num_envs} environments, {strategy.value}: {spread(taken[3:])}")


def seen_in(engine: esper.Engine, state: esper.State, epoch: int) -> PolicyInput:
    """What a policy sees of a state; strategies read no columns."""
    key = rng.fold_in(rng.key(epoch).expand(len(state.key), 2), torch.arange(len(state.key)))
    return PolicyInput(state, torch.zeros(len(state.key), 0), engine.mask(state), key)


def carried(engine: esper.Engine, state: esper.State, policy: Policy, agenda: Any, epoch: int) -> object:
    """A decision, and the state that it leads to, ready to be trained."""
    _, decision = policy.act(agenda, seen_in(engine, state, epoch))
    accuracy = state.signals.val_accuracy
    slots, _ = lifecycle.apply_action(engine.structure, engine.hypers, state.slots, decision.action, accuracy)
    table = take_table(slots)
    plan = engine.backend.plan(table, state.key.device)
    return plan, arena.init_seeds(engine.structure, table, learners_of(state), state.key, state.epoch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count in (1, 4):
        surgery(count)
    for count in (1, 64):
        orchestration(count)
