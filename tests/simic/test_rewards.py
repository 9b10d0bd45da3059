"""Rewards: an independent rendering in plain Python, shaping that telescopes, bounds, and what cannot be gamed."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.kasmina.structure import seed_sizes
from esper.leyline.actions import Op
from esper.leyline.codes import Verdict
from esper.leyline.config import ConfigError, Precision
from esper.leyline.events import ActionResult, Judgement, Transition
from esper.leyline.hypers import numbers
from esper.leyline.stages import FAILURE, LIVE, Stage
from esper.simic.rewards import TERMS, RewardMode, RewardParams, bound, build_reward_params, potential, reward
from esper.utils import rng

_spec = importlib.util.spec_from_file_location("reward_cases", Path(__file__).parents[1] / "laws" / "cases.py")
cases = importlib.util.module_from_spec(_spec)
sys.modules["reward_cases"] = cases
_spec.loader.exec_module(cases)

cases.OP_PREFERENCE = torch.tensor([0.0, 1.0, 2.5, -1.0, 1.5, -1.5])

E, LENGTH, GAMMA = 8, 26, 0.995
SHAPED = RewardMode.SHAPED
EXACT = {"rtol": 0.0, "atol": 1e-9}


class Leg(NamedTuple):
    """One step of a trajectory."""

    before: object
    after: object
    event: Transition
    fresh: torch.Tensor  # bool [E]; the state before is that of a new episode


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64, auto_advance=False)


@pytest.fixture(scope="module")
def params(engine):
    return build_reward_params({}, engine.config)


def poisoned(state, env):
    bad = state.host.params.clone()
    bad[env] = torch.nan
    return state.replace(host=state.host.replace(params=bad))


@pytest.fixture(scope="module")
def legs(engine):
    """A random legal walk with everything that may happen: culls by all causes, rollbacks, refusals, resets."""
    state, out = engine.init(5), []
    fresh = torch.ones(E, dtype=torch.bool)
    for index in range(LENGTH):
        before = state
        if index in (6, 17):
            state = poisoned(state, index % E)
        action = cases.random_legal(engine, state, rng.key(11))
        if index % 5 == 2:
            action[3] = engine.codec.size + 4
        state, event = engine.step(state, action)
        out.append(Leg(before, state, event, fresh))
        fresh = state.epoch >= engine.config.horizon
        if index == 8:
            fresh = fresh | (torch.arange(E) < 2)
        state = engine.reset(state, fresh, seed=100 + index)
    return out


def paid(mode, params, engine, leg):
    return reward(mode, params, engine.structure, leg.before, leg.after, leg.event)


def test_the_walk_holds_what_it_should(legs):
    causes = {int(op) for leg in legs for op in leg.event.result.op}
    assert causes == set(map(int, Op)) - {Op.RETARGET}  # which is there only if asked for
    assert sum(int(leg.event.judgement.rolled_back.sum()) for leg in legs) == 2
    assert any(bool(leg.event.judgement.culled.any()) for leg in legs)
    assert any(bool((leg.event.result.refusal != 0).any()) for leg in legs)
    by_clock = [
        (life.before == int(Stage.PROBATIONARY)) & (life.after == int(Stage.CULLED))
        for life in (leg.event.life for leg in legs)
    ]
    assert any(bool(each.any()) for each in by_clock)
    assert any(bool((leg.after.slots.stage == int(Stage.FOSSILIZED)).any()) for leg in legs)
    assert sum(int(leg.fresh.sum()) for leg in legs) >= 3 * E


# An independent rendering of the formulas, in plain Python


def scalar_credit(stage, measured, c, gain, birth):
    if stage not in (4, 5, 6, 7) or not measured:
        return 0.0
    c = max(-50.0, min(50.0, c))
    if c < 0:
        return c
    if birth <= 0:
        return 0.5 * c
    if gain <= 0:
        return 0.0
    return math.sqrt(gain * c) if c >= gain else c


def scalar_phi(stage, age):
    entry = {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.5, 5: 4.5, 6: 5.5, 7: 6.0}.get(stage, 0.0)
    most = {2: 0.5, 3: 0.75, 4: 0.5, 5: 0.5, 6: 0.25}.get(stage, 0.0)
    return entry + min(0.3 * age, most)


def scalar_ratio_penalty(a):
    if a["stage"] not in (4, 5, 6) or not a["measured"] or a["c"] <= 1 or a["gain"] < 0:
        return 0.0
    if a["gain"] <= 0.1:
        return -0.3 * min(1.0, a["c"] / 10)
    ratio = a["c"] / a["gain"]
    return -min(0.3, 0.1 * (ratio - 5) / 5) if ratio > 5 else 0.0


def scalar_probation_warning(b, a, op):
    if (b["stage"], a["stage"], op) != (6, 6, 0) or b["stage_age"] < 2:
        return 0.0
    positive = scalar_credit(6, b["measured"], b["c"], b["gain"], b["birth"]) > 0
    ready = positive and b["c"] >= 1 and b["healthy"] and b["in_snapshot"]
    return -min(0.1 + 0.05 * (b["stage_age"] - 2), 0.4) if ready else 0.0


def scalar_culling(b):
    young = -0.3 * max(0.0, 1 - b["age"] / 5)
    return young - (0.3 * min(1.0, b["c"]) + 0.05 * min(50.0, b["c"]) if b["measured"] and b["c"] > 0 else 0.0)


def scalar_fossilization(b, a):
    c = max(-50.0, min(50.0, a["c"])) if a["measured"] else 0.0
    if a["gain"] < 0:
        return -0.5 - min(0.2 * abs(a["gain"]), 1.0) - (0.3 if c > 0.1 and a["gain"] < -0.2 else 0.0)
    return (0.5 + 0.05 * c) * min(1.0, b["stage_age"] / 2) if c >= 1.0 else -0.2


def scalar_slot(b, a, op, acted, sane, left):
    """Terms of one slot, from its fields before and after; ``gain`` is part of the fields, ``left`` the discount of the
    potential, 0 at the horizon."""
    removed = acted and op in (3, 5)
    side, sign = (b, -0.05) if removed else (a, 0.05)
    credit = sign * scalar_credit(side["stage"], side["measured"], side["c"], side["gain"], side["birth"])
    warned = sane and a["stage"] == 4 and a["gain"] < 0
    return {
        "attribution": credit if sane else 0.0,
        "ratio_penalty": scalar_ratio_penalty(a) if sane else 0.0,
        "blending_warning": -0.1 - min(0.05 * a["stage_age"], 0.3) if warned else 0.0,
        "probation_warning": scalar_probation_warning(b, a, op),
        "culling": scalar_culling(b) if removed else 0.0,
        "fossilization": scalar_fossilization(b, a) if acted and op == 4 and sane else 0.0,
        "shaping": 0.3 * (left * scalar_phi(a["stage"], a["stage_age"]) - scalar_phi(b["stage"], b["stage_age"])),
    }


def scalar_fields(state, env, slot):
    names = ("stage", "stage_age", "age", "measured", "healthy", "in_snapshot")
    fields = {name: state.slots[name][env, slot].item() for name in names}
    birth = state.slots.birth_accuracy[env, slot].item()
    gain = state.signals.val_accuracy[env].item() - birth
    return fields | {"c": state.slots.contribution[env, slot].item(), "birth": birth, "gain": gain}


def scalar_reward(engine, before, after, event, env):
    """All terms of the six modes for one environment."""
    host = sum(math.prod(p.shape) for stage in engine.structure.host.blocks for p in stage.params)
    sizes = seed_sizes(engine.structure, after.slots)[env].tolist()
    sane = not event.judgement.rolled_back[env].item()
    op, where = event.result.op[env].item(), event.result.slot[env].item()
    pairs = [(scalar_fields(before, env, s), scalar_fields(after, env, s)) for s in range(len(sizes))]
    last = after.epoch[env].item() >= engine.config.horizon
    left = 0.0 if last else 0.995
    slots = [scalar_slot(b, a, op, s == where, sane, left) for s, (b, a) in enumerate(pairs)]
    out = {name: sum(slot[name] for slot in slots) for name in slots[0]}
    size = math.log(1 + sum(sizes) / max(host, 200))
    out["rent"] = -min(0.1 * size, 1.5)
    out["intervention"] = [0.0, -0.02, -0.01, -0.005, -0.01, -0.025][op]
    out["refusal"] = -0.02 if event.result.refusal[env].item() else 0.0
    out["rollback"] = 0.0 if sane else -2.0
    fossils = sum(a["stage"] == 7 and a["measured"] and a["c"] >= 1 for _, a in pairs)
    out["terminal_accuracy"] = 0.2 * after.signals.val_accuracy[env].item() if last else 0.0
    out["terminal_fossils"] = 3.0 * fossils if last else 0.0
    best = after.signals.best_accuracy[env].item() / 100
    out["sparse"] = max(-1.0, min(1.0, best - 0.1 * size)) if last else 0.0
    out["hasty_cull"] = -0.1 if op in (3, 5) and where >= 0 and pairs[where][0]["age"] < 5 else 0.0
    x = max(-5.0, min(5.0, after.signals.loss_delta[env].item() / 0.1))
    out["loss"] = (x if x > 0 else x / 2) if sane else 0.0
    charged = [n for n, (_, a) in zip(sizes, pairs, strict=True) if a["age"] >= 3 or a["stage"] == 7]
    out["loss_rent"] = -min(0.05 * math.log(1 + sum(charged) / max(host, 200)), 1.5)
    guess = math.log(engine.structure.host.num_outputs)
    way = max(0.0, min(1.0, (guess - after.signals.val_loss[env].item()) / guess))
    out["loss_terminal"] = way if last and after.signals.epochs_seen[env].item() else 0.0
    worth_before, worth_after = (scalar_utility(engine, state, env, host) for state in (before, after))
    out["utility"] = worth_after if last else 0.0
    out["utility_shaping"] = left * worth_after - worth_before
    return out


def scalar_utility(engine, state, env, host):
    if not state.signals.epochs_seen[env].item():
        return 0.0
    added = sum(seed_sizes(engine.structure, state.slots)[env].tolist())
    return state.signals.val_accuracy[env].item() - 1.0 * math.log((host + added) / host)


MODES = {
    "shaped": "attribution ratio_penalty blending_warning probation_warning shaping rent intervention refusal culling "
    "fossilization rollback terminal_accuracy terminal_fossils",
    "simplified": "shaping intervention refusal rollback terminal_accuracy terminal_fossils",
    "sparse": "sparse",
    "minimal": "sparse hasty_cull",
    "loss": "shaping rollback loss loss_rent loss_terminal",
    "utility": "shaping utility utility_shaping",
}


def check_against_scalar(engine, params, before, after, event):
    expected = [scalar_reward(engine, before, after, event, env) for env in range(E)]
    for mode in RewardMode:
        got = reward(mode, params, engine.structure, before, after, event)
        assert list(got.terms) == MODES[mode.value].split()
        for name, term in got.terms.items():
            assert term.shape == (E,) and term.dtype == torch.float64
            worth = term.new_tensor([row[name] for row in expected])
            torch.testing.assert_close(term, worth, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        total = [sum(row[name] for name in got.terms) for row in expected]
        torch.testing.assert_close(got.total, got.total.new_tensor(total), **EXACT)


def check_bounds(engine, params, before, after, event):
    for mode in RewardMode:
        got = reward(mode, params, engine.structure, before, after, event)
        low, high = bound(mode, params, engine.config.num_slots)
        assert bool(torch.isfinite(got.total).all())
        assert bool(((got.total >= low - 1e-9) & (got.total <= high + 1e-9)).all()), mode
        torch.testing.assert_close(got.total, sum(got.terms.values()), **EXACT)
        for name, term in got.terms.items():
            least, most = TERMS[name].bounds(params, engine.config.num_slots)
            assert bool(((term >= least - 1e-9) & (term <= most + 1e-9)).all()), name


def random_state(engine, draw):
    """Any state whose fields lie in their documented ranges, whether or not it can be reached."""
    shape = (E, engine.config.num_slots)
    real = lambda low, high: low + (high - low) * torch.rand(shape, generator=draw, dtype=torch.float64)  # noqa: E731
    whole = lambda low, high: torch.randint(low, high, shape, generator=draw)  # noqa: E731
    state = engine.init(0)
    none = torch.rand(shape, generator=draw) < 0.2
    accuracy = torch.rand(E, generator=draw, dtype=torch.float64) * 100
    contribution = torch.where(whole(0, 2) == 0, real(-100, 100), real(-3, 6))
    near = (accuracy.unsqueeze(1) + torch.where(whole(0, 2) == 0, real(-1, 1), real(-100, 100))).clamp(0, 100)
    slots = state.slots.replace(
        stage=torch.where(whole(0, 2) == 0, whole(0, 11), whole(4, 8)),
        blueprint=torch.where(none, -1, whole(0, len(engine.structure.blueprints))),
        blend=torch.where(none, -1, whole(0, 3)),
        age=whole(0, 20),
        stage_age=whole(0, 12),
        measured=whole(0, 4) > 0,
        healthy=whole(0, 4) > 0,
        in_snapshot=whole(0, 4) > 0,
        contribution=contribution,
        birth_accuracy=torch.where(whole(0, 5) == 0, 0.0, near),
    )
    loss = torch.rand(E, generator=draw, dtype=torch.float64) * 6
    signals = state.signals.replace(
        val_accuracy=accuracy,
        best_accuracy=torch.maximum(accuracy, torch.rand(E, generator=draw, dtype=torch.float64) * 100),
        val_loss=loss,
        loss_delta=torch.randn(E, generator=draw, dtype=torch.float64),
        epochs_seen=torch.randint(0, 3, (E,), generator=draw),
    )
    return state.replace(slots=slots, signals=signals, epoch=torch.randint(9, 14, (E,), generator=draw))


def event_of(op, slot, rolled_back=None, refusal=None):
    """A transition with what the rewards read of it."""
    zero = torch.zeros_like(op)
    bad = torch.zeros_like(op, dtype=torch.bool) if rolled_back is None else rolled_back
    verdict = torch.where(bad, int(Verdict.SPIKE), int(Verdict.CALM))
    result = ActionResult(zero, op, slot, zero if refusal is None else refusal, zero)
    return Transition(result, None, None, None, Judgement(verdict, bad, None))


def random_event(engine, draw):
    op = torch.randint(0, 6, (E,), generator=draw)
    slot = torch.where(op == 0, -1, torch.randint(0, engine.config.num_slots, (E,), generator=draw))
    refusal = torch.where(op == 0, torch.randint(0, 9, (E,), generator=draw), 0)
    return event_of(op, slot, torch.rand(E, generator=draw) < 0.2, refusal)


def test_walk_against_the_scalar_rendering(engine, params, legs):
    for leg in legs:
        check_against_scalar(engine, params, leg.before, leg.after, leg.event)
        check_bounds(engine, params, leg.before, leg.after, leg.event)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**40))
def test_any_pair_of_states_against_the_scalar_rendering(request, seed):
    engine, params = request.getfixturevalue("engine"), request.getfixturevalue("params")
    draw = torch.Generator().manual_seed(seed)
    pair = random_state(engine, draw), random_state(engine, draw), random_event(engine, draw)
    check_against_scalar(engine, params, *pair)
    check_bounds(engine, params, *pair)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**40))
def test_bounds_hold_for_any_numbers(request, seed):
    """Numbers per environment, anywhere in a decade around their defaults."""
    engine = request.getfixturevalue("engine")
    draw = torch.Generator().manual_seed(seed)
    values = {}
    for name, number in numbers(RewardParams).items():
        scale = 10 ** (2 * torch.rand(E, generator=draw, dtype=torch.float64) - 1)
        values[name] = (number.default * scale).clamp(number.low, number.high)
    params = build_reward_params(values, engine.config)
    check_bounds(engine, params, random_state(engine, draw), random_state(engine, draw), random_event(engine, draw))


def test_stated_bounds(engine, params):
    slots = engine.config.num_slots
    stated = {
        RewardMode.SHAPED: (-8.445 - 5.4 * slots, 23 + 7.291 * slots),
        RewardMode.SIMPLIFIED: (-2.045 - 1.8 * slots, 20 + 4.791 * slots),
        RewardMode.SPARSE: (-1.0, 1.0),
        RewardMode.MINIMAL: (-1.1, 1.0),
        RewardMode.LOSS: (-6 - 1.8 * slots, 6 + 1.791 * slots),
        RewardMode.UTILITY: (-188 - 1.8 * slots, 244 + 1.791 * slots),
    }
    for mode, ends in stated.items():
        assert tuple(map(float, bound(mode, params, engine.config.num_slots))) == pytest.approx(ends, abs=1e-9)


# Shaping


def test_potential_rises_along_life_and_is_forfeited(engine):
    stages = [Stage.DORMANT, *LIVE, Stage.FOSSILIZED]
    base = engine.init(0).slots[:1, :1]
    at = lambda stage, age: float(  # noqa: E731
        potential(base.replace(stage=torch.tensor([[int(stage)]]), stage_age=torch.tensor([[age]])))
    )
    entries = [at(stage, 0) for stage in stages]
    assert entries == [0, 1, 2, 3.5, 4.5, 5.5, 6]
    for stage, following in zip(stages, entries[1:], strict=False):
        times = [at(stage, age) for age in range(40)]
        assert times == sorted(times) and times[-1] < following
        assert stage is Stage.DORMANT or times[1] > times[0]
    assert at(Stage.TRAINING, 2) == 2.6
    assert all(at(stage, age) == 0 for stage in (Stage.UNKNOWN, *FAILURE) for age in (0, 1, 9))


@pytest.mark.parametrize("mode", [RewardMode.SHAPED, RewardMode.SIMPLIFIED, RewardMode.LOSS])
def test_shaping_telescopes(engine, params, legs, mode):
    total, power = torch.zeros(E, dtype=torch.float64), torch.ones(E, dtype=torch.float64)
    ended = 0
    for index, leg in enumerate(legs):
        start = potential(leg.before.slots).sum(1)
        total, power = torch.where(leg.fresh, 0.0, total), torch.where(leg.fresh, 1.0, power)
        assert not bool(start[leg.fresh].any())
        total = total + power * paid(mode, params, engine, leg).terms["shaping"]
        power = power * GAMMA
        over = leg.after.epoch >= engine.config.horizon
        expected = torch.where(over, 0.0, 0.3 * power * potential(leg.after.slots).sum(1))
        torch.testing.assert_close(total, expected, **EXACT)
        last = index + 1 == len(legs) or bool(legs[index + 1].fresh.any())
        ended += int(last)
    assert ended >= 3


def test_utility_pays_what_growing_is_for(engine, params, legs):
    """The discounted sum over a whole episode is gamma^(T - 1) J of its end, and nothing else."""
    total, power, checked = torch.zeros(E, dtype=torch.float64), torch.ones(E, dtype=torch.float64), 0
    host = sum(math.prod(p.shape) for stage in engine.structure.host.blocks for p in stage.params)
    for leg in legs:
        total, power = torch.where(leg.fresh, 0.0, total), torch.where(leg.fresh, 1.0, power)
        total = total + power * paid(RewardMode.UTILITY, params, engine, leg).total
        for env in (leg.after.epoch >= engine.config.horizon).nonzero()[:, 0].tolist():
            whole = float(power[env]) * scalar_utility(engine, leg.after, env, host)
            assert float(total[env]) == pytest.approx(whole, abs=1e-9)
            checked += 1
        power = power * GAMMA
    assert checked >= E


def test_entering_a_stage_is_paid(engine, params, legs):
    seen = set()
    for leg in legs:
        term = paid(SHAPED, params, engine, leg).terms["shaping"]
        moved = leg.before.slots.stage != leg.after.slots.stage
        left = GAMMA * (leg.after.epoch < engine.config.horizon).double()
        rises = left.unsqueeze(1) * potential(leg.after.slots) - potential(leg.before.slots)
        other = torch.where(moved, 0.0, rises).sum(1)
        for env, slot in moved.nonzero().tolist():
            if int(moved[env].sum()) > 1:
                continue
            old, new = int(leg.before.slots.stage[env, slot]), int(leg.after.slots.stage[env, slot])
            spent, age = (int(state.slots.stage_age[env, slot]) for state in (leg.before, leg.after))
            expected = 0.3 * (float(left[env]) * scalar_phi(new, age) - scalar_phi(old, spent))
            assert float(term[env] - 0.3 * other[env]) == pytest.approx(expected, abs=1e-9)
            if float(left[env]) and new in (4, 5, 6, 7):
                assert expected > 0.06
            if new in FAILURE and old in LIVE:
                assert expected <= -0.3
            seen.add((Stage(old), Stage(new)))
    assert {(Stage.TRAINING, Stage.BLENDING), (Stage.BLENDING, Stage.SHADOWING)} <= seen
    assert (Stage.PROBATIONARY, Stage.FOSSILIZED) in seen
    assert any(old in LIVE and new in FAILURE for old, new in seen)


# What cannot be gamed


@pytest.mark.parametrize("epochs", [1, 3])
def test_germinating_and_culling_earns_nothing(small_task, epochs):
    """With the real engine, for every blueprint: culled at once, or after some epochs of training."""
    kinds = len(small_task.blueprints)
    engine = esper.make(small_task, kinds, backend="eager", precision=Precision.FLOAT64, auto_advance=False, horizon=50)
    params, codec = build_reward_params({}, engine.config), engine.codec
    first = [
        next(i for i, a in enumerate(codec.actions) if (a.op, a.slot, a.blueprint) == (Op.GERMINATE, 0, kind))
        for kind in range(kinds)
    ]
    wait = torch.zeros(kinds, dtype=torch.int64)
    cull = torch.full_like(wait, next(i for i, a in enumerate(codec.actions) if (a.op, a.slot) == (Op.CULL, 0)))
    state, _ = engine.step(engine.init(1), wait)
    for mode in (RewardMode.SHAPED, RewardMode.SIMPLIFIED):
        plain, discounted, now = 0.0, 0.0, state
        for index in range(2 * (epochs + 5)):
            turn = index % (epochs + 5)
            action = torch.tensor(first) if turn == 0 else cull if turn == epochs else wait
            assert bool(engine.mask(now).gather(1, action.unsqueeze(1)).all())
            after, event = engine.step(now, action)
            got = reward(mode, params, engine.structure, now, after, event)
            plain, discounted, now = plain + got.total, discounted + GAMMA**index * got.total, after
        assert bool((plain < 0).all()) and bool((discounted < 0).all())


def tale(engine, params, rows, mode=SHAPED):
    """Rewards of a story about slot 0 of every environment, told as (op, fields of the slot, accuracy) per state."""
    base, states = engine.init(0), []
    horizon = len(rows) - 1 if len(rows) > 2 else 100
    structure = replace(engine.structure, config=replace(engine.config, horizon=horizon))
    for index, (_, fields, accuracy) in enumerate(rows):
        slots = base.slots.clone()
        for name, value in fields.items():
            slots[name][:, 0] = value
        worth = torch.full((E,), float(accuracy), dtype=torch.float64)
        signals = base.signals.replace(val_accuracy=worth, best_accuracy=worth)
        states.append(base.replace(slots=slots, signals=signals, epoch=torch.full((E,), index)))
    out = []
    for (op, _, _), before, after in zip(rows[1:], states, states[1:], strict=False):
        ops = torch.full((E,), int(op))
        slot = torch.full((E,), -1 if op is Op.WAIT else 0)
        out.append(reward(mode, params, structure, before, after, event_of(ops, slot)))
    return out


def life(ending, contribution=3.0, epochs=14):
    """A seed's life that ends by FOSSILIZE, by CULL, or not, at the third decision on probation."""
    c, seed = contribution, {"blueprint": 0, "blend": 0, "birth_accuracy": 50.0}
    rows = [(Op.WAIT, {}, 50.0)]
    phases = [(3, 3, False), (4, 3, True), (5, 1, True), (6, 3, True)]
    age = 0
    for stage, length, measured in phases:
        for stage_age in range(length):
            fields = seed | {"stage": stage, "stage_age": stage_age, "age": age + 1, "measured": measured}
            fields |= {"contribution": c if measured else 0.0, "in_snapshot": True}
            rows.append((Op.GERMINATE if age == 0 else Op.WAIT, fields, 50.0 + max(c, 0.0) * measured))
            age += 1
    for index in range(epochs - len(rows)):
        op = ending if index == 0 else Op.WAIT
        if ending is Op.CULL:
            rows.append((op, {"stage": 9 if index < 5 else 1}, 50.0))
        elif ending is Op.FOSSILIZE:
            fields = seed | {"stage": 7, "age": age, "measured": True, "contribution": c}
            rows.append((op, fields, 50.0 + max(c, 0.0)))
        elif index < 2:
            fields = seed | {"stage": 6, "stage_age": 3 + index, "age": age + 1, "measured": True, "contribution": c}
            rows.append((op, fields | {"in_snapshot": True}, 50.0 + max(c, 0.0)))
        else:
            rows.append((op, {"stage": 9}, 50.0))
    return rows


