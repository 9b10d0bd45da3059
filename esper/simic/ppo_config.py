"""Numbers of the learner, and what is allowed of each."""

import math
from dataclasses import dataclass

from esper.simic.ranges import expect_in_ranges

RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip": (0.001, 0.99),  # the ratio's lower end is 1 - clip, and its logarithm is taken
    "epochs": (1, 100),
    "minibatches": (1, 1024),
    "lr": (0.0, 1.0),
    "warmup": (0.0, 1.0),
    "entropy_start": (0.0, 100.0),
    "entropy_end": (0.0, 100.0),
    "value_weight": (0.0, 1e6),
    "value_scale": (1e-6, 1e9),
    "max_grad_norm": (1e-6, 1e9),
    "sequence_chunk": (0, 10**6),
    "target_kl": (0.0, math.inf),  # infinite: no update ends early
}
"""Closed ranges of the learner's numbers."""

WHOLE = ("epochs", "minibatches")
"""Those that are integers."""


@dataclass(frozen=True)
class PPOConfig:
    """Numbers of the learner; ``RANGES`` has what is allowed.

    Attributes:
      gamma: discount per decision; the shaping's potential uses the same.
      gae_lambda: decay of the advantage estimate.
      clip: range of the probability ratio.
      epochs, minibatches: passes over a batch, and parts of each.
      lr: Adam's rate at its peak; warmed up over ``warmup`` of all rounds, then decaying linearly to a tenth.
      entropy_start, entropy_end: entropy bonus, linear over the rounds.
      value_weight: weight of the critic's loss.
      value_scale: the critic's errors are measured in this unit of return (the policy's ``value_scale``), so that the
        clipping of the gradient's norm does not drown the actor in the critic.
      max_grad_norm: of all parameters together.
      target_kl: an epoch in which the approximate KL exceeds 1.5 times this is the last.
      sequence_chunk: decisions after which the policy's memory is taken as given, so that gradients reach no further
        back and an update's memory does not grow with the horizon; 0 = none. See ``esper.simic.chunks``.
      exact_chunks: whether gradients cross chunks all the same, by running each twice.
    """

    gamma: float = 0.995
    gae_lambda: float = 0.95
    clip: float = 0.2
    epochs: int = 4
    minibatches: int = 4
    lr: float = 1e-3
    warmup: float = 0.05
    entropy_start: float = 0.05
    entropy_end: float = 0.005
    value_weight: float = 0.5
    value_scale: float = 1.0
    max_grad_norm: float = 0.5
    target_kl: float = 0.03
    sequence_chunk: int = 0
    exact_chunks: bool = False

    def __post_init__(self) -> None:
        """Check every number; raise ``ConfigError`` with one line."""
        expect_in_ranges("ppo", self, RANGES, WHOLE)
