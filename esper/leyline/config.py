"""Config: the structure of a run. Integers, names, enums and tuples only; a change of it is a change of the program.

Numbers that may vary without changing the program are ``HyperParams``.
"""

from dataclasses import dataclass
from enum import Enum
from numbers import Integral

import torch

from esper.leyline.actions import Blend
from esper.utils.documents import shown

MOST_SAMPLES = 1 << 31
"""What a count may be at most; those of ``MOST`` are sizes of tensors for every environment, or of a loop."""

MOST = {
    "batch_size": 1 << 20,
    "loss_window": 1 << 16,
    "history": 1 << 12,
    "decision_history": 1 << 12,
    "horizon": 10**6,
    "crop_padding": 1 << 10,
}


class ConfigError(ValueError):
    """A configuration that cannot be built; one line with place, value and what is allowed."""


class SampleOrder(Enum):
    """Whether all environments see the same minibatches or each its own."""

    SHARED = "shared"
    INDEPENDENT = "independent"


class Isolation(Enum):
    """What a seed in TRAINING learns by, and what it may do to the host's gradient.

    ``STRAIGHT_THROUGH``: it follows the gradient at the host's output, and what it reads is held constant until
    BLENDING ends. ``OBJECTIVE``: it descends the loss of the network as if it were on at its target alpha, all else
    given. ``NONE``: as straight-through, but nothing is held constant.
    """

    STRAIGHT_THROUGH = "straight_through"
    OBJECTIVE = "objective"
    NONE = "none"


