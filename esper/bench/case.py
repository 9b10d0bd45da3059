"""What a case is: work that is checked before it is timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from esper.engine import Engine
from esper.kasmina.seeding import draw_seeds, place_seeds
from esper.leyline.actions import Blend
from esper.leyline.config import Precision
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.runtime.build import make
from esper.runtime.task import Task

SEED = 0
"""Of every state, policy and walk: all repeats do the same work."""

SHAKE = 0.1
"""What every seed's numbers are shaken by; see ``place_seeds``."""

QUICK: dict[str, Any] = {"steps_per_epoch": 3, "batch_size": 8, "horizon": 3}
"""Settings of ``--quick``, in place of the preset's: enough to see that a case works."""


@dataclass
class Bench:
    """What the cases of a run share.

    Attributes:
      task: the host and what grows in it.
      device: where everything runs.
      precision: of parameters and data.
      backend: how networks are run, as asked for.
      quick: tiny sizes.
      engines: those built so far, by E; all cases share them.
    """

    task: Task
    device: torch.device
    precision: Precision
    backend: str
    quick: bool = False
    engines: dict[int, Engine] = field(default_factory=dict)

    def engine(self, envs: int) -> Engine:
        """The engine of E environments, built on first use."""
        if envs not in self.engines:
            settings = {"precision": self.precision} | (QUICK if self.quick else {})
            self.engines[envs] = make(self.task, envs, self.device, self.backend, **settings)
        return self.engines[envs]


class Trial(NamedTuple):
    """A case made ready for a number of environments.

    Attributes:
      run: one repeat; returns what it computed.
      engine: that it runs on.
      state: from which every repeat starts.
      extra: what else the case's gate looks at.
      close: gives back what a repeat holds on to.
      rates: of a case with parts, what was measured of each so far; see ``Result.rates``.
    """

    run: Callable[[], Any]
    engine: Engine
    state: State
    extra: Any = None
    close: Callable[[], None] = lambda: None
    rates: Callable[[], dict[str, list[list[float]]]] = dict


class Case(NamedTuple):
    """One row of the table of cases.

    Attributes:
      name: lower-case words joined by hyphens.
      unit: what one repeat does.
      prepare: (bench, E) -> the trial.
      gate: trial -> None, or one line of what is wrong. It runs the trial and looks at the result with other means.
      most: repeats at most; 0 = as many as asked for.
      counted: runs over which compilations and synchronisations are counted.
      probed: whether a fresh process measures its first repeat and its memory.
    """

    name: str
    unit: str
    prepare: Callable[[Bench, int], Trial]
    gate: Callable[[Trial], str | None]
    most: int = 0
    counted: int = 1
    probed: bool = True


def seeded(
    engine: Engine, share: float, kinds: tuple[int, ...], stages: tuple[Stage, ...], blends: tuple[Blend, ...]
) -> State:
    """A state with a share of its slots seeded; arguments as ``draw_seeds``."""
    seeds = draw_seeds(engine.structure, share, kinds, stages, blends, SEED)
    return place_seeds(engine.structure, engine.init(SEED), seeds, SHAKE)


def mixed(engine: Engine, share: float, stages: tuple[Stage, ...]) -> State:
    """The same with all blueprints and all blends."""
    return seeded(engine, share, tuple(range(len(engine.structure.blueprints))), stages, engine.config.blends)
