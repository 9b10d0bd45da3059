"""The table of cases."""

from functools import partial
from typing import Any

import torch

from esper.bench import fresh, gates, learning, replay, side_by_side, telemetry
from esper.bench.case import SEED, Bench, Case, Trial, mixed, seeded
from esper.kasmina.counterfactuals import no_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, MERGED
from esper.runtime.task import Task
from esper.tamiyo.baselines import random_legal
from esper.tolaria.evaluation import evaluate
from esper.tolaria.training import train_epoch
from esper.utils import rng

WALK = 200
"""Random-action steps over which compilations and synchronisations are counted."""

SHARES = (10, 50, 100)
"""Per cent of the slots that are active."""


def _host(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    state = engine.init(SEED)
    plan = engine.backend.plan(take_table(state.slots), bench.device)
    arguments = (engine.config, engine.backend, engine.hypers, state, plan, engine.data)
    return Trial(torch.no_grad()(lambda: train_epoch(*arguments)), engine, state)


def _step(share: float, kinds: tuple[int, ...] | None, bench: Bench, envs: int) -> Trial:
    """An environment step, without gradients of it, as in a rollout; without ``kinds``, all blueprints and blends."""
    engine = bench.engine(envs)
    state = mixed(engine, share, ACTIVE) if kinds is None else seeded(engine, share, kinds, ACTIVE, (Blend.LINEAR,))
    wait = torch.zeros(envs, dtype=torch.int64, device=bench.device)
    return Trial(torch.no_grad()(lambda: engine.step(state, wait)), engine, state)


def _validation(contributions: bool, bench: Bench, envs: int) -> Trial:
    """All slots seeded with all blueprints, in all stages that change the output."""
    engine = bench.engine(envs)
    state = mixed(engine, 1.0, MERGED)
    table = take_table(state.slots)
    plan, slots = engine.backend.plan(table, bench.device), engine.config.num_slots
    if contributions:
        return Trial(lambda: evaluate(engine.backend, engine.hypers, state, table, plan, engine.data), engine, state)
    arguments = (
        engine.hypers,
        plan,
        learners_of(state),
        state.slots.alpha,
        engine.data.validation.samples,
        no_changes(slots),
    )
    return Trial(lambda: engine.backend.evaluate(*arguments), engine, state)


def _walk(bench: Bench, envs: int) -> Trial:
    """One more step of an endless walk of random legal actions; the gate's step compiles whatever is to be compiled."""
    engine = bench.engine(envs)
    start, policy = engine.init(SEED), random_legal(engine.codec)
    keys = rng.fold_in(rng.key(SEED).to(start.key.device), torch.arange(envs, device=start.key.device))
    place, count = [start], [0]

    @torch.no_grad()
    def run() -> Any:
        action = policy(engine.mask(place[0]), rng.fold_in(keys, count[0]))
        place[0], event = engine.step(place[0], action)
        count[0] += 1
        return event

    return Trial(run, engine, start)


def _step_case(name: str, share: float, kinds: tuple[int, ...] | None, what: str) -> Case:
    unit = f"environment step of E environments, {what}"
    return Case(f"env-step-{name}", unit, partial(_step, share, kinds), gates.step_gate)


def cases_of(task: Task) -> dict[str, Case]:
    """All cases of a task by name; ``env-step-*`` exists for every blueprint."""
    last = (len(task.blueprints) - 1,)
    heaviest, dormant = task.blueprints[-1].name, "an epoch of SGD steps, every slot dormant"
    merged = "validation, every slot merged, all blueprints"
    fixed = (
        Case("host-step", dormant, _host, gates.epoch_gate),
        _step_case("dormant", 0.0, last, "every slot dormant"),
        *(_step_case(f"{p}", p / 100, last, f"{heaviest} in {p} % of the slots") for p in SHARES),
        *(_step_case(f"mixed-{p}", p / 100, None, f"all blueprints in {p} % of the slots") for p in SHARES),
        *(_step_case(b.name, 1.0, (k,), f"{b.name} in every slot") for k, b in enumerate(task.blueprints)),
        Case("validation", merged, partial(_validation, False), gates.scores_gate),
        Case(
            "contributions",
            "the same, with every slot's contribution",
            partial(_validation, True),
            gates.evaluation_gate,
        ),
        Case("random-walk", "environment step of random legal actions", _walk, gates.walk_gate, counted=WALK),
        learning.ROUND,
        replay.REPLAY,
        side_by_side.CASE,
        *telemetry.CASES,
        *fresh.CASES,
    )
    return {case.name: case for case in fixed}