def returns(steps, gamma=1.0):
    return float(sum(gamma**t * step.total[0] for t, step in enumerate(steps)))


@pytest.mark.parametrize("epochs", [14, 120])
@pytest.mark.parametrize("gamma", [1.0, GAMMA])
def test_a_completed_life_pays_best(engine, params, epochs, gamma):
    never = [(Op.WAIT, {}, 50.0)] * epochs
    fossil, culled, held = (
        returns(tale(engine, params, life(op, epochs=epochs)), gamma) for op in (Op.FOSSILIZE, Op.CULL, Op.WAIT)
    )
    idle = returns(tale(engine, params, never), gamma)
    assert fossil > held > culled
    assert fossil > idle + 2


def test_growing_and_culling_in_turn_pays_less_than_finishing(engine, params):
    turns = 8
    rows = [(Op.WAIT, {}, 50.0)]
    for _ in range(turns):
        rows += life(Op.CULL, epochs=17)[1:]
    farmed = returns(tale(engine, params, rows))
    assert returns(tale(engine, params, life(Op.FOSSILIZE, epochs=len(rows)))) > farmed + 5


def test_growing_and_culling_harmful_seeds_loses(engine, params):
    for gamma in (1.0, GAMMA):
        steps = tale(engine, params, life(Op.CULL, contribution=-4.0, epochs=17))
        assert returns(steps, gamma) < returns(tale(engine, params, [(Op.WAIT, {}, 50.0)] * 17), gamma) - 1
        credit = sum(gamma**t * float(step.terms["attribution"][0]) for t, step in enumerate(steps))
        assert credit < -1


