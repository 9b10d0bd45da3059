"""Arms and their selection: hand-computed examples, a model in plain Python, frequencies and a constructed problem."""

import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline.decisions import Intent, Reason
from esper.tamiyo.arms import BanditConfig, no_statistics, pay, scores, success_rate
from esper.tamiyo.selection import STRATEGIES, only, select
from esper.utils import rng

ZERO = torch.zeros(1, dtype=torch.int64)
ALL = torch.ones(1, 3, dtype=torch.bool)


def told(config, epochs, chosen=None):
    """Statistics of one environment after epochs of (arms paid, pp gained, nats lost)."""
    arms = len(epochs[0][0])
    statistics = no_statistics(config, 1, arms, "cpu")
    for paid, gained, lost in epochs:
        statistics = pay(statistics, torch.tensor([paid]), torch.tensor([gained]), torch.tensor([lost]))
    return statistics.replace(chosen=torch.tensor([chosen or [1] * arms]))


def number(value):
    return torch.tensor([value], dtype=torch.float64)


@pytest.fixture
def example():
    """Arm 0 three epochs, arm 1 the last of them alone, arm 2 none."""
    epochs = [([True, False, False], 1.0, -0.1), ([True, False, False], 2.0, -0.2), ([True, True, False], 3.0, 0.3)]
    return told(BanditConfig(), epochs, [3, 7, 0])


def test_scores_by_hand(example):
    """Weights 0.9025, 0.95, 1: accuracy 5.8025 / 2.8525, loss 0.01975 / 2.8525; arm 1: 0.7 * 3 - 0.3 * 0.3."""
    found = scores(BanditConfig(), example)
    assert found[0].tolist() == pytest.approx([1.421849255, 2.01, 0.0], abs=1e-6)
    assert success_rate(BanditConfig(), example)[0].tolist() == pytest.approx([4 / 5, 2 / 3, 1 / 2], abs=1e-12)


def test_bounds_by_hand(example):
    """Bonuses 2 sqrt(ln 10 / 3) = 1.752174 and 2 sqrt(ln 10 / 7) = 1.147072; the first bound is 3.174023."""
    selected = select(STRATEGIES["ucb"], BanditConfig(), example, ALL, ZERO, rng.key(0)[None])
    ln10 = 2.302585092994046
    expected = [1.421849255 + 2 * (ln10 / 3) ** 0.5, 2.01 + 2 * (ln10 / 7) ** 0.5, math.inf]
    assert expected[0] == pytest.approx(3.174023, abs=1e-5)
    assert selected.scores[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert int(selected.arm) == 2 and int(selected.reason) == Reason.UNTRIED
    among = select(
        STRATEGIES["ucb"], BanditConfig(), example, torch.tensor([[True, True, False]]), ZERO, rng.key(0)[None]
    )
    assert int(among.arm) == 0 and int(among.reason) == Reason.HIGHEST_BOUND
    assert int(among.intent) == Intent.EXPLORE, "arm 1 has the higher score"


class Model:
    """One environment's arms as lists."""

    def __init__(self, config, arms):
        self.config = config
        self.rings = [(deque(maxlen=config.window), deque(maxlen=config.window)) for _ in range(arms)]
        self.chosen, self.hits, self.misses = [0] * arms, [0] * arms, [0] * arms

    def pay(self, paid, gained, lost):
        for arm, each in enumerate(paid):
            if each:
                self.rings[arm][0].append(gained)
                self.rings[arm][1].append(lost)
                good = gained > 0 or lost < 0
                self.hits[arm] += good
                self.misses[arm] += not good

    def score(self, arm):
        config, (gains, losses) = self.config, self.rings[arm]
        if not gains:
            return 0.0

        def mean(ring):
            latest = list(ring)[::-1][: config.recent]
            weights = [config.decay**age for age in range(len(latest))]
            return sum(w * x for w, x in zip(weights, latest, strict=True)) / sum(weights)

        return config.accuracy_weight * mean(gains) - config.loss_weight * mean(losses)

    def bound(self, arm):
        if self.chosen[arm] == 0:
            return math.inf
        return self.score(arm) + self.config.exploration * math.sqrt(math.log(sum(self.chosen)) / self.chosen[arm])

    def greedy(self, arm):
        return math.inf if self.chosen[arm] == 0 else self.score(arm)

    def weight(self, arm):
        return self.config.untried_weight if self.chosen[arm] == 0 else self.score(arm)


GRID = st.integers(-40, 40).map(lambda value: value / 8)
EPOCHS = st.lists(
    st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), GRID, GRID, st.integers(0, 7)), min_size=1, max_size=24
)


