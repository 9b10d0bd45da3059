"""Numbers of the offline learners, and what is allowed of each."""

from dataclasses import dataclass

from esper.leyline.config import ConfigError
from esper.simic.ranges import expect_in_ranges

ALGORITHMS = ("bc", "iql", "cql")
"""Behaviour cloning, implicit Q-learning, conservative Q-learning."""

HORIZONS = ("cut", "end")
"""What a truncated episode's last step is learned as: a cut, with the successor's value behind it, or the end."""

OFFLINE_RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1.0),
    "expectile": (0.5, 0.999),
    "beta": (0.0, 1e6),
    "alpha": (0.0, 1e6),
    "temperature": (1e-6, 1e9),
    "target_rate": (0.0, 1.0),
    "lr": (0.0, 1.0),
    "updates": (1, 1_000_000),
    "fitted": (0, 1_000_000),
    "batch": (1, 65_536),
    "window": (0, 1_000_000),
    "value_weight": (0.0, 1e6),
    "value_scale": (1e-6, 1e9),
    "max_grad_norm": (1e-6, 1e9),
    "held_out": (0.0, 0.9),
}
"""Closed ranges of the learners' numbers."""

WHOLE = ("updates", "fitted", "batch", "window")
"""Those that are integers."""


@dataclass(frozen=True)
class OfflineConfig:
    """Numbers of an offline learner; ``OFFLINE_RANGES`` has what is allowed.

    Attributes:
      gamma: discount per decision.
      expectile: IQL's tau.
      beta: IQL's inverse temperature, per unit of return; TorchRL calls it ``temperature``.
      alpha: weight of CQL's penalty, return squared per nat. 1 is what the source's discrete experiments take on a
        tenth of a replay, and 4 on a hundredth (Kumar et al. 2020, appendix F, ``minq_weight`` in the authors' code);
        their rewards are cut to [-1, 1]. d3rlpy's discrete CQL takes 1, too.
      temperature: return per nat of the policy that is drawn from CQL's values; near 0 it is their maximum.
      target_rate: share of the critics that the targets take over with each step.
      lr: Adam's rate.
      updates: steps of Adam in a round.
      fitted: regressions of the fitted Q-evaluation at the end; 0 = none.
      batch: windows in a step.
      window: decisions in a window at most; 0 = whole episodes.
      value_weight: weight of the state value's loss beside the actor's.
      value_scale: unit of return in which the critics' errors count, and of their heads.
      max_grad_norm: of the policy's gradient, and of the critics'.
      held_out: share of the episodes that nothing is learned from, on which the policy is judged.
      horizon: of ``HORIZONS``.
    """

    gamma: float = 0.99
    expectile: float = 0.7
    beta: float = 3.0
    alpha: float = 1.0
    temperature: float = 0.1
    target_rate: float = 0.005
    lr: float = 1e-3
    updates: int = 200
    fitted: int = 1000
    batch: int = 32
    window: int = 0
    value_weight: float = 0.5
    value_scale: float = 20.0
    max_grad_norm: float = 0.5
    held_out: float = 0.1
    horizon: str = "cut"

    def __post_init__(self) -> None:
        """Check every number; raise ``ConfigError`` with one line."""
        expect_in_ranges("offline", self, OFFLINE_RANGES, WHOLE)
        if self.horizon not in HORIZONS:
            raise ConfigError(f"offline.horizon = {self.horizon!r}: expected {' or '.join(HORIZONS)}")