def test_the_harmful_seed_is_better_culled_than_kept(engine, params):
    alive = {"blueprint": 0, "blend": 0, "birth_accuracy": 50.0, "stage": 4, "measured": True, "contribution": -4.0}
    start = (Op.WAIT, alive | {"age": 6, "stage_age": 2}, 48.0)
    kept = [(Op.WAIT, alive | {"age": 7 + i, "stage_age": 3 + i}, 48.0) for i in range(9)]
    gone = [(Op.CULL if i == 0 else Op.WAIT, {"stage": 9}, 52.0) for i in range(9)]
    assert returns(tale(engine, params, [start, *gone])) > returns(tale(engine, params, [start, *kept])) + 2


SUSPECT = {"stage": 4, "stage_age": 3, "age": 8, "measured": True, "birth_accuracy": 50.0, "blueprint": 0, "blend": 0}


def test_a_cull_turns_no_penalty_into_a_bonus(engine, params):
    """Contribution 8 with hardly any progress, or none: penalised while it lives, and no better for being culled."""
    for gain, penalty in ((0.0, -0.24), (0.05, -0.24), (0.4, -0.3), (1.0, -0.06)):
        fields = SUSPECT | {"contribution": 8.0}
        live, culled = (
            tale(engine, params, [(Op.WAIT, fields, 50.0 + gain), row])[0]
            for row in ((Op.WAIT, fields, 50.0 + gain), (Op.CULL, {"stage": 9}, 50.0))
        )
        assert float(live.terms["ratio_penalty"][0]) == pytest.approx(penalty)
        assert float(culled.terms["ratio_penalty"][0]) == 0
        assert float(culled.terms["attribution"][0]) <= 0
        assert float(culled.terms["culling"][0]) == pytest.approx(-0.7)
        outcome = sum(float(culled.terms[name][0]) for name in ("attribution", "ratio_penalty", "culling", "shaping"))
        assert outcome < -1


