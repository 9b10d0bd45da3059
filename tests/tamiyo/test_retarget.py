"""RETARGET in engines and policies: it is there if it is asked for, and whoever does not know it plays on."""

import pytest
import torch

import esper
from esper.kasmina import lifecycle
from esper.leyline.actions import TARGETS, Op
from esper.leyline.stages import WEIGHED, Stage, is_in
from esper.leyline.state import lock
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.interface import PolicyNetwork, common, from_table, to_table, translate
from esper.tamiyo.networks import build_policies
from esper.tamiyo.policies import PolicyInput, learned_policy, random_policy
from esper.urza.states import batches_of, state_of, tensors_of
from esper.utils import rng

ENVS, SIZES = 12, ActorCriticConfig(8, 8, 8)


@pytest.fixture(scope="module")
def engines(small_task):
    """Without RETARGET, and with it."""
    return [esper.make(small_task, ENVS, backend="eager", retarget=asked) for asked in (False, True)]


@pytest.fixture(scope="module")
def weighed(engines):
    """A state in which every environment has a seed in BLENDING."""
    engine = engines[1]
    state = engine.init(0)
    action = torch.full((ENVS,), engine.codec.encode(esper.Action(Op.GERMINATE, 0, 0, 1)))
    for _ in range(2):
        state, _event = engine.step(state, action)
        action = torch.zeros_like(action)
    assert bool((state.slots.stage[:, 0] == int(Stage.BLENDING)).all())
    return state


def test_an_output_is_that_of_the_weight_asked_for(engines, weighed):
    engine = engines[1]

    def asked(target):
        action = torch.full((ENVS,), engine.codec.encode(esper.Action(Op.RETARGET, 0, target=target)))
        place = (engine.structure, engine.hypers, weighed.slots, action, weighed.signals.val_accuracy)
        slots, result = lifecycle.apply_action(*place)
        assert not result.refusal.any() and torch.equal(slots.stage, weighed.slots.stage)
        return lock(weighed.replace(slots=slots))

    gone, _ = lifecycle.cull_live(weighed.slots, torch.ones(ENVS, dtype=torch.bool))
    off = engine.test(asked(0))
    assert torch.equal(off.loss, engine.test(lock(weighed.replace(slots=gone))).loss)
    assert not torch.equal(engine.test(asked(2)).loss, off.loss)
    later, _ = engine.step(asked(2), torch.zeros(ENVS, dtype=torch.int64))
    merged = is_in(later.slots.stage[:, 0], WEIGHED)
    assert bool(merged.any()) and bool((later.slots.alpha[merged, 0] <= 0.5).all())


def test_what_a_policy_sees_and_does_grows_by_what_was_asked_for(engines):
    plain, more = (engine.interface for engine in engines)
    assert [name for name in more.columns if name not in plain.columns] == [f"slot{s}.target" for s in range(3)]
    assert more.codec.actions[: plain.codec.size] == plain.codec.actions
    assert more.codec.size == plain.codec.size + 3 * len(TARGETS)
    table = to_table(more)
    assert to_table(from_table(table)) == table and from_table(table).codec.actions == more.codec.actions
    assert all(len(entry) == 4 for entry in to_table(plain)["actions"])
    assert common([plain, more]).codec.actions == more.codec.actions
    shapes = [engine.observe(engine.init(0)).shape[1] for engine in engines]
    assert shapes == [len(plain.columns), len(more.columns)]


@pytest.mark.parametrize("network", PolicyNetwork)
def test_a_policy_plays_with_and_without_the_operation(network, engines, weighed):
    """Trained without it, no weight is another and it is never chosen; trained with it, it is, where it is legal."""
    plain, more = (engine.interface for engine in engines)
    ops = {}
    for own in (plain, more):
        for task, engine in ((plain, engines[0]), (more, engines[1])):
            is_graph = network is PolicyNetwork.GRAPH
            seen = task._replace(codec=task.codec.limited(own.codec.ops)) if is_graph else own
            (built,) = build_policies(network, SIZES, [seen], 0, own.codec.ops)
            has_head = own is more and network is not PolicyNetwork.MLP  # that one has a score per action instead
            assert any(".target" in name for name in built.state_dict()) == has_head
            policy = learned_policy(built, SIZES.lstm, translation=translate(seen, task))
            key = rng.fold_in(rng.key(1), torch.arange(ENVS))
            given = PolicyInput(weighed, engine.observe(weighed), engine.mask(weighed), key)
            _, decision = policy.act(policy.init(ENVS), given)
            chances = decision.diagnostics.log_probs.exp()
            assert torch.allclose(chances.sum(1), torch.ones(ENVS))
            assert bool(given.mask.gather(1, decision.action.unsqueeze(1)).all())
            index = [i for i, action in enumerate(task.codec.actions) if action.op == Op.RETARGET]
            ops[own is more, task is more] = float(chances[:, index].sum(1).mean())
    assert ops[False, False] == ops[True, False] == ops[False, True] == 0 < ops[True, True]


def test_random_draws_it_as_often_as_other_operations(engines, weighed):
    engine, many = engines[1], 4000
    state = weighed[torch.zeros(many, dtype=torch.int64)]
    mask = engine.mask(state)
    key = rng.fold_in(rng.key(2), torch.arange(many))
    _, decision = random_policy(engine.codec).act(None, PolicyInput(state, engine.observe(state), mask, key))
    op = engine.codec.op[decision.action]
    legal = engine.codec.op[mask[0]].unique()
    shares = [float((op == each).float().mean()) for each in legal]
    assert int(Op.RETARGET) in legal and max(abs(share - 1 / len(legal)) for share in shares) < 0.03


def test_a_state_of_before_there_were_targets_is_read(weighed):
    tensors = tensors_of(weighed)
    del tensors["slots.target"]
    read = state_of(tensors, batches_of(weighed))
    assert torch.equal(read.slots.target, torch.full_like(weighed.slots.alpha, -1.0))
    assert torch.equal(read.slots.alpha, weighed.slots.alpha)
