"""Engines whose datasets take turns on a device, see ``esper.tolaria.residence``."""

from dataclasses import dataclass, field, fields

from torch import Tensor

from esper.engine import Engine
from esper.leyline.events import Performance, Transition
from esper.leyline.state import State
from esper.tolaria.residence import Residence


@dataclass(frozen=True, repr=False)
class ResidentEngine(Engine):
    """An engine that brings its dataset to the device before it reads samples.

    Attributes:
      residence: of the dataset.
    """

    residence: Residence = field(kw_only=True)

    def bring(self) -> None:
        """Have the samples on the device."""
        self.residence.bring(self.data)

    def step(self, state: State, action: Tensor) -> tuple[State, Transition]:
        """As ``Engine.step``."""
        self.bring()
        return super().step(state, action)

    def test(self, state: State) -> Performance:
        """As ``Engine.test``."""
        self.bring()
        return super().test(state)


def residing(engine: Engine, residence: Residence) -> ResidentEngine:
    """The same engine, whose dataset is taken in."""
    own = {each.name: getattr(engine, each.name) for each in fields(Engine)}
    return ResidentEngine(**{**own, "data": residence.lodge(engine.data)}, residence=residence)
