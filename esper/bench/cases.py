"""The table of cases."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from esper.bench import gates, learning, start
from esper.bench.case import SEED, Bench, Case, Trial
from esper.bench.memory import counterfactual_memory, step_memory, train_memory, validation_memory
from esper.bench.scenes import Seeds, plain_task, seeded
from esper.bench.work import NO_WORK, Work, evaluation_work, step_work, train_work
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.lanes import Lanes, LaneSlot
from esper.kasmina.structure import Structure
from esper.kasmina.plan import Plan, by_blueprint, make_plan, plan_slot, take_census
from esper.leyline.actions import Blend
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.leyline.state import State
from esper.runtime.compilation import warm_up
from esper.runtime.tasks import Task
from esper.tamiyo.baselines import random_legal
from esper.tolaria.evaluation import evaluate, lane_scores
from esper.tolaria.training import gather, scatter, train_epoch
from esper.utils import rng

WALK = 200
"""Random-action steps over which compilations and synchronisations are counted."""

SHARES = (10, 50, 100)
"""Per cent of the slots that are active."""

PERMANENT = (Stage.FOSSILIZED,)
UNGATED = (Blend.LINEAR,)


def _census(trial: Trial) -> Any:
    return take_census(trial.state.slots)


def _train_trial(engine: Any, state: State) -> Trial:
    plan = make_plan(engine.network, state.slots)
    return Trial(lambda: train_epoch(engine.network, engine.hypers, state, plan, engine.data), engine, state)


def _step_trial(engine: Any, state: State) -> Trial:
    wait = torch.zeros(engine.config.num_envs, dtype=torch.int64, device=state.key.device)
    return Trial(lambda: engine.step(state, wait), engine, state)


def _host(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    return _train_trial(engine, engine.init(SEED))


def _slot(kind: int, bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    return _train_trial(engine, seeded(engine, 1.0, Seeds((kind,), PERMANENT, UNGATED), SEED))


def _plain(blueprint: Blueprint | None, bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs, plain_task(bench.task, bench.task.settings["slots"], blueprint))
    return _train_trial(engine, engine.init(SEED))


def _step(share: float, kinds: tuple[int, ...] | None, bench: Bench, envs: int) -> Trial:
    """An environment step; without ``kinds``, all blueprints and all blends."""
    engine = bench.engine(envs)
    blends = engine.config.blends if kinds is None else UNGATED
    every = tuple(range(len(engine.network.blueprints))) if kinds is None else kinds
    return _step_trial(engine, seeded(engine, share, Seeds(every, ACTIVE, blends), SEED))


def _merged(engine: Any) -> State:
    """All slots seeded with all blueprints, in all stages that change the output."""
    every = tuple(range(len(engine.network.blueprints)))
    return seeded(engine, 1.0, Seeds(every, MERGED, engine.config.blends), SEED)


def _counterfactual(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    state = _merged(engine)
    census = take_census(state.slots)
    return Trial(lambda: evaluate(engine.network, engine.hypers, state, census, engine.data), engine, state)


def trunk(network: Network, state: State) -> Lanes:
    """The environments as they are, without a lane that measures anything."""
    census, device = take_census(state.slots), state.key.device
    envs = np.arange(network.config.num_envs)
    merged, slots = census.within(MERGED), []
    for slot in range(network.config.num_slots):
        through = by_blueprint(census, slot, envs[merged[:, slot]], envs)
        plan = plan_slot(census, slot, through, through, np.ones(through.shape, dtype=bool), device)
        no = torch.zeros_like(plan.training)
        here = torch.as_tensor(envs, device=device)
        slots.append(LaneSlot(None, here, plan._replace(training=no, isolated=no), no))
    nothing = np.zeros_like(envs)
    return Lanes(tuple(slots), envs, nothing, nothing - 1, nothing.astype(bool), merged)


def _validation(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    state = _merged(engine)

    def run() -> Any:
        return lane_scores(engine.network, engine.hypers, state, trunk(engine.network, state), engine.data)

    return Trial(run, engine, state)


def _dispatch(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    every = tuple(range(len(engine.network.blueprints)))
    state = seeded(engine, 1.0, Seeds(every, ACTIVE, engine.config.blends), SEED)

    def run() -> tuple[Plan, State]:
        plan = make_plan(engine.network, state.slots)
        return plan, scatter(engine.network, state, plan, gather(engine.network, state, plan))

    return Trial(run, engine, state)


def _reset(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    state = _merged(engine)
    fresh = torch.arange(envs, device=state.key.device) % 2 == 0
    return Trial(lambda: engine.reset(state, fresh, SEED + 1), engine, state, (fresh, SEED + 1))


def _walk(bench: Bench, envs: int) -> Trial:
    """One more step of an endless walk of random legal actions; everything is compiled before it begins."""
    engine = bench.engine(envs)
    if bench.compile:
        warm_up(engine.network, engine.data)
    start, policy = engine.init(SEED), random_legal(engine.codec)
    keys = rng.fold_in(rng.key(SEED).to(start.key.device), torch.arange(envs, device=start.key.device))
    place, count = [start], [0]

    def run() -> Any:
        action = policy(engine.mask(place[0]), rng.fold_in(keys, count[0]))
        place[0], event = engine.step(place[0], action)
        count[0] += 1
        return event

    return Trial(run, engine, start)


def _moved_state(trial: Trial) -> Work:
    """Old and fresh state read, the result written."""
    return NO_WORK._replace(bytes=3 * sum(leaf.nbytes for leaf in trial.state.values(True, True)))


def _moved_rows(trial: Trial) -> Work:
    """The seeds' arena read and written when gathered, and again when scattered."""
    return NO_WORK._replace(bytes=4 * sum(leaf.nbytes for leaf in trial.state.seeds.values(True, True)))


