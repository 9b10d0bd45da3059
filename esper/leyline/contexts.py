"""Contexts: what the environments of one task differ in, drawn from declared distributions.

An environment draws its numbers at its start, from its own key, and keeps them in its state; the distributions are a
part of the task's data. The class body of ``EnvContext`` is the one table of the numbers there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, NamedTuple

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.leyline.streams import Stream
from esper.utils import rng
from esper.utils.documents import figure


class ContextNumber(NamedTuple):
    """A number of an environment.

    Attributes:
      neutral: at which it changes nothing; what it is where a task declares no distribution.
      low, high: closed range.
      visible: whether a policy sees it, as whoever trains a network knows the rate that was set, the price to be paid
        and how many samples there are. How many labels are wrong and how noisy inputs are, nobody is told: it shows in
        the losses, if at all.
    """

    neutral: float
    low: float
    high: float
    visible: bool


class EnvContext(TypedTensorDict):
    """What an environment drew at its start, batch [E]; every leaf [E], of the configured precision.

    What is done by the numbers that act on samples is in ``esper.tolaria.variations``.
    """

    host_lr: Annotated[Tensor, ContextNumber(1.0, 1e-6, 1e6, True)]  # factor of the host's learning rate
    price: Annotated[Tensor, ContextNumber(1.0, 0.0, 1e6, True)]  # factor of the price of parameters in J
    data_share: Annotated[Tensor, ContextNumber(1.0, 1e-6, 1.0, True)]  # share of the training samples that exist
    label_noise: Annotated[Tensor, ContextNumber(0.0, 0.0, 1.0, False)]  # share of wrong training labels
    input_noise: Annotated[Tensor, ContextNumber(0.0, 0.0, 1e3, False)]  # of training inputs, see ``with_levels``
    shift: Annotated[Tensor, ContextNumber(0.0, 0.0, 1.0, False)]  # when classes change, see ``taught``


CONTEXT_NUMBERS: dict[str, ContextNumber] = {
    name: hint.__metadata__[0] for name, hint in EnvContext.__annotations__.items()
}
"""All numbers by name, in order."""


class Choice(NamedTuple):
    """One of several numbers, each as likely as the others; one that stands there twice is twice as likely."""

    values: tuple[float, ...]

    def quantile(self, u: Tensor) -> Tensor:
        """The number below which a share u in [0, 1) lies, of u's shape and dtype."""
        return u.new_tensor(self.values)[(u * len(self.values)).long()]


class Spread(NamedTuple):
    """Any number between two, uniformly, or so that its logarithm is uniform."""

    low: float
    high: float
    log: bool = False

    def quantile(self, u: Tensor) -> Tensor:
        """The number below which a share u in [0, 1) lies, of u's shape and dtype."""
        if self.log:
            return self.low * (self.high / self.low) ** u
        return self.low + (self.high - self.low) * u


Distribution = Choice | Spread


@dataclass(frozen=True)
class Variation:
    """How the environments of a task differ.

    Attributes:
      distributions: by names of ``EnvContext``'s numbers; the others are neutral everywhere. Of ``input_noise`` a
        ``Choice``, since a copy of the training inputs is kept for each of its numbers.
    """

    distributions: Mapping[str, Distribution] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Check every distribution; raise ``ConfigError`` with one line."""
        for name, spread in self.distributions.items():
            if name not in CONTEXT_NUMBERS:
                raise ConfigError(f"variation.{name}: unknown; known are {', '.join(CONTEXT_NUMBERS)}")
            kinds = (Choice,) if name == "input_noise" else (Choice, Spread)
            place = f"variation.{name} = {spread!r}"
            if not isinstance(spread, kinds) or (isinstance(spread, Choice) and not spread.values):
                raise ConfigError(f"{place}: expected {' or '.join(kind.__name__ for kind in kinds)} of numbers")
            low, high = CONTEXT_NUMBERS[name].low, CONTEXT_NUMBERS[name].high
            if not all(
                low <= number <= high for number in (spread.values if isinstance(spread, Choice) else spread[:2])
            ):
                raise ConfigError(f"{place}: expected numbers from {figure(low)} to {figure(high)}")
            if isinstance(spread, Spread) and not (spread.low <= spread.high and (spread.low > 0 or not spread.log)):
                raise ConfigError(f"{place}: expected the lower number first, and above 0 if logarithms are drawn")

    def __contains__(self, name: str) -> bool:
        """Whether a number is not neutral everywhere."""
        return name in self.distributions

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the numbers that a policy sees, in the order of the table."""
        return tuple(name for name, trait in CONTEXT_NUMBERS.items() if name in self and trait.visible)

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Different numbers of ``input_noise``, ascending; none if it is neutral."""
        noise = self.distributions.get("input_noise")
        return tuple(sorted(set(noise.values))) if isinstance(noise, Choice) else ()

    def record(self) -> dict[str, object]:
        """The distributions, JSON-able."""
        return {name: spread._asdict() for name, spread in self.distributions.items()}


FIXED = Variation()
"""No variation: all environments are given the same."""


def draw_context(variation: Variation, key: Tensor, dtype: torch.dtype) -> EnvContext:
    """What environments draw.

    Args:
      variation: from what.
      key: int64 [E, 2]; the environments' keys.
      dtype: of the numbers.

    Returns:
      context, batch [E]. Law: a number depends on its environment's key and its own distribution alone.
    """
    drawn = {}
    for place, (name, trait) in enumerate(CONTEXT_NUMBERS.items()):
        spread = variation.distributions.get(name, Choice((trait.neutral,)))
        u = rng.uniform(rng.fold_in(key, int(Stream.CONTEXT), place), (), dtype=torch.float64)
        drawn[name] = spread.quantile(u).to(dtype)
    return EnvContext(**drawn, batch_size=key.shape[:1])
