"""On a problem that can be enumerated, with every decision recorded, IQL and CQL find what dynamic programming does;
importance sampling and fitted Q-evaluation say what it is worth.

Three states, four decisions, nine actions of which some are illegal; a decision's outcome is certain, what it earns is
drawn once. The best plan loses at first: the greedy one is worse.
"""

import importlib.util
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from esper.simic.offline.fitted import FittedQ
from esper.simic.offline.judging import importance_sampling, log_chances
from esper.simic.offline.rows import along
from esper.tamiyo.critics import build_critics
from esper.utils import rng

_spec = importlib.util.spec_from_file_location("offline_conftest", Path(__file__).with_name("conftest.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

STATES, HORIZON, GAMMA, ACTIONS = 3, 4, 0.9, made.SEEN.codec.size
KEY = rng.key(11)
GAIN = rng.normal(rng.fold_in(KEY, 0), (HORIZON, STATES, ACTIONS)).double()
LEADS = (rng.uniform(rng.fold_in(KEY, 1), (STATES, ACTIONS)) * STATES).long()
LEGAL = rng.uniform(rng.fold_in(KEY, 2), (STATES, ACTIONS)) < 0.7
LEGAL[:, 0] = True


def legal(state):
    return LEGAL[state].nonzero().flatten().tolist()


@cache
def best(t, state):
    """Worth of the best plan."""
    return 0.0 if t == HORIZON else max(worth(t, state, action) for action in legal(state))


def worth(t, state, action):
    return GAIN[t, state, action].item() + GAMMA * best(t + 1, LEADS[state, action].item())


def seen(t, state):
    return [float(state == 0), float(state == 1), float(state == 2), 2 * t / HORIZON - 1, 1.0]


def episodes(paths):
    """Windows of whole episodes; each a first state and the actions from there."""
    rows = {name: [] for name in ("observation", "action_mask", "action", "after", "mask_after", "reward")}
    for state, actions in paths:
        one = {name: [] for name in rows}
        for t, action in enumerate(actions):
            following = LEADS[state, action].item()
            one["observation"].append(seen(t, state))
            one["action_mask"].append(LEGAL[state].tolist())
            one["action"].append(action)
            one["after"].append(seen(t + 1, following))
            one["mask_after"].append(LEGAL[following].tolist())
            one["reward"].append([GAIN[t, state, action].item()])
            state = following
        for name, values in one.items():
            rows[name].append(values)
    held = {name: torch.tensor(values) for name, values in rows.items()}
    shape = held["action"].shape
    end = (torch.arange(HORIZON) == HORIZON - 1).expand(shape).unsqueeze(-1)
    to_go = torch.zeros(shape)
    for t in reversed(range(HORIZON)):
        to_go[:, t] = held["reward"][:, t, 0] + (GAMMA * to_go[:, t + 1] if t + 1 < HORIZON else 0)
    following = {"observation": held["after"], "action_mask": held["mask_after"], "reward": held["reward"]}
    following |= {"terminated": end, "truncated": torch.zeros_like(end), "done": end}
    chance = 1 / held["action_mask"].sum(-1).float()
    return TensorDict(
        {
            **{name: held[name] for name in ("observation", "action_mask", "action")},
            "probability": chance,
            "valid": torch.ones(shape, dtype=torch.bool),
            "to_go": to_go,
            "next": following,
        },
        batch_size=shape,
    )


@cache
def recorded():
    """Episodes of who draws uniformly; every decision that can be met is among them, every state as often as any."""
    paths = []
    for number in range(600):
        state, path, key = number % STATES, [], rng.fold_in(KEY, 3, number)
        first = state
        for t in range(HORIZON):
            action = rng.categorical(rng.fold_in(key, t), torch.where(LEGAL[state], 0.0, -torch.inf)).item()
            path.append(action)
            state = LEADS[state, action].item()
        paths.append((first, tuple(path)))
    batch = episodes(paths)
    met = set()
    for first, path in paths:
        state = first
        for t, action in enumerate(path):
            met.add((t, state, action))
            state = LEADS[state, action].item()
    assert met == {(t, s, a) for t in range(HORIZON) for s in range(STATES) for a in legal(s)}
    return batch


def plan(policy, first):
    """The likeliest actions of a policy from a state on."""
    state, path = first, ()
    for t in range(HORIZON):
        batch = episodes([(first, path + (legal(state)[0],) + (0,) * (HORIZON - t - 1))])
        hidden = along(policy.module[0], batch, made.SIZES.lstm, ("_hidden",))["_hidden"][:, :-1]
        given = batch.select("action_mask").set("_hidden", hidden)
        logits = policy.get_policy_head().module[0](given)["logits"][0, t]
        path += (logits.argmax().item(),)
        state = LEADS[state, path[-1]].item()
    return path


def earned(first, path):
    state, whole = first, 0.0
    for t, action in enumerate(path):
        whole += GAMMA**t * GAIN[t, state, action].item()
        state = LEADS[state, action].item()
    return whole


def test_being_greedy_is_wrong():
    def greedy(first):
        state, path = first, ()
        for t in range(HORIZON):
            path += (max(legal(state), key=lambda action: GAIN[t, state, action].item()),)
            state = LEADS[state, path[-1]].item()
        return earned(first, path)

    assert all(greedy(first) < best(0, first) - 0.2 for first in range(STATES))


def expectile(values, level):
    """The number m with (1 - level) E (m - x)+ = level E (x - m)+, by bisection."""
    low, high = min(values), max(values)
    for _ in range(100):
        middle = (low + high) / 2
        left = sum(max(middle - x, 0) for x in values) * (1 - level)
        low, high = (low, middle) if left > level * sum(max(x - middle, 0) for x in values) else (middle, high)
    return low


def expectile_plan(level, first):
    """The best actions by values whose maximum over the next decision is an expectile over those who draw uniformly."""

    @cache
    def value(t, state):
        return 0.0 if t == HORIZON else expectile([of(t, state, action) for action in legal(state)], level)

    def of(t, state, action):
        return GAIN[t, state, action].item() + GAMMA * value(t + 1, LEADS[state, action].item())

    state, path = first, ()
    for t in range(HORIZON):
        path += (max(legal(state), key=lambda action: of(t, state, action)),)
        state = LEADS[state, path[-1]].item()
    return path


def learned(algorithm, **numbers):
    shared = {"gamma": GAMMA, "target_rate": 0.1, "batch": 64, "max_grad_norm": 10.0}
    learner, batch = made.make_learner(algorithm, **(shared | numbers)), recorded()
    learner.update(len(batch), lambda numbers: batch[numbers])
    return learner


def test_conservative_q_learning_finds_the_optimum():
    """As alpha tends to 0: the plan is the best one from every state, and the value of it is near."""
    policy = learned("cql", alpha=1e-4, temperature=0.02, lr=3e-3, updates=500).policy
    for first in range(STATES):
        assert earned(first, plan(policy, first)) == pytest.approx(best(0, first), abs=1e-9)
    hidden = along(policy.module[0], recorded()[:STATES], made.SIZES.lstm, ("_hidden",))["_hidden"][:, 0]
    value = policy.get_value_head()(TensorDict({"_hidden": hidden}, [STATES]))["state_value"].squeeze(-1)
    optimum = torch.tensor([best(0, s) for s in range(STATES)]).double()
    torch.testing.assert_close(value.double(), optimum, atol=0.2, rtol=0.1)


def test_expectiles_tend_to_the_optimum():
    """By dynamic programming, without any learning: of level 0.999 the plan is the best one, and of 0.5 it is not."""
    for first in range(STATES):
        assert earned(first, expectile_plan(0.999, first)) == pytest.approx(best(0, first), abs=1e-9)
    assert any(earned(first, expectile_plan(0.5, first)) < best(0, first) - 0.1 for first in range(STATES))


def test_implicit_q_learning_finds_what_expectiles_say():
    """Its plan earns what that of dynamic programming by its own level earns, a tenth of the optimum less at most."""
    level = 0.9
    policy = learned("iql", expectile=level, beta=10.0, lr=1e-2, value_weight=9.0, updates=450).policy
    for first in range(STATES):
        found = earned(first, plan(policy, first))
        assert found >= best(0, first) - 0.1 * abs(best(0, first))
        assert found == pytest.approx(earned(first, expectile_plan(level, first)), abs=1e-9)


@pytest.mark.large
def test_implicit_q_learning_finds_the_optimum():
    """At a level whose expectiles say the best plan, which it takes longer to learn."""
    level = 0.98
    policy = learned("iql", expectile=level, beta=10.0, lr=3e-3, value_weight=9.0, updates=1500).policy
    for first in range(STATES):
        assert earned(first, expectile_plan(level, first)) == pytest.approx(best(0, first), abs=1e-9)
        assert earned(first, plan(policy, first)) == pytest.approx(best(0, first), abs=1e-9)


def every_path(first):
    """All plans from a state."""
    reach = [((), first)]
    for _ in range(HORIZON):
        reach = [((*path, a), LEADS[state, a].item()) for path, state in reach for a in legal(state)]
    return [path for path, _ in reach]


@cache
def all_of():
    """Every episode that there can be, [P, T], and how likely each is under who draws uniformly."""
    paths = [(first, path) for first in range(STATES) for path in every_path(first)]
    batch = episodes(paths)
    return batch, batch["probability"].double().log().sum(1).exp() / STATES


def exact(policy):
    """What a policy earns, by enumeration of all episodes."""
    batch, _ = all_of()
    chance = log_chances(policy, batch, made.SIZES.lstm).double()
    discount = GAMMA ** torch.arange(HORIZON).double()
    whole = chance.sum(1).exp() / STATES
    assert whole.sum().item() == pytest.approx(1.0, abs=1e-5)
    return (whole.unsqueeze(1) * discount * batch["next", "reward"].squeeze(-1).double()).sum().item()


def test_importance_sampling_is_unbiased():
    """Its expectation, by enumeration of all episodes, is what the policy earns."""
    policy = made.make_learner("bc", seed=5).policy
    for parameter in policy.get_policy_head().parameters():
        parameter.data.mul_(1.0 + 20.0 * (parameter.dim() > 1))  # a policy that is far from uniform
    batch, likely = all_of()
    ratio = log_chances(policy, batch, made.SIZES.lstm) - batch["probability"].log()
    reward, valid = batch["next", "reward"].squeeze(-1), batch["valid"]
    assert ratio.sum(1).exp().max() > 5, "the policies must differ"
    each = importance_sampling(ratio.unsqueeze(1), reward.unsqueeze(1), valid.unsqueeze(1), GAMMA, weighted=False)
    assert (likely * each).sum().item() == pytest.approx(exact(policy), abs=1e-5)


def test_the_weighted_form_equals_its_definition():
    key, gamma = rng.key(21), 0.8
    ratio, reward = rng.normal(rng.fold_in(key, 0), (6, 3)).double(), rng.normal(rng.fold_in(key, 1), (6, 3)).double()
    valid = torch.arange(3) < torch.tensor([3, 2, 3, 1, 3, 3]).unsqueeze(1)
    whole = 0.0
    for t in range(3):
        weights = [math.exp(sum(ratio[i, k].item() for k in range(t + 1) if valid[i, k])) for i in range(6)]
        paid = [reward[i, t].item() if valid[i, t] else 0.0 for i in range(6)]
        whole += gamma**t * sum(w * r for w, r in zip(weights, paid, strict=True)) / sum(weights)
    assert importance_sampling(ratio, reward, valid, gamma).item() == pytest.approx(whole, abs=1e-12)


def test_weights_of_the_policy_itself_are_one():
    """Then both forms are the mean return; and what lies behind an end changes nothing."""
    key = rng.key(9)
    reward, valid = rng.normal(key, (5, 4)), torch.arange(4) < torch.tensor([4, 2, 3, 1, 4]).unsqueeze(1)
    noise = torch.where(valid, 0.0, 7.0)
    discount = 0.9 ** torch.arange(4).double()
    mean = (torch.where(valid, reward, 0).double() * discount).sum(1).mean().item()
    for weighted in (False, True):
        assert importance_sampling(noise, reward, valid, 0.9, weighted=weighted).item() == pytest.approx(mean, abs=1e-9)


def test_fitted_values_are_those_of_the_policy():
    """With every decision recorded, the fitted value from the first steps is what the policy earns, by enumeration."""
    learner = made.make_learner("bc", seed=5, gamma=GAMMA)
    for parameter in learner.policy.get_policy_head().parameters():
        parameter.data.mul_(1.0 + 20.0 * (parameter.dim() > 1))
    fitted = FittedQ(learner.policy, build_critics(made.SIZES, made.SEEN, 3, 1), learner.config, made.SIZES)
    optimizer, batch = torch.optim.Adam(fitted.parameters(), lr=5e-3), recorded()
    for step in range(400):
        rows = rng.permutation(rng.fold_in(rng.key(4), step), len(batch))[:64]
        optimizer.zero_grad()
        fitted.loss(batch[rows]).backward()
        optimizer.step()
        fitted.follow(0.1)
    firsts = batch[:STATES]
    value = fitted.values(firsts).reshape(STATES, HORIZON)[:, 0].mean().item()
    assert value == pytest.approx(exact(learner.policy), abs=0.15)