def test_no_credit_without_progress(engine, params):
    for gain, worth in ((-3.0, 0.0), (0.0, 0.0), (2.0, 0.2), (50.0, 0.4)):
        fields = SUSPECT | {"contribution": 8.0, "stage": 5}
        got = tale(engine, params, [(Op.WAIT, fields, 50.0), (Op.WAIT, fields, 50.0 + gain)])[0]
        assert float(got.terms["attribution"][0]) == pytest.approx(worth)


def test_fossilizing(engine, params):
    """Full bonus once waiting would cost; nothing at once; a penalty where the network is worse than at birth."""
    for age, gain, contribution, worth in (
        (0, 5.0, 4.0, 0.0),
        (1, 5.0, 4.0, 0.35),
        (2, 5.0, 4.0, 0.7),
        (9, 5.0, 60.0, 3.0),
        (2, 5.0, 0.5, -0.2),
        (2, -1.0, 4.0, -1.0),
        (2, -0.1, 4.0, -0.52),
        (2, -50.0, 4.0, -1.8),
    ):
        fields = SUSPECT | {"stage": 6, "stage_age": age, "contribution": contribution}
        after = fields | {"stage": 7, "stage_age": 0}
        got = tale(engine, params, [(Op.WAIT, fields, 50.0), (Op.FOSSILIZE, after, 50.0 + gain)])[0]
        assert float(got.terms["fossilization"][0]) == pytest.approx(worth)


