"""Traces of episodes: replaying their actions through the engine shows every number they hold."""

import math

import pytest
import torch

import esper
from esper.kasmina.structure import seed_sizes
from esper.leyline.actions import NONE, Action, Op
from esper.leyline.codes import Refusal
from esper.leyline.stages import Stage
from esper.runtime.rollout import ROLLOUT_STREAM, rollout
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params, reward
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.logits import factored_logits  # noqa: F401  (the policy's heads are these)
from esper.tamiyo.policies import Decision, Policy, learned_policy, random_policy
from esper.utils import rng

ENVS, SEED = 6, 5


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, ENVS)


def reckless(codec):
    """Draws among all actions, legal or not, so that refusals occur."""

    def act(memory, seen):
        every = torch.zeros(seen.mask.shape)
        return memory, Decision(rng.categorical(seen.key, every))

    return Policy("reckless", lambda num_envs: None, act)


@pytest.fixture(scope="module", params=["random", "reckless", "learned"])
def played(request, engine):
    policy = build_actor_critic(ActorCriticConfig(8, 8, 8), engine.codec, len(engine.columns), 3)
    policies = {
        "random": random_policy(engine.codec),
        "reckless": reckless(engine.codec),
        "learned": learned_policy(policy, 8),
    }
    state, outcome = rollout(engine, policies[request.param], SEED)
    return policy, state, outcome


def test_a_replay_shows_the_same(engine, played):
    _, final, outcome = played
    trace, state = outcome.trace, engine.init(SEED)
    params = build_reward_params({}, engine.config)
    counts = {name: [0] * ENVS for name in ("germinated", "culled", "refused")}
    for t in range(trace.length):
        before = state
        state, event = engine.step(state, trace.action[t].long())
        earned = reward(DEFAULT_REWARD, params, engine.structure, before, state, event)
        assert torch.equal(trace.reward[t], earned.total)
        assert trace.term_names == tuple(earned.terms)
        for index, name in enumerate(trace.term_names):
            assert torch.equal(trace.terms[t, :, index], earned.terms[name])
        assert torch.equal(trace.accuracy[t], state.signals.val_accuracy)
        assert torch.equal(trace.loss[t], state.signals.val_loss)
        for name in ("stage", "blueprint", "alpha"):
            assert torch.equal(trace._asdict()[name][t].to(state.slots[name].dtype), state.slots[name])
        assert torch.equal(trace.during[t].long(), event.life.before)
        assert torch.equal(trace.verdict[t].long(), event.judgement.verdict)
        check_decisions(engine, trace, t, before, event, counts)
        check_effects(trace, t, state)
    for name, expected in counts.items():
        assert getattr(outcome, name).tolist() == expected, name
    assert torch.equal(outcome.val_accuracy, final.signals.val_accuracy)
    told = engine.test(final)
    assert torch.equal(outcome.test_accuracy, told.accuracy) and torch.equal(outcome.test_loss, told.loss)
    assert not torch.equal(outcome.test_accuracy, outcome.val_accuracy)
    assert outcome.fossilized.tolist() == (final.slots.stage == int(Stage.FOSSILIZED)).sum(1).tolist()
    assert outcome.added.tolist() == seed_sizes(engine.structure, final.slots).sum(1).tolist()
    assert outcome.operations.sum() == ENVS * trace.length


def check_decisions(engine, trace, t, before, event, counts):
    for env in range(ENVS):
        asked = engine.codec.decode(int(trace.action[t, env]))
        legal = bool(engine.mask(before)[env, int(trace.action[t, env])])
        done = asked if legal else Action(Op.WAIT)
        found = (trace.op[t, env], trace.slot[t, env], trace.kind[t, env], trace.blend[t, env])
        assert Action(*map(int, found)) == done
        assert (int(trace.refusal[t, env]) == int(Refusal.NONE)) is legal
        counts["refused"][env] += not legal
        counts["germinated"][env] += done.op in (Op.GERMINATE, Op.CHANGE_BLUEPRINT)
        by_clock = (event.life.before[env] != event.life.after[env]) & (event.life.after[env] == int(Stage.CULLED))
        lost = (by_clock | event.judgement.culled[env]).sum()
        counts["culled"][env] += int(lost) + (done.op in (Op.CULL, Op.CHANGE_BLUEPRINT))


def check_effects(trace, t, state):
    slots = state.slots
    for env in range(ENVS):
        for slot in range(slots.batch_size[1]):
            here, effect = slots[env, slot], float(trace.effect[t, env, slot])
            if bool(here["measured"]):
                assert effect == float(here["contribution"])
            elif int(here["stage"]) == Stage.TRAINING and int(here["evaluations"]) > 0:
                assert effect == float(here["prospect"])
            else:
                assert math.isnan(effect) and math.isnan(float(trace.effect_error[t, env, slot]))


def test_diagnostics_are_the_policys(engine, played):
    """The whole episode again through the policy as one sequence, as training sees it."""
    policy, _, outcome = played
    if outcome.policy != "learned":
        assert outcome.trace.diagnostics is None
        return
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    trace, state, seen, masks = outcome.trace, engine.init(SEED), [], []
    for t in range(trace.length + 1):
        seen.append(engine.observe(state))
        masks.append(engine.mask(state))
        if t < trace.length:
            state, _ = engine.step(state, trace.action[t].long())
    length = trace.length + 1
    start = torch.zeros(ENVS, length, 1, dtype=torch.bool)
    memory = torch.zeros(ENVS, length, 1, 8)
    data = {"observation": torch.stack(seen, 1), "action_mask": torch.stack(masks, 1), "is_init": start}
    data |= {"recurrent_state_h": memory, "recurrent_state_c": memory.clone()}
    with torch.no_grad(), set_recurrent_mode(True), torch.random.fork_rng(devices=[]):
        out = policy(TensorDict(data, batch_size=[ENVS, length]))
    torch.testing.assert_close(trace.diagnostics.value, out["state_value"].squeeze(-1).T[:-1], rtol=1e-4, atol=1e-4)
    chances = out["logits"][:, :-1].transpose(0, 1).double().exp()
    legal = torch.stack(masks)[:-1]
    assert float(torch.where(legal, 0.0, chances).max()) == 0
    taken = chances.gather(2, trace.action.long().unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(trace.diagnostics.probability.double(), taken, rtol=1e-3, atol=1e-5)
    entropy = torch.distributions.Categorical(probs=torch.where(legal, chances, 0.0)).entropy()
    torch.testing.assert_close(trace.diagnostics.entropy.double(), entropy, rtol=1e-3, atol=1e-4)
    ranked = chances.sort(dim=2, descending=True).values[:, :, : trace.diagnostics.likelihood.shape[2]]
    torch.testing.assert_close(trace.diagnostics.likelihood.double(), ranked, rtol=1e-3, atol=1e-5)


def test_draws_belong_to_the_environment(engine, played):
    """The key of a decision is a function of seed, environment and decision."""
    keys = []

    def act(memory, seen):
        keys.append(seen.key)
        return memory, Decision(torch.zeros(seen.mask.shape[0], dtype=torch.int64))

    rollout(engine, Policy("spy", lambda num_envs: None, act), SEED)
    for t in (0, 3):
        for env in (0, 4):
            key = rng.fold_in(rng.fold_in(rng.fold_in(rng.key(SEED), ROLLOUT_STREAM), env), t)
            assert torch.equal(keys[t][env], key)
    assert NONE == -1
