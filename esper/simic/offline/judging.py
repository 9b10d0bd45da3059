"""What a policy would earn, from what others did: importance sampling per decision, with its interval.

A return under pi is a return under whoever decided, b, weighted by how much likelier pi makes the decisions (Horvitz &
Thompson 1952). A reward depends on the decisions up to it alone, so only their ratios count (Precup, Sutton & Singh
2000). With rho_t = product over k <= t of pi(a_k | s_k) / b(a_k | s_k), of n episodes i

    ordinary    v = 1/n sum over i, t of gamma^t rho_{i,t} r_{i,t}                                     (1)
    weighted    v = sum over t of gamma^t (sum over i of rho_{i,t} r_{i,t}) / (sum over i of rho_{i,t})  (2)

(1) is unbiased wherever b can do what pi may do: E_b[rho_t r_t] = E_pi[r_t], for the ratios turn b's probability of the
first t decisions into pi's. Its variance grows like the product of ratios. (2) divides by what the ratios sum up to, n
in expectation: a bias that goes with 1/n, and it never leaves the range of the rewards. Episodes of several policies
count each by the policy that played it. Where a policy draws nothing, b is 1 for what it did, and tells nothing of what
it did not do: the effective number of episodes, (sum rho)^2 / sum rho^2 at the last step (Kish 1965), is told with the
estimate, and where it is small the estimate says little.

The interval is that of the percentiles 2.5 and 97.5 over resamples of episodes (Efron 1979).
"""

from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import ActorValueOperator

from esper.simic.offline.objective import drawn, policy_keys
from esper.simic.offline.rows import along
from esper.utils import rng

LEVEL = 0.95


class Estimate(NamedTuple):
    """A policy's return, estimated from episodes of others.

    Attributes:
      value: discounted return of an episode.
      low, high: ends of its 95 % interval.
      effective: how many of the episodes count, by the spread of their weights.
      episodes: how many there are.
    """

    value: float
    low: float
    high: float
    effective: float
    episodes: int

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


@torch.no_grad()
def log_chances(policy: ActorValueOperator, batch: TensorDictBase, width: int) -> Tensor:
    """Log-probabilities pi(a | s) of the decisions of whole episodes, [N, T]; 0 where there is no data.

    Args:
      policy: whose.
      batch: windows [N, T] that begin where their episodes do.
      width: of its memory.
    """
    found = {key: value[:, :-1] for key, value in along(policy.module[0], batch, width, policy_keys(policy)).items()}
    given = batch.select("action_mask").update(found)
    chance: Tensor = policy.get_policy_head().get_dist(given).log_prob(batch["action"])
    return torch.where(batch["valid"], chance, 0.0)


def importance_sampling(
    log_ratio: Tensor, reward: Tensor, valid: Tensor, gamma: float, *, weighted: bool = True
) -> Tensor:
    """Formula (2), or (1).

    Args:
      log_ratio: [..., N, T]; log pi(a | s) - log b(a | s) of each decision.
      reward: [..., N, T].
      valid: bool [..., N, T]; which steps there were; what is behind an end earns nothing and keeps its weight.
      gamma: discount per decision.
      weighted: (2) rather than (1).

    Returns:
      [...], in float64.
    """
    weight = _weights(log_ratio, valid)
    earned = torch.where(valid, reward, 0.0).double()
    discount = gamma ** torch.arange(valid.shape[-1], dtype=torch.float64, device=valid.device)
    if not weighted:
        return (discount * weight * earned).sum(-1).mean(-1)
    whole = weight.sum(-2)
    return (discount * (weight * earned).sum(-2) / torch.where(whole > 0, whole, 1.0)).sum(-1)


def _weights(log_ratio: Tensor, valid: Tensor) -> Tensor:
    """rho_t, [..., N, T]."""
    return torch.where(valid, log_ratio.double(), 0.0).cumsum(-1).exp()


def estimate(
    log_ratio: Tensor, reward: Tensor, valid: Tensor, gamma: float, key: Tensor, draws: int = 1000
) -> Estimate:
    """The weighted estimate with its interval.

    Args:
      log_ratio, reward, valid, gamma: as ``importance_sampling``, [N, T].
      key: [2]; of the resamples.
      draws: how many.
    """
    count = len(valid)
    value = importance_sampling(log_ratio, reward, valid, gamma)
    found = list[Tensor]()
    for number in range(draws):
        picked = drawn(rng.fold_in(key, number), count, count)
        found.append(importance_sampling(log_ratio[picked], reward[picked], valid[picked], gamma))
    tail = (1 - LEVEL) / 2
    low, high = torch.stack(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    last = _weights(log_ratio, valid)[:, -1]
    whole = float((last**2).sum())
    return Estimate(float(value), low, high, float(last.sum() ** 2) / whole if whole else 0.0, count)


def judge(
    policy: ActorValueOperator, batch: TensorDictBase, width: int, gamma: float, key: Tensor, draws: int = 1000
) -> Estimate | None:
    """What a policy would earn, of whole episodes [N, T]; None where none tells by what chance it was decided.

    Episodes of policies that draw without telling from what (probability NaN) are left out.
    """
    told = torch.where(batch["valid"], batch["probability"], 1.0)
    known = (told > 0).all(1)
    if not bool(known.any()):
        return None
    batch, told = batch[known], told[known]
    ratio = log_chances(policy, batch, width) - told.log()
    return estimate(ratio, batch["next", "reward"].squeeze(-1), batch["valid"], gamma, key, draws)
