"""What a case is: work of a known amount that is checked before it is timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from esper.bench.work import NO_WORK, Work
from esper.engine import Engine
from esper.kasmina.plan import Census
from esper.leyline.config import Precision
from esper.leyline.state import State
from esper.runtime.build import make
from esper.runtime.tasks import Task

SEED = 0
"""Of every state, policy and walk: all repeats do the same work."""

QUICK: dict[str, Any] = {"steps_per_epoch": 3, "batch_size": 8, "horizon": 3}
"""Settings of ``--quick``, in place of the preset's: enough to see that a case works."""


@dataclass
class Bench:
    """What the cases of a run share.

    Attributes:
      task: the host and what grows in it.
      device: where everything runs.
      precision: of parameters and data.
      compile: whether the engines are compiled.
      quick: tiny sizes.
      engines: those built so far; cases with equal structure share one.
    """

    task: Task
    device: torch.device
    precision: Precision
    compile: bool
    quick: bool = False
    engines: dict[Any, Engine] = field(default_factory=dict)

    def engine(self, envs: int, task: Task | None = None, **overrides: Any) -> Engine:
        """The engine of this structure, built on first use.

        Args:
          envs: environments E.
          task: in place of the bench's; its name stands for its structure.
          **overrides: settings in place of the preset's.
        """
        chosen = self.task if task is None else task
        settings = {"precision": self.precision} | (QUICK if self.quick else {}) | overrides
        identity = (chosen.name, envs, *sorted(settings.items()))
        if identity not in self.engines:
            self.engines[identity] = make(chosen, envs, self.device, self.compile, **settings)
        return self.engines[identity]


class Trial(NamedTuple):
    """A case made ready for a number of environments.

    Attributes:
      run: one repeat; returns what it computed.
      engine: that it runs on.
      state: from which every repeat starts.
      extra: what else the case's gate looks at.
      close: gives back what a repeat holds on to.
    """

    run: Callable[[], Any]
    engine: Engine
    state: State
    extra: Any = None
    close: Callable[[], None] = lambda: None


class Case(NamedTuple):
    """One row of the table of cases.

    Attributes:
      name: lower-case words joined by hyphens.
      unit: what one repeat does.
      prepare: (bench, E) -> the trial.
      gate: trial -> None, or one line of what is wrong. It runs the trial and looks at the result with other means.
      work: trial -> what one repeat does, in numbers.
      most: repeats at most; 0 = as many as asked for.
      counted: runs over which compilations and synchronisations are counted.
      probed: whether fresh processes measure its compilation and its memory.
      memory: (engine, census) -> bytes per environment that a compiled repeat needs, where a formula says so.
    """

    name: str
    unit: str
    prepare: Callable[[Bench, int], Trial]
    gate: Callable[[Trial], str | None]
    work: Callable[[Trial], Work] = lambda trial: NO_WORK
    most: int = 0
    counted: int = 1
    probed: bool = True
    memory: Callable[[Engine, Census], float] | None = None