def test_waiting_on_probation_costs_only_where_fossilizing_was_open(engine, params):
    def cost(age, op=Op.WAIT, **changes):
        fields = SUSPECT | {"stage": 6, "stage_age": age, "contribution": 4.0, "in_snapshot": True} | changes
        rows = [(Op.WAIT, fields, 55.0), (op, fields | {"stage_age": age + 1}, 55.0)]
        return float(tale(engine, params, rows)[0].terms["probation_warning"][0])

    assert [cost(age) for age in range(5)] == pytest.approx([0, 0, -0.1, -0.15, -0.2])
    assert cost(30) == pytest.approx(-0.4)
    assert cost(4, Op.ADVANCE) == 0
    assert all(cost(4, **{name: False}) == 0 for name in ("in_snapshot", "healthy", "measured"))
    assert cost(4, contribution=0.5) == 0


# The other modes


def test_sparse_and_minimal(engine, params):
    last = engine.config.horizon
    rows = [(Op.WAIT, {}, 80.0)] * (last + 1)
    steps = tale(engine, params, rows, RewardMode.SPARSE)
    assert [float(step.total[0]) for step in steps] == pytest.approx([0.0] * (last - 1) + [0.8])
    assert returns(tale(engine, params, [*rows[:-1], (Op.WAIT, SUSPECT, 80.0)], RewardMode.SPARSE)) < 0.8
    for age, worth in ((1, -0.1), (4, -0.1), (5, 0.0)):
        for op in (Op.CULL, Op.CHANGE_BLUEPRINT, Op.ADVANCE):
            story = [(Op.WAIT, SUSPECT | {"age": age}, 50.0), (op, {"stage": 9}, 50.0)]
            got = tale(engine, params, story, RewardMode.MINIMAL)[0]
            assert float(got.total[0]) == pytest.approx(0.0 if op is Op.ADVANCE else worth)


