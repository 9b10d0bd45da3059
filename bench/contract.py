"""What a contender is: a handful of functions over one workload."""

from collections.abc import Callable
from typing import NamedTuple

from bench.workload import Array


class ValidationResult(NamedTuple):
    """What validation says."""

    accuracy: Array  # [E]; percentage points
    effect: Array  # [E, S]; what every active seed contributes (or, behind the host, would): percentage points


class StepResult(NamedTuple):
    """What an environment step says."""

    mean_loss: Array  # [E]; nats, over the epoch's SGD steps
    scores: ValidationResult


class Contender(NamedTuple):
    """One way to do the work. Results are numpy arrays, so whoever returns them has finished.

    Attributes:
      reset: back to the initial numbers; not timed.
      train: the SGD steps of an epoch -> losses [k, E].
      validate: scores as they stand.
      norms: L2 norms [E, 1 + S] of the parameters of every host and seed as they stand; 0 without an active seed.
      step: one environment step from where things stand, with the first epoch's minibatches; this is timed.
      close: end whatever was started.
    """

    reset: Callable[[], None]
    train: Callable[[int], Array]
    validate: Callable[[], ValidationResult]
    norms: Callable[[], Array]
    step: Callable[[], StepResult]
    close: Callable[[], None] = lambda: None
