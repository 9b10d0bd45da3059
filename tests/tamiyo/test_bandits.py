"""Bandits as policies: who is paid, who may be taken, and why; in an engine and on made-up states."""

from itertools import pairwise

import pytest
import torch

import esper
from esper.leyline.actions import NONE, Action, Blend, Op
from esper.leyline.decisions import Intent, Reason
from esper.leyline.stages import LIVE, Stage
from esper.runtime.rollout import policy_input
from esper.tamiyo.arms import ArmStatistics, BanditConfig, arm_names, no_statistics
from esper.tamiyo.bandit_arrays import decide_on_arrays
from esper.tamiyo.bandit_parts import Viability, init_bandit
from esper.tamiyo.bandits import always, bandit_policy, build_bandit, decide, decide_on_tensors
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.policies import PolicyInput
from esper.tamiyo.selection import STRATEGIES
from esper.utils import rng

ENVS = 6
QUICK = {"cool_down": 1, "max_active": 2}


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, num_envs=ENVS, slots=(0, 1), blends=(Blend.SIGMOID,))


def bandit(engine, name="ucb", budget=1e9, **numbers):
    limits = Viability(engine.structure.action_sizes, engine.structure.sizes, torch.tensor(budget))
    return build_bandit(name, engine.codec, limits, BanditConfig(**numbers), HeuristicConfig())


def keys_at(step, envs=ENVS):
    return rng.fold_in(rng.fold_in(rng.key(3), torch.arange(envs)), step)


def play(engine, made, epochs, memory=None, first=0):
    """Memory and everything that was decided on, in order; ``first`` counts on the keys."""
    state = engine.init(0)
    memory = init_bandit(made, ENVS) if memory is None else memory
    past = []
    for step in range(epochs):
        seen = policy_input(engine, state, keys_at(first + step))
        memory, decision = decide(made, memory, seen)
        assert seen.mask.gather(1, decision.action.unsqueeze(1)).all()
        following, event = engine.step(state, decision.action)
        past.append((state, decision, event, memory))
        state = following
    return memory, past


@pytest.mark.parametrize("name", STRATEGIES)
def test_arms_are_paid_for_the_epochs_that_their_seeds_grew_through(engine, name):
    """The sums of what was paid, from what the engine reports of every epoch: stages, blueprints and signals."""
    made = bandit(engine, name, **QUICK)
    memory, past = play(engine, made, 10)
    arms = [(engine.codec.actions[index].slot, engine.codec.actions[index].blueprint) for index in made.arms.tolist()]
    gained, measured, chosen = torch.zeros(3, ENVS, len(arms), dtype=torch.float64)
    for (state, decision, event, _), (after, *_) in pairwise(past):
        for env in range(ENVS):
            action = engine.codec.actions[int(decision.action[env])]
            planted = {action.slot: action.blueprint} if action.op is Op.GERMINATE else {}
            if planted:
                chosen[env, arms.index((action.slot, action.blueprint))] += 1
            for slot in range(2):
                grew = int(event.life.before[env, slot]) in LIVE
                kind = planted.get(slot, int(state.slots.blueprint[env, slot]))
                if grew and int(after.signals.epochs_seen[env]) > max(int(state.signals.epochs_seen[env]), 1):
                    gained[env, arms.index((slot, kind))] += float(after.signals.accuracy_delta[env])
                    measured[env, arms.index((slot, kind))] += 1
    statistics = memory.statistics
    assert torch.equal(statistics.measured.double(), measured) and measured.sum() > 20
    assert torch.allclose(statistics.accuracy.sum(2), gained, atol=1e-4)
    assert torch.equal(statistics.successes + statistics.failures, statistics.measured)
    last = past[-1][1].action
    for env in range(ENVS):
        action = engine.codec.actions[int(last[env])]
        if action.op is Op.GERMINATE:
            chosen[env, arms.index((action.slot, action.blueprint))] += 1
    assert torch.equal(statistics.chosen.double(), chosen)


def imagine(engine, epoch=9, **slots):
    fresh = engine.init(0)
    leaves = {name: torch.as_tensor(value).expand(ENVS, 2).clone() for name, value in slots.items()}
    return fresh.replace(slots=fresh.slots.replace(**leaves), epoch=torch.full((ENVS,), epoch))