def test_loss_is_positive_for_improvement_and_half_for_regression(engine, params):
    state = engine.init(0)
    delta = torch.tensor([0.05, -0.05, 0.2, 9.0, -9.0, 0.0, 0.1, -0.1], dtype=torch.float64)
    after = state.replace(signals=state.signals.replace(loss_delta=delta))
    still = event_of(torch.zeros(E, dtype=torch.int64), torch.full((E,), -1))
    got = reward(RewardMode.LOSS, params, engine.structure, state, after, still)
    expected = delta.new_tensor([0.5, -0.25, 2.0, 5.0, -2.5, 0.0, 1.0, -0.5])
    torch.testing.assert_close(got.terms["loss"], expected, **EXACT)


def test_terminal_terms_are_paid_at_the_horizon_only(engine, params, legs):
    late = 0
    for leg in legs:
        got = paid(SHAPED, params, engine, leg)
        ends = leg.after.epoch >= engine.config.horizon
        late += int(ends.sum())
        assert bool(((got.terms["terminal_accuracy"] > 0) == ends).all())
        assert not bool(got.terms["terminal_fossils"][~ends].any())
    assert late >= E


def test_a_rolled_back_epoch_pays_the_penalty_and_nothing_it_measured(engine, params, legs):
    for leg in legs:
        bad = leg.event.judgement.rolled_back
        for mode in (RewardMode.SHAPED, RewardMode.LOSS):
            got = paid(mode, params, engine, leg)
            assert bool((got.terms["rollback"] == torch.where(bad, -2.0, 0.0)).all())
            for name in ("attribution", "ratio_penalty", "blending_warning", "fossilization", "loss"):
                assert not bool(got.terms.get(name, torch.zeros(E))[bad].any())


