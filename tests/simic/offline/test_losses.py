"""Losses against renderings in NumPy, of the formulas in the modules' docstrings; LSTM and heads written out."""

from copy import deepcopy

import numpy as np
import pytest
import torch

ALGORITHMS = ("bc", "iql", "cql")
EXACT = {"rel": 1e-5, "abs": 1e-5}


def arrays(module):
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalised(x, weights, name):
    middle, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - middle) / np.sqrt(spread + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def trunk(module, seen):
    """Hidden [T + 1, H] of one window [T + 1, O], from an empty memory; gates i, f, g, o."""
    features, lstm, norm = (arrays(part) for part in module)
    lstm = {name.rpartition(".")[2]: value for name, value in lstm.items()}
    size = lstm["weight_hh_l0"].shape[1]
    h, c, found = np.zeros(size), np.zeros(size), []
    for x in seen:
        x = x @ features["module.linear.weight"].T + features["module.linear.bias"]
        x = np.maximum(normalised(x, {n.removeprefix("module."): v for n, v in features.items()}, "norm"), 0)
        gates = lstm["weight_ih_l0"] @ x + lstm["bias_ih_l0"] + lstm["weight_hh_l0"] @ h + lstm["bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    norm = {n.removeprefix("module."): v for n, v in norm.items()}
    return normalised(np.stack(found), {f"norm.{n}": v for n, v in norm.items()}, "norm")


def dense(hidden, weights, prefix=""):
    first = hidden @ weights[f"{prefix}0.weight"].T + weights[f"{prefix}0.bias"]
    return np.maximum(first, 0) @ weights[f"{prefix}2.weight"].T + weights[f"{prefix}2.bias"]


def values_of(head, hidden, mask):
    weights = arrays(head)
    return np.where(mask, weights["scale"] * dense(hidden, weights, "head."), -np.inf)


def log_policy(policy, hidden, mask):
    """log pi of the factored policy: an operation, then its arguments, softmaxes over what is legal."""
    heads = policy.get_policy_head().module[0].module
    weights, codec = arrays(heads), heads.codec
    part = {name: dense(hidden, weights, f"{name}.") for name in ("op", "slot", "blueprint", "blend")}
    op, out = codec.op.numpy(), np.full(mask.shape, -np.inf)
    arguments = np.zeros(mask.shape)
    for index, action in enumerate(codec.actions):
        if action.slot >= 0:
            arguments[:, index] += part["slot"][:, int(action.op) * heads.slots + action.slot]
        if action.blueprint >= 0:
            arguments[:, index] += part["blueprint"][:, action.blueprint]
        if action.blend >= 0:
            arguments[:, index] += part["blend"][:, action.blend]
    for row in range(len(mask)):
        legal = [each for each in range(len(codec.ops)) if mask[row, op == each].any()]
        scores = part["op"][row, legal] - np.log(np.exp(part["op"][row, legal]).sum())
        for score, each in zip(scores, legal, strict=True):
            here = mask[row] & (op == each)
            out[row, here] = score + arguments[row, here] - np.log(np.exp(arguments[row, here]).sum())
    return out


class Rendered:
    """Rows of windows, and what networks make of them, window by window."""

    def __init__(self, batch):
        self.batch, data = batch, batch.detach()
        sizes = data["valid"].sum(1).tolist()

        def rows(value):
            return np.concatenate([value[n, :size].double().numpy() for n, size in enumerate(sizes)])

        self.sizes = sizes
        self.action = rows(data["action"]).astype(int)
        self.mask = rows(data["action_mask"]).astype(bool)
        self.mask_after = rows(data["next", "action_mask"]).astype(bool)
        self.reward, self.ended = rows(data["next", "reward"])[:, 0], rows(data["next", "terminated"])[:, 0]
        self.to_go = rows(data["to_go"])

    def hidden(self, module):
        """Of the steps and of what is behind them."""
        here, there = [], []
        for n, size in enumerate(self.sizes):
            seen = self.batch["observation"][n, :size], self.batch["next", "observation"][n, size - 1 : size]
            found = trunk(module, torch.cat(seen).double().numpy())
            here.append(found[:-1])
            there.append(found[1:])
        return np.concatenate(here), np.concatenate(there)

    def chosen(self, values):
        return values[np.arange(len(self.action)), self.action]


def value_of(policy, hidden):
    weights = arrays(policy.get_value_head().module)
    return weights["scale"] * dense(hidden, weights, "head.")[:, 0]


def moved(learner, windows):
    """A learner some steps on, so that targets and critics differ."""
    for seed in range(3):
        learner.step(windows(50 + seed))
    return learner


@pytest.mark.parametrize("seed", range(3))
def test_behaviour_cloning(learner, windows, seed):
    made, batch = moved(learner("bc", lr=0.02), windows), windows(seed)
    found, rows = made.objective.losses(batch), Rendered(batch)
    hidden, _ = rows.hidden(made.policy.module[0])
    surprise = -rows.chosen(log_policy(made.policy, hidden, rows.mask)).mean()
    off = ((value_of(made.policy, hidden) - rows.to_go) ** 2).mean()
    assert found.told["surprise"].item() == pytest.approx(surprise, **EXACT)
    assert found.told["value_loss"].item() == pytest.approx(off, **EXACT)
    assert found.total.item() == pytest.approx(surprise + 0.5 * off / 3.0**2, **EXACT)


@pytest.mark.parametrize(("seed", "horizon"), [(0, "cut"), (1, "end"), (2, "cut")])
def test_implicit_q_learning(learner, windows, seed, horizon):
    beta, tau, gamma = 40.0, 0.7, 0.9
    made = moved(learner("iql", beta=beta, gamma=gamma, horizon=horizon, target_rate=0.3, lr=0.02), windows)
    batch = windows(seed)
    found, rows, loss = made.objective.losses(batch), Rendered(batch), made.objective.loss
    here, there = rows.hidden(made.policy.module[0])
    heads = []
    for params, own in ((loss.qvalue_network_params, made.objective.trunk), (loss.target_qvalue_network_params, None)):
        hidden, _ = rows.hidden(own if own is not None else made.objective.target)
        pair = []
        for each in params.unbind(0):
            network = deepcopy(loss.qvalue_network)
            with each.data.to_module(network):
                pair.append(rows.chosen(values_of(network.module, hidden, rows.mask)))
        heads.append(pair)
    (one, two), smaller = heads[0], np.minimum(*heads[1])
    assert np.abs(np.minimum(one, two) - smaller).max() > 1e-3, "target and critic must differ"
    value, ended = value_of(made.policy, here), rows.ended
    if horizon == "end":
        ended = torch.cat([batch["next", "done"][n, :s, 0] for n, s in enumerate(rows.sizes)]).double().numpy()
    target = rows.reward + gamma * (1 - ended) * value_of(made.policy, there)
    u = smaller - value
    weight = np.minimum(np.exp(beta * u), 100.0)
    expected = {
        "policy_loss": -(weight * rows.chosen(log_policy(made.policy, here, rows.mask))).mean(),
        "action_value_loss": ((target - one) ** 2 + (target - two) ** 2).mean(),
        "value_loss": (np.abs(tau - (u < 0)) * u**2).mean(),
        "advantage": u.mean(),
        "clipped": (weight >= 100.0).mean(),
    }
    assert 0 < expected["clipped"] < 1, "the clip must act on some"
    for name, number in expected.items():
        assert found.told[name].item() == pytest.approx(number, **EXACT), name
    total = expected["policy_loss"] + (0.5 * expected["value_loss"] + expected["action_value_loss"]) / 3.0**2
    assert found.total.item() == pytest.approx(total, **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_conservative_q_learning(learner, windows, seed):
    gamma, alpha, cold = 0.9, 0.7, 0.5
    made = learner("cql", alpha=alpha, gamma=gamma, temperature=cold, target_rate=0.3, lr=0.02)
    moved(made, windows)
    batch, objective = windows(seed), made.objective
    found, rows = objective.losses(batch), Rendered(batch)
    values = values_of(objective.head, rows.hidden(objective.trunk)[0], rows.mask)
    ahead = values_of(objective.target_head, rows.hidden(objective.target_trunk)[1], rows.mask_after).max(-1)
    online = values_of(objective.head, rows.hidden(objective.trunk)[1], rows.mask_after).max(-1)
    assert np.abs(ahead - online).max() > 1e-3, "target and critic must differ"
    target = rows.reward + gamma * (1 - rows.ended) * ahead
    chance = np.exp(values / cold) / np.exp(values / cold).sum(-1, keepdims=True)
    here, _ = rows.hidden(made.policy.module[0])
    log_pi = log_policy(made.policy, here, rows.mask)
    worth = (chance * np.where(rows.mask, values, 0)).sum(-1)
    expected = {
        "bellman_loss": 0.5 * ((target - rows.chosen(values)) ** 2).mean(),
        "penalty": (np.log(np.exp(values).sum(-1)) - rows.chosen(values)).mean(),
        "policy_loss": -(chance * np.where(rows.mask, log_pi, 0)).sum(-1).mean(),
        "value_loss": ((worth - value_of(made.policy, here)) ** 2).mean(),
        "entropy": -(np.exp(log_pi) * np.where(rows.mask, log_pi, 0)).sum(-1).mean(),
        "best_value": values.max(-1).mean(),
    }
    for name, number in expected.items():
        assert found.told[name].item() == pytest.approx(number, **EXACT), name
    of_values = (expected["bellman_loss"] + alpha * expected["penalty"]) / 3.0**2
    total = of_values + expected["policy_loss"] + 0.5 * expected["value_loss"] / 3.0**2
    assert found.total.item() == pytest.approx(total, **EXACT)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_window_does_not_depend_on_its_neighbour(learner, windows, algorithm):
    """The gradient of windows together is the mean of theirs alone, weighted by their rows; so are the losses."""
    made, batch = moved(learner(algorithm, lr=0.02), windows), windows(7)
    parameters = [*made.policy.parameters(), *(p for p in made.critics.parameters() if p.requires_grad)]

    def gradient(part):
        total = made.objective.losses(part).total
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)], total.item()

    together, loss = gradient(batch)
    alone = [gradient(batch[n : n + 1]) for n in range(len(batch))]
    share = (batch["valid"].sum(1) / batch["valid"].sum()).tolist()
    assert loss == pytest.approx(sum(s * each for s, (_, each) in zip(share, alone, strict=True)), rel=1e-5)
    for place, whole in enumerate(together):
        torch.testing.assert_close(
            whole, sum(s * each[place] for s, (each, _) in zip(share, alone, strict=True)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_no_data_changes_nothing(learner, windows, algorithm):
    made, batch = learner(algorithm), windows(8)
    other, hole = batch.clone(), ~batch["valid"]
    for key in ("observation", "to_go", ("next", "observation"), ("next", "reward")):
        other[key][hole] = 1e3
    first, second = (made.objective.losses(each).total for each in (batch, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("algorithm", ("iql", "cql"))
def test_targets_follow_slowly(learner, windows, algorithm):
    """target + rate (critic - target), every tensor of trunk and heads; at rate 0 they stand."""
    for rate in (0.0, 0.25):
        made = learner(algorithm, target_rate=rate, lr=0.02)
        pairs = {
            name: f"target_{name}" for name in dict(made.critics.named_children()) if not name.startswith("target")
        }
        before = {name: value.clone() for name, value in made.critics.state_dict().items()}
        made.step(windows(1))
        after, seen = made.critics.state_dict(), 0
        for name, value in after.items():
            part, _, rest = name.partition(".")
            if part in pairs:
                target = f"{pairs[part]}.{rest}"
                expected = before[target] + rate * (value - before[target])
                torch.testing.assert_close(after[target], expected, rtol=1e-6, atol=1e-7)
                seen += not torch.equal(value, before[name])
        assert seen > 5, "the critics must move"