def _training(trial: Trial) -> Work:
    return train_work(trial.engine, _census(trial))


def _stepping(trial: Trial) -> Work:
    return step_work(trial.engine, _census(trial))


def _walking(trial: Trial) -> Work:
    """Its seeds differ from step to step, so only the steps are counted."""
    return NO_WORK._replace(env_steps=trial.engine.config.num_envs)


def _evaluating(forks: bool) -> Callable[[Trial], Work]:
    return lambda trial: evaluation_work(trial.engine, _census(trial), forks)


def _step_case(name: str, share: float, kinds: tuple[int, ...] | None, what: str) -> Case:
    unit = f"environment step of E environments, {what}"
    return Case(f"env-step-{name}", unit, partial(_step, share, kinds), gates.step_gate, _stepping, memory=step_memory)


def _blueprint_cases(kind: int, blueprint: Blueprint) -> tuple[Case, ...]:
    name, prepare = blueprint.name, partial(_slot, kind)
    slot, plain = f"an epoch of SGD steps, every slot a permanent {name}", f"the same modules, {name}, in a plain host"
    return (
        _step_case(name, 1.0, (kind,), f"every slot a {name}"),
        Case(f"slot-{name}", slot, prepare, gates.epoch_gate, _training, memory=train_memory),
        Case(f"plain-{name}", plain, partial(_plain, blueprint), gates.epoch_gate, _training),
    )


def _epoch_cases() -> tuple[Case, ...]:
    dormant, without = "an epoch of SGD steps, every slot dormant", "an epoch of SGD steps of the host without slots"
    return (
        Case("host-step", dormant, _host, gates.epoch_gate, _training, memory=train_memory),
        Case("plain-host", without, partial(_plain, None), gates.epoch_gate, _training, memory=train_memory),
    )


def _evaluation_cases() -> tuple[Case, ...]:
    own, more = "validation, every slot merged, all blueprints", "the same, with every slot's contribution"
    checks = (gates.validation_gate, gates.evaluation_gate)
    return (
        Case("validation", own, _validation, checks[0], _evaluating(False), memory=validation_memory),
        Case("counterfactual", more, _counterfactual, checks[1], _evaluating(True), memory=counterfactual_memory),
    )


def _walk_case() -> Case:
    """Compiled beforehand, which is what ``cold-start`` measures; so no fresh process looks at it."""
    unit = "environment step of random legal actions"
    return Case("random-walk", unit, _walk, gates.walk_gate, _walking, counted=WALK, probed=False)


def cases_of(task: Task) -> dict[str, Case]:
    """All cases of a task by name; some exist once per blueprint that fits every slot."""
    sites = [task.host.sites[stage] for stage in task.settings["slots"]]
    fitting = [(k, b) for k, b in enumerate(task.blueprints) if all(site.kind in b.kinds for site in sites)]
    last = (fitting[-1][0],)
    fixed = (
        *_epoch_cases(),
        _step_case("dormant", 0.0, last, "every slot dormant"),
        *(_step_case(f"{p}", p / 100, last, f"{p} % of the slots a {fitting[-1][1].name}") for p in SHARES),
        *(_step_case(f"mixed-{p}", p / 100, None, f"{p} % of the slots, all blueprints") for p in SHARES),
        *_evaluation_cases(),
        Case("dispatch", "plan, gather and scatter, all slots mixed", _dispatch, gates.dispatch_gate, _moved_rows),
        Case("reset", "every second environment started anew", _reset, gates.reset_gate, _moved_state),
        _walk_case(),
        *learning.CASES,
        *start.CASES,
    )
    grown = (case for kind, blueprint in fitting for case in _blueprint_cases(kind, blueprint))
    return {case.name: case for case in (*fixed, *grown)}