def test_nothing_but_tensors_of_the_state_is_read_or_written(engine, params, legs):
    leg = legs[12]
    copies = [tree.clone() for tree in (leg.before, leg.after, params)]
    for mode in RewardMode:
        paid(mode, params, engine, leg)
    for tree, copy in zip((leg.before, leg.after, params), copies, strict=True):
        for (path, one), (_, other) in zip(cases.leaves(tree), cases.leaves(copy), strict=True):
            assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)), path


def test_numbers_may_differ_by_environment(engine, params, legs):
    sweep = build_reward_params({"shaping_weight": torch.linspace(0, 1, E, dtype=torch.float64)}, engine.config)
    leg = legs[3]
    one, many = (paid(SHAPED, each, engine, leg).terms["shaping"] for each in (params, sweep))
    torch.testing.assert_close(many, one / 0.3 * torch.linspace(0, 1, E, dtype=torch.float64), **EXACT)


def test_a_small_host_counts_as_the_floor(engine, legs):
    leg, host = legs[7], engine.structure.host.num_params
    sizes = seed_sizes(engine.structure, leg.after.slots).sum(1)
    for floor in (1.0, 10.0 * host):
        params = build_reward_params({"rent_floor": floor, "rent_cap": 100.0}, engine.config)
        expected = -0.1 * torch.log1p(sizes.double() / max(host, floor))
        assert bool((expected < 0).any())
        torch.testing.assert_close(paid(SHAPED, params, engine, leg).terms["rent"], expected, **EXACT)


