"""Config: the structure of a run. Integers, enums and tuples only; a change of it is a change of the program.

Numbers that may vary without changing the program are ``HyperParams``.
"""

from dataclasses import dataclass
from enum import Enum

import torch

from esper.leyline.actions import Blend


class ConfigError(ValueError):
    """A configuration that cannot be built; one line with place, value and what is allowed."""


class SampleOrder(Enum):
    """Whether all environments see the same minibatches or each its own."""

    SHARED = "shared"
    INDEPENDENT = "independent"


class Optimizer(Enum):
    """Optimizers of hosts and seeds, with torch.optim's definitions."""

    SGD = "sgd"
    ADAM = "adam"


class Precision(Enum):
    """Floating-point type of parameters, data and metrics."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return torch.float32 if self is Precision.FLOAT32 else torch.float64


@dataclass(frozen=True)
class Config:
    """Structure of a batch of environments.

    Attributes:
      num_envs: environments E in the batch, >= 1.
      slots: per slot, the index of the host stage after which it sits; ascending, repeats allowed.
      blends: blends on offer, without repeats.
      batch_size: samples B per SGD step and environment, >= 1.
      steps_per_epoch: SGD steps k per environment step, >= 1.
      eval_batch_size: validation samples per forward pass, >= 1 (memory only; results do not depend on it).
      horizon: decisions T per episode, >= 1.
      sample_order: shared or independent minibatches.
      crop_padding: pixels of zeros around a training image, of which a random crop of its own size is taken; 0 = none.
      mirror: whether half of the training images are reversed left to right.
      host_optimizer, seed_optimizer: SGD with momentum, or Adam.
      auto_advance: whether the clock advances seeds whose gate is open; otherwise only ADVANCE does.
      precision: float32, or float64 for checks.
      loss_window: epochs W the governor remembers, >= 2.
      history: epochs H of loss and accuracy kept in the signals, >= 1.
    """

    num_envs: int
    slots: tuple[int, ...]
    blends: tuple[Blend, ...] = (Blend.LINEAR, Blend.SIGMOID, Blend.GATED)
    batch_size: int = 64
    steps_per_epoch: int = 16
    eval_batch_size: int = 512
    horizon: int = 25
    sample_order: SampleOrder = SampleOrder.SHARED
    crop_padding: int = 0
    mirror: bool = False
    host_optimizer: Optimizer = Optimizer.SGD
    seed_optimizer: Optimizer = Optimizer.SGD
    auto_advance: bool = True
    precision: Precision = Precision.FLOAT32
    loss_window: int = 20
    history: int = 5

    def __post_init__(self) -> None:
        """Check every field; raise ``ConfigError`` with one line."""
        least = {"num_envs": 1, "batch_size": 1, "steps_per_epoch": 1, "eval_batch_size": 1, "horizon": 1}
        least |= {"loss_window": 2, "history": 1, "crop_padding": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"config.{name} = {value!r}: expected an integer >= {low}")
        kinds = {"sample_order": SampleOrder, "host_optimizer": Optimizer, "seed_optimizer": Optimizer}
        for name, kind in (kinds | {"precision": Precision, "auto_advance": bool, "mirror": bool}).items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                allowed = "True or False" if kind is bool else " or ".join(str(member) for member in kind)  # type: ignore[attr-defined]
                raise ConfigError(f"config.{name} = {value!r}: expected {allowed}")
        whole = isinstance(self.slots, tuple) and all(type(stage) is int and stage >= 0 for stage in self.slots)
        if not whole or list(self.slots) != sorted(self.slots):
            raise ConfigError(f"config.slots = {self.slots!r}: expected an ascending tuple of host stage indices")
        good = isinstance(self.blends, tuple) and self.blends and all(isinstance(b, Blend) for b in self.blends)
        if not good or len(set(self.blends)) != len(self.blends):
            raise ConfigError(f"config.blends = {self.blends!r}: expected a non-empty tuple of distinct Blend members")

    @property
    def num_slots(self) -> int:
        """Slots S per environment."""
        return len(self.slots)