class Precision(Enum):
    """Floating-point types: one of what is kept, and one of features and matrix products.

    ``BF16`` and ``FLOAT16`` keep parameters, statistics, optimizer moments, losses, data and metrics in float32, and
    compute features and matrix products in 16 bits (Micikevicius et al. 2018; Kalamkar et al. 2019). ``FLOAT16`` has
    few exponents, so the loss of every environment is scaled while its gradient is computed; it is for devices without
    bfloat16.
    """

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BF16 = "bf16"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is kept: parameters, statistics, moments, losses, data and metrics."""
        return torch.float64 if self is Precision.FLOAT64 else torch.float32

    @property
    def features(self) -> torch.dtype:
        """The type of features and of the factors of matrix products."""
        return {Precision.BF16: torch.bfloat16, Precision.FLOAT16: torch.float16}.get(self, self.dtype)

    @property
    def is_mixed(self) -> bool:
        """Whether features have another type than what is kept."""
        return self.features != self.dtype


class Determinism(Enum):
    """What the bits of an environment's trajectory may depend on, on one machine and build.

    ``ORDINARY``: the batch as a whole: the same command gives the same bits, and no environment's numbers reach
    another. ``STRICT``: under a fixed policy, nothing but the environment's own number and the seed: not how many
    others there are, which, or in what order.
    """

    ORDINARY = "ordinary"
    STRICT = "strict"


@dataclass(frozen=True)
class Config:
    """Structure of a batch of environments.

    Attributes:
      num_envs: environments E in the batch, >= 1.
      slots: per slot, the index of the host block behind which it sits, or its source and target as two points, such
        as "input:logits" or "block0:block2"; numbers ascend, repeats allowed.
      blends: blends on offer, without repeats.
      batch_size: samples B per SGD step and environment, >= 1.
      accumulate: parts of equal size into which a minibatch falls, >= 1; a divisor of batch_size. They are gone through
        one after the other and their gradients averaged, so that the features of one part are held at a time. The step
        is that of the whole minibatch, to rounding, but for what belongs to a part: the statistics of batch
        normalisation, and draws of modules that draw (dropout).
      steps_per_epoch: SGD steps k per environment step, >= 1.
      val_samples: validation samples V that decisions are made on, >= 1: a subset by a fixed key, chosen when an engine
        is made; None = at most twice an epoch's training samples, 2 k B, so that validation costs no more than training
        (a forward pass is a third of a step, and contributions add to it). All, where the dataset has fewer.
      eval_batch_size: samples per forward pass of an evaluation, >= 1 (memory only; results do not depend on it).
      horizon: decisions T per episode, >= 1.
      sample_order: shared or independent minibatches.
      crop_padding: pixels of zeros around a training image, of which a random crop of its own size is taken; 0 = none.
      mirror: whether half of the training images are reversed left to right.
      host_optimizer, seed_optimizer: by name: sgd (with momentum), adam, adamw.
      isolation: what a seed in TRAINING learns by.
      auto_advance: whether the clock advances seeds whose gate is open; otherwise only ADVANCE does.
      retarget: whether decisions may also ask for another weight of a seed that reaches the output (RETARGET).
      precision: float32; float64 for checks; bf16 or float16 for features of 16 bits.
      recompute: whether the inside of a block or a seed is computed again for its gradient, instead of being kept:
        less memory, more time, the same bits (Chen et al. 2016).
      deterministic: what the bits of an environment's trajectory may depend on.
      loss_window: epochs W the governor remembers, >= 2.
      history: epochs H of loss and accuracy kept in the signals, >= 1.
      decision_history: decisions D kept in the signals, which recurrent and memoryless policies see; 0 = none.
    """

    num_envs: int
    slots: tuple[int | str, ...]
    blends: tuple[Blend, ...] = (Blend.LINEAR, Blend.SIGMOID, Blend.GATED)
    batch_size: int = 64
    steps_per_epoch: int = 16
    accumulate: int = 1
    val_samples: int | None = None
    eval_batch_size: int = 512
    horizon: int = 25
    sample_order: SampleOrder = SampleOrder.SHARED
    crop_padding: int = 0
    mirror: bool = False
    host_optimizer: str = "sgd"
    seed_optimizer: str = "sgd"
    isolation: Isolation = Isolation.OBJECTIVE
    auto_advance: bool = True
    retarget: bool = False
    precision: Precision = Precision.FLOAT32
    recompute: bool = False
    deterministic: Determinism = Determinism.ORDINARY
    loss_window: int = 20
    history: int = 5
    decision_history: int = 0

    def __post_init__(self) -> None:
        """Check every field; raise ``ConfigError`` with one line."""
        least = {"num_envs": 1, "batch_size": 1, "steps_per_epoch": 1, "eval_batch_size": 1, "horizon": 1}
        least |= {"accumulate": 1, "loss_window": 2, "history": 1, "crop_padding": 0, "decision_history": 0}
        for name, low in least.items():
            self._count(name, low, "")
        if self.val_samples is not None:
            self._count("val_samples", 1, ", or None")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"config.accumulate = {self.accumulate}: expected a divisor of batch_size {self.batch_size}"
            )
        kinds = {"sample_order": SampleOrder, "host_optimizer": str, "seed_optimizer": str, "isolation": Isolation}
        kinds |= {
            "precision": Precision,
            "deterministic": Determinism,
            "recompute": bool,
            "auto_advance": bool,
            "mirror": bool,
            "retarget": bool,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                words = {bool: "True or False", str: "a name"}
                allowed = words.get(kind) or " or ".join(str(member) for member in kind)  # type: ignore[attr-defined]
                raise ConfigError(f"config.{name} = {value!r}: expected {allowed}")
        known = isinstance(self.slots, tuple) and all(
            isinstance(slot, str) or (type(slot) is int and slot >= 0) for slot in self.slots
        )
        numbers = [slot for slot in self.slots if isinstance(slot, int)] if known else []
        if not known or numbers != sorted(numbers):
            raise ConfigError(
                f"config.slots = {self.slots!r}: expected a tuple of ascending host block indices, or of points such "
                "as 'input:logits'"
            )
        good = isinstance(self.blends, tuple) and self.blends and all(isinstance(b, Blend) for b in self.blends)
        if not good or len(set(self.blends)) != len(self.blends):
            raise ConfigError(f"config.blends = {self.blends!r}: expected a non-empty tuple of distinct Blend members")

    def _count(self, name: str, low: int, other: str) -> None:
        """Check an integer, and keep it as Python's own where it is NumPy's."""
        value, high = getattr(self, name), MOST.get(name, MOST_SAMPLES)
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < low:
            raise ConfigError(f"config.{name} = {shown(value)}: expected an integer >= {low}{other}")
        if int(value) > high:
            raise ConfigError(f"config.{name} = {shown(value)}: expected an integer <= {high}{other}")
        object.__setattr__(self, name, int(value))

    @property
    def most_val_samples(self) -> int:
        """Validation samples at most."""
        return 2 * self.batch_size * self.steps_per_epoch if self.val_samples is None else self.val_samples

    @property
    def num_slots(self) -> int:
        """Slots S per environment."""
        return len(self.slots)