def test_rewards_are_traced_whole(engine, params, legs):
    """No synchronisation and no branch on a value: the tracer would break the graph there."""
    leg = legs[9]
    for mode in RewardMode:
        traced = torch.compile(
            lambda before, after, event, mode=mode: reward(mode, params, engine.structure, before, after, event).total,
            backend="eager",
            fullgraph=True,
        )
        total = traced(leg.before, leg.after, leg.event)
        torch.testing.assert_close(total, paid(mode, params, engine, leg).total, **EXACT)


def test_a_host_without_slots(small_task):
    engine = esper.make(small_task, 2, slots=())
    params, state = build_reward_params({}, engine.config), engine.init(0)
    after, event = engine.step(state, torch.zeros(2, dtype=torch.int64))
    for mode in set(RewardMode) - {RewardMode.UTILITY}:
        assert bool((reward(mode, params, engine.structure, state, after, event).total == 0).all())
    gained = reward(RewardMode.UTILITY, params, engine.structure, state, after, event).total
    torch.testing.assert_close(gained, 0.995 * after.signals.val_accuracy)


def test_the_table_is_documented():
    for name, number in numbers(RewardParams).items():
        assert number.unit and number.source and number.low <= number.default <= number.high, name
    for name, term in TERMS.items():
        assert term.doc.endswith(".") and term.modes, name


@pytest.mark.parametrize("bad", [{"gamma": 1.5}, {"gama": 0.9}, {"rent_cap": torch.zeros(3)}, {"rent_cap": "x"}])
def test_a_wrong_number_is_named(engine, bad):
    with pytest.raises(ConfigError, match=rf"^rewards\.{next(iter(bad))}.*$"):
        build_reward_params(bad, engine.config)