@settings(max_examples=60)
@given(EPOCHS, st.integers(1, 6), st.integers(0, 3))
def test_everything_is_the_lists_model(epochs, window, spare):
    """Chance is turned off (epsilon and temperature 0), so that every strategy but Thompson's is a function."""
    config = BanditConfig(window=window + spare, recent=window, epsilon=0.0, temperature=0.0)
    statistics, model = no_statistics(config, 1, 3, "cpu"), Model(config, 3)
    figures = {"ucb": model.bound, "epsilon": model.greedy, "softmax": model.weight}
    for paid, gained, lost, open_ in epochs:
        statistics = pay(statistics, torch.tensor([paid]), number(gained), number(lost))
        model.pay(paid, gained, lost)
        assert scores(config, statistics)[0].tolist() == pytest.approx([model.score(arm) for arm in range(3)], abs=1e-9)
        assert statistics.successes[0].tolist() == model.hits and statistics.failures[0].tolist() == model.misses
        viable = [arm for arm in range(3) if open_ >> arm & 1] or [0, 1, 2]
        mask = torch.tensor([[arm in viable for arm in range(3)]])
        for name, figure in figures.items():
            selected = select(STRATEGIES[name], config, statistics, mask, ZERO, rng.key(1)[None])
            best = max(figure(arm) for arm in viable)
            arm = int(selected.arm)
            assert arm in viable and figure(arm) == pytest.approx(best, abs=1e-9)
            tried = [model.score(other) for other in viable if model.chosen[other]]
            explores = model.chosen[arm] == 0 or model.score(arm) < max(tried) - 1e-9
            assert (int(selected.intent) == Intent.EXPLORE) == explores
        taken = int(select(STRATEGIES["ucb"], config, statistics, mask, ZERO, rng.key(1)[None]).arm)
        statistics.set_("chosen", statistics.chosen + (torch.arange(3) == taken))
        model.chosen[taken] += 1


ROWS = 8_000


def shares(name, config, statistics, viable, epoch=0):
    """How often every arm is taken under ROWS keys."""
    rows = statistics.expand(ROWS).contiguous()
    keys = rng.split(rng.key(5), ROWS)
    found = select(
        STRATEGIES[name], config, rows, viable.expand(ROWS, -1), torch.full((ROWS,), epoch, dtype=torch.int64), keys
    )
    return torch.bincount(found.arm, minlength=viable.shape[1]) / ROWS


def test_softmax_draws_by_weight(example):
    viable = torch.tensor([[True, True, True]])
    weights = [math.exp(value / 2) for value in (1.421849255, 2.01, 0.1)]
    found = shares("softmax", BanditConfig(temperature=2.0), example, viable)
    assert found.tolist() == pytest.approx([value / sum(weights) for value in weights], abs=0.025)
    closed = shares("softmax", BanditConfig(temperature=2.0), example, torch.tensor([[True, False, True]]))
    assert closed[1] == 0 and float(closed[0]) == pytest.approx(weights[0] / (weights[0] + weights[2]), abs=0.025)


def test_epsilon_fades_by_epoch(example):
    """Of arms 0 and 1 the second is better: the first is taken by half of the trials alone."""
    viable = torch.tensor([[True, True, False]])
    for epoch in (0, 100):
        expected = 0.4 * 0.98**epoch / 2
        found = shares("epsilon", BanditConfig(epsilon=0.4, epsilon_decay=0.98), example, viable, epoch)
        assert float(found[0]) == pytest.approx(expected, abs=5 * math.sqrt(expected / ROWS)) and found[2] == 0