GROWING = {"stage": [int(Stage.TRAINING)] * 2, "blueprint": [0, 1]}
EMPTY = {"stage": [int(Stage.DORMANT)] * 2, "blueprint": [NONE, NONE]}
ONE = {"stage": [int(Stage.TRAINING), int(Stage.DORMANT)], "blueprint": [0, NONE]}


@pytest.mark.parametrize(
    ("slots", "numbers", "germinated_at", "reason"),
    [
        (GROWING, {}, -100, Reason.NO_PLACE),
        (ONE, {"max_active": 1}, -100, Reason.FULL),
        (EMPTY, {}, 5, Reason.RESTING),
        (EMPTY, {"budget": 1.0}, -100, Reason.NO_MEMORY),
        (EMPTY, {}, 4, None),
        (ONE, {"max_active": 2}, -100, None),
    ],
)
def test_without_a_viable_arm_it_waits_and_says_why(engine, slots, numbers, germinated_at, reason):
    made, state = bandit(engine, **numbers), imagine(engine, **slots)
    memory = init_bandit(made, ENVS).replace(germinated_at=torch.full((ENVS,), germinated_at))
    memory, decision = decide(made, memory, policy_input(engine, state, keys_at(0)))
    account = decision.account
    if reason is None:
        assert (engine.codec.op[decision.action] == int(Op.GERMINATE)).all()
        assert (account.reason == int(Reason.UNTRIED)).all() and (account.intent == int(Intent.EXPLORE)).all()
        assert (memory.germinated_at == 9).all()
    else:
        assert (decision.action == 0).all() and (account.reason == int(reason)).all()
        assert (account.intent == int(Intent.NEITHER)).all() and account.scores.isnan().all()


def test_the_memory_limit_is_a_share_of_the_budget(engine):
    """A budget that holds the smallest seed beside the one there is, at 80 % and not below."""
    sizes = engine.structure.sizes
    smallest = int(min(size for size in sizes[1].tolist() if size))
    used = int(sizes[0, 0])
    for budget, fits in (((used + smallest) / 0.8, True), ((used + smallest) / 0.8 - 1, False)):
        made, state = bandit(engine, budget=budget), imagine(engine, **ONE)
        _, decision = decide(made, init_bandit(made, ENVS), policy_input(engine, state, keys_at(0)))
        assert (engine.codec.op[decision.action] == int(Op.GERMINATE)).all() == fits


def test_seeds_are_tended_before_others_are_planted(engine):
    """FOSSILIZE what contributes, CULL what was measured and does not; the reasons are the rule of thumb's."""
    for contribution, op, reason in ((2.5, Op.FOSSILIZE, Reason.CONTRIBUTES), (-1.0, Op.CULL, Reason.NO_CONTRIBUTION)):
        proving = {"stage": [int(Stage.PROBATIONARY), int(Stage.DORMANT)], "blueprint": [0, NONE]}
        state = imagine(engine, **proving, measured=True, contribution=contribution, healthy=True)
        made = bandit(engine)
        seen = policy_input(engine, state, keys_at(0))
        mask = seen.mask.clone()
        mask[:, engine.codec.encode(Action(op, 0))] = True
        _, decision = decide(made, init_bandit(made, ENVS), seen._replace(mask=mask))
        assert (engine.codec.op[decision.action] == int(op)).all()
        assert (decision.account.reason == int(reason)).all()
        assert torch.allclose(decision.account.confidence, torch.tensor(min(1.0, abs(contribution) / 5)))


def test_what_was_learned_goes_on_into_the_next_episode(engine):
    made = bandit(engine, **QUICK)
    memory, _ = play(engine, made, 8)
    before = memory.statistics.clone()
    again, _ = decide(made, memory, policy_input(engine, engine.init(1), keys_at(9)))
    assert torch.equal(again.statistics.accuracy, before.accuracy), "a new episode pays for nothing of the old one"
    assert torch.equal(again.statistics.chosen.sum(1), before.chosen.sum(1) + 1)
    assert torch.equal(memory.statistics.chosen, before.chosen), "the input keeps its bits"
    whole, later = play(engine, made, 6, memory=init_bandit(made, ENVS, before.clone()), first=8)
    twin, others = play(engine, made, 6, memory=memory, first=8)
    assert all(torch.equal(a[1].action, b[1].action) for a, b in zip(later, others, strict=True))
    assert torch.equal(whole.statistics.loss, twin.statistics.loss)
    assert all(
        torch.equal(whole.statistics.get(name), twin.statistics.get(name)) for name in ArmStatistics.__annotations__
    )


