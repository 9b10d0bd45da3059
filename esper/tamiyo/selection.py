"""Selection: which arm a bandit takes. One signature, a table of strategies.

Every strategy gives each arm a figure of its own; the viable arm of the highest figure is taken, ties to the first.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.decisions import Intent, Reason
from esper.tamiyo.arms import ArmStatistics, BanditConfig, scores
from esper.utils import rng


class Ballot(NamedTuple):
    """What a strategy makes of the arms."""

    figure: Tensor  # float64 [E, N]; the highest viable one is taken
    shown: Tensor  # float64 [E, N]; the score that a record names
    reason: Tensor  # int64 [E, N]; Reason, should the arm be taken


class Selected(NamedTuple):
    """The arm that is taken in every environment; where none is viable, any."""

    arm: Tensor  # int64 [E]
    reason: Tensor  # int64 [E]; Reason
    intent: Tensor  # int64 [E]; Intent
    scores: Tensor  # float64 [E, N]


Strategy = Callable[[BanditConfig, ArmStatistics, Tensor, Tensor, Tensor], Ballot]
"""(numbers, statistics [E], viable arms bool [E, N], epoch int64 [E], key int64 [E, 2]) -> ballot."""


def upper_bound(config: BanditConfig, statistics: ArmStatistics, viable: Tensor, epoch: Tensor, key: Tensor) -> Ballot:
    """UCB1: score + c sqrt(ln N / n) after n choices of the arm and N in all; infinite at n = 0.

    Source: P. Auer, N. Cesa-Bianchi and P. Fischer, "Finite-time analysis of the multiarmed bandit problem" (2002).
    """
    del viable, epoch, key
    chosen = statistics.chosen.double()
    total = chosen.sum(1, keepdim=True).clamp(min=1)
    bound = scores(config, statistics) + config.exploration * (total.log() / chosen.clamp(min=1)).sqrt()
    figure = torch.where(chosen == 0, math.inf, bound)
    return Ballot(figure, figure, _reasons(statistics, Reason.HIGHEST_BOUND))


def thompson(config: BanditConfig, statistics: ArmStatistics, viable: Tensor, epoch: Tensor, key: Tensor) -> Ballot:
    """Thompson sampling: a draw from every arm's posterior Beta(prior + successes, prior + failures).

    Source: W. R. Thompson, "On the likelihood that one unknown probability exceeds another" (1933).
    """
    del viable, epoch
    hits, misses = statistics.successes + config.prior, statistics.failures + config.prior
    draw = rng.beta(rng.split(key, hits.shape[1]), hits, misses)
    return Ballot(draw, draw, _reasons(statistics, Reason.HIGHEST_DRAW))


def epsilon_greedy(
    config: BanditConfig, statistics: ArmStatistics, viable: Tensor, epoch: Tensor, key: Tensor
) -> Ballot:
    """With chance epsilon * epsilon_decay**epoch any viable arm, else the highest score, arms never chosen first."""
    coin, which = rng.split(key).unbind(-2)
    chance = config.epsilon * config.epsilon_decay ** epoch.double()
    explores = (rng.uniform(coin, (), dtype=torch.float64) < chance).unsqueeze(1)
    shown = torch.where(statistics.chosen == 0, math.inf, scores(config, statistics))
    lot = rng.uniform(which, (viable.shape[1],), dtype=torch.float64)
    reason = torch.where(explores, int(Reason.CHANCE), _reasons(statistics, Reason.HIGHEST_SCORE))
    return Ballot(torch.where(explores, lot, shown), shown, reason)


def softmax(config: BanditConfig, statistics: ArmStatistics, viable: Tensor, epoch: Tensor, key: Tensor) -> Ballot:
    """By weight: with probability exp(score / temperature) / sum over viable arms; at temperature 0 the highest.

    The draw is the highest of score / temperature plus Gumbel noise (``esper.utils.rng.categorical``).
    """
    del epoch
    weight = torch.where(statistics.chosen == 0, config.untried_weight, scores(config, statistics))
    if config.temperature == 0:
        return Ballot(weight, weight, _reasons(statistics, Reason.HIGHEST_SCORE))
    none = ~viable.any(1, keepdim=True)
    drawn = rng.categorical(key, torch.where(viable | none, weight / config.temperature, -math.inf))
    figure = (torch.arange(weight.shape[1], device=weight.device) == drawn.unsqueeze(1)).double()
    return Ballot(figure, weight, _reasons(statistics, Reason.BY_WEIGHT))


STRATEGIES: dict[str, Strategy] = {
    "ucb": upper_bound,
    "thompson": thompson,
    "epsilon": epsilon_greedy,
    "softmax": softmax,
}
"""Strategies by name."""


def only(config: BanditConfig, statistics: ArmStatistics, viable: Tensor, epoch: Tensor, key: Tensor) -> Ballot:
    """For a single arm, which is what a selector is held against: no arm is preferred to another."""
    del viable, epoch, key
    shown = scores(config, statistics)
    return Ballot(torch.zeros_like(shown), shown, torch.full_like(statistics.chosen, int(Reason.FIXED_ARM)))


def select(
    strategy: Strategy,
    config: BanditConfig,
    statistics: ArmStatistics,
    viable: Tensor,
    epoch: Tensor,
    key: Tensor,
) -> Selected:
    """Take an arm in every environment.

    A choice *explores* if its arm was never chosen before, or is not one of those whose score so far is the highest of
    all viable ones that were.

    Args:
      strategy: how.
      config: numbers.
      statistics: [E]; N >= 1 arms.
      viable: bool [E, N].
      epoch: int64 [E].
      key: int64 [E, 2].

    Returns:
      the arm; viable, where one is. Law: row i depends on row i alone.
    """
    ballot = strategy(config, statistics, viable, epoch, key)
    arm = torch.where(viable, ballot.figure, -math.inf).argmax(1)
    place = arm.unsqueeze(1)
    score, tried = scores(config, statistics), statistics.chosen > 0
    best = torch.where(viable & tried, score, -math.inf).amax(1)
    explores = ~tried.gather(1, place).squeeze(1) | (score.gather(1, place).squeeze(1) < best)
    intent = torch.where(explores, int(Intent.EXPLORE), int(Intent.EXPLOIT))
    return Selected(arm, ballot.reason.gather(1, place).squeeze(1), intent, ballot.shown)


def _reasons(statistics: ArmStatistics, tried: Reason) -> Tensor:
    """A reason for arms that were chosen before, and UNTRIED for the others, int64 [E, N]."""
    return torch.where(statistics.chosen == 0, int(Reason.UNTRIED), int(tried))