def test_thompson_takes_an_arm_as_often_as_it_is_better(example):
    """P(X > Y) for X ~ Beta(4, 1) and Y ~ Beta(2, 1): integral of 4 x^3 x^2 dx = 4 / 6. (Successes 3 of 3, 1 of 1.)"""
    found = shares("thompson", BanditConfig(), example, torch.tensor([[True, True, False]]))
    assert float(found[0]) == pytest.approx(4 / 6, abs=0.027) and found[2] == 0


def test_beta_numbers_follow_their_law():
    """Against the sum of binomials that the distribution is for whole parameters (Kolmogorov's bound at 1 in 1,000)."""
    keys = rng.split(rng.key(3), ROWS)
    for a, b in ((1, 1), (3, 2), (1, 9), (40, 25)):
        drawn = rng.beta(keys, torch.full((ROWS,), a), torch.full((ROWS,), b)).sort().values
        n = a + b - 1
        law = sum(math.comb(n, j) * drawn**j * (1 - drawn) ** (n - j) for j in range(a, n + 1))
        assert float((law - torch.arange(1, ROWS + 1) / ROWS).abs().max()) < 1.95 / ROWS**0.5
    few = rng.beta(keys[7:9], torch.tensor([40, 40]), torch.tensor([25, 25]))
    assert torch.equal(few, rng.beta(keys, torch.full((ROWS,), 40), torch.full((ROWS,), 25))[7:9])


MEANS = torch.tensor([-1.0, 0.5, 5.0, 1.0])
"""pp an epoch of the constructed problem's arms; the third is best."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_best_arm_of_a_constructed_problem_is_found_and_kept(name):
    """Noise of 2 pp, 12 environments, 160 choices of which the first 40 are burn-in."""
    envs, config = 12, BanditConfig()
    statistics = no_statistics(config, envs, 4, "cpu")
    keys = rng.split(rng.key(9), envs)
    taken = []
    for step in range(160):
        key = rng.fold_in(keys, step)
        epoch = torch.full((envs,), step % 25)
        arm = select(STRATEGIES[name], config, statistics, torch.ones(envs, 4, dtype=torch.bool), epoch, key).arm
        chosen = torch.arange(4) == arm.unsqueeze(1)
        gained = MEANS[arm] + 2 * rng.normal(rng.fold_in(key, 7), ())
        statistics = pay(statistics.replace(chosen=statistics.chosen + chosen), chosen, gained, -gained / 50)
        taken.append(arm)
    late = torch.stack(taken[40:])
    assert (statistics.chosen > 0).all(), "every arm is tried"
    assert float((late == 2).double().mean()) >= 0.7
    for part in late.split(40):
        assert ((part == 2).any(0)).all(), "the best arm is never starved"


def test_environments_choose_by_themselves():
    config, generator = BanditConfig(), torch.Generator().manual_seed(4)
    statistics = no_statistics(config, 12, 3, "cpu")
    for _ in range(6):
        paid = torch.rand(12, 3, generator=generator) < 0.5
        statistics = pay(statistics, paid, *torch.randn(2, 12, generator=generator))
    statistics = statistics.replace(chosen=statistics.measured)
    viable, keys, epoch = torch.ones(12, 3, dtype=torch.bool), rng.split(rng.key(2), 12), torch.arange(12)
    for strategy in (*STRATEGIES.values(), only):
        whole = select(strategy, config, statistics, viable, epoch, keys)
        part = select(strategy, config, statistics[3:8], viable[3:8], epoch[3:8], keys[3:8])
        assert all(torch.equal(a, b[3:8]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize(
    "field",
    [
        {"window": 0},
        {"recent": 60},
        {"decay": 0.0},
        {"prior": 0.5},
        {"epsilon": 1.5},
        {"temperature": -1.0},
        {"max_active": 1.5},
        {"memory_share": 0.0},
        {"exploration": float("nan")},
        {"cool_down": True},
    ],
)
def test_numbers_are_checked(field):
    with pytest.raises(ValueError, match=rf"bandit\.{next(iter(field))} = .*expected"):
        BanditConfig(**field)