def test_one_arm_alone_is_always_that_arm(engine):
    made = always(bandit(engine, **QUICK), 1)
    _, past = play(engine, made, 10)
    planted = torch.stack([decision.action for _, decision, *_ in past])
    planted = planted[engine.codec.op[planted] == int(Op.GERMINATE)]
    assert planted.numel() >= ENVS and (planted == bandit(engine).arms[1]).all()
    assert arm_names(engine.codec, Blend.SIGMOID)[1] == engine.codec.describe(int(planted[0])).split(" ", 1)[1][:-8]


def test_without_arms_there_is_no_bandit(small_task):
    bare = esper.make(small_task, num_envs=2, slots=())
    made = bandit(bare)
    with pytest.raises(ValueError, match="no seed can be germinated"):
        bandit_policy("ucb", made)
    assert no_statistics(made.config, 2, 0, "cpu").chosen.shape == (2, 0)


def scrambled(engine, state, drawn):
    """A state that no engine need ever reach: every field that a bandit looks at is drawn."""
    envs = state.batch_size[0]

    def integers(low, high, *shape):
        return torch.randint(low, high, (envs, *shape), generator=drawn)

    def numbers(*shape):
        some = 5 * torch.randn(envs, *shape, generator=drawn)
        return torch.where(integers(0, 20, *shape) == 0, torch.nan, some.round(decimals=1))

    kinds = len(engine.codec.blueprint_names)
    slots = state.slots.replace(
        stage=integers(1, max(Stage) + 1, 2),
        blueprint=integers(-1, kinds, 2),
        stage_age=integers(0, 9, 2),
        measured=integers(0, 2, 2).bool(),
        contribution=numbers(2),
        improvement=numbers(2),
    )
    signals = state.signals.replace(
        epochs_seen=integers(0, 12),
        accuracy_delta=numbers(),
        loss_delta=numbers(),
        plateau=integers(0, 9),
    )
    return state.replace(slots=slots, signals=signals, epoch=integers(0, 12))


def same_bits(first, second):
    """Whether tensors, or the parts of two trees or tuples, are alike to the bit and in kind; NaN is like NaN."""
    if isinstance(first, torch.Tensor):
        known, also = ~first.isnan(), ~second.isnan()
        if first.dtype != second.dtype or not torch.equal(known, also):
            return False
        words = {torch.float64: torch.int64, torch.float32: torch.int32}.get(first.dtype, first.dtype)
        return torch.equal(first[known].view(words), second[also].view(words))
    if first is None:
        return second is None
    names = first._fields if isinstance(first, tuple) else list(first.keys())
    return all(same_bits(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("envs", [1, ENVS])
@pytest.mark.parametrize("name", [*STRATEGIES, "only"])
def test_arrays_and_tensors_decide_alike_to_the_bit(engine, name, envs):
    """Thirty decisions after one another on drawn states, with actions legal by chance: memory, action and account."""
    made = bandit(engine, "ucb" if name == "only" else name, budget=700.0, cool_down=2)
    made = always(made, 1) if name == "only" else made
    arrays = tensors = init_bandit(made, envs)
    planted, drawn, start = 0, torch.Generator().manual_seed(11), engine.init(0)[:envs]
    for step in range(30):
        state = scrambled(engine, start, drawn)
        mask = torch.rand(envs, engine.codec.size, generator=drawn) < 0.4
        mask |= engine.codec.op == int(Op.WAIT)
        seen = PolicyInput(state, torch.zeros(envs, 0), mask, keys_at(step, envs))
        arrays, one = decide_on_arrays(made, arrays, seen)
        tensors, other = decide_on_tensors(made, tensors, seen)
        assert same_bits(arrays, tensors) and same_bits(one, other)
        planted += int((engine.codec.op[one.action] == int(Op.GERMINATE)).sum())
    assert planted >= envs and int(arrays.statistics.measured.sum()) >= envs
