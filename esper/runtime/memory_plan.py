"""A plan of a run's memory by environment, and what is said before memory runs out.

Counted is what a round holds at least: copies of the engine's state, and of what an episode leaves for learning. How
near that comes to what a run really holds is measured by ``esper estimate``.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from esper.engine import Engine
from esper.tamiyo.interface import Interface
from esper.urza.states import tensors_of
from esper.utils.memory_room import Room, room

STATES, EPISODES = 4, 2
"""Copies that are held at once, at least: of a state (before and after a step, learners on the way, what the collector
holds), and of an episode's decisions (parts and whole).
"""

SHORT = 0.1
"""Share of the memory that is left, below which a run says so."""

SPARE = 0.2
"""Share of the memory that settings shall leave."""

FEWEST = 2
"""Environments of a run, at least."""

MIB = 1 << 20

logger = logging.getLogger("esper")


class MemoryPlan(NamedTuple):
    """What one environment of every task holds at least.

    Attributes:
      num_envs: environments E of every task.
      state: bytes of its states.
      decision: bytes that its decisions leave, a whole episode of every task.
    """

    num_envs: int
    state: int
    decision: int

    @property
    def each(self) -> int:
        """Bytes of one environment of every task."""
        return held_at_least(self.state, self.decision)

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.num_envs * self.each


def held_at_least(state: int, decisions: int) -> int:
    """Bytes that an environment holds at least: of a state of so many, and of decisions of so many in an episode."""
    return STATES * state + EPISODES * decisions


def decision_bytes(interface: Interface) -> int:
    """Bytes that a decision leaves at least: observation and mask before and after it, and the policy's logits."""
    columns, actions = len(interface.columns), interface.codec.size
    return 2 * (4 * columns + actions) + 4 * actions


def plan_of(engines: Sequence[Engine]) -> MemoryPlan:
    """The plan of what is played, task by task."""
    states = decisions = 0
    for engine in engines:
        one = tensors_of(engine.init(0, torch.zeros(1, dtype=torch.int64)))
        states += sum(value.numel() * value.element_size() for value in one.values())
        decisions += engine.config.horizon * decision_bytes(engine.interface)
    return MemoryPlan(engines[0].config.num_envs, states, decisions)


def before_it_begins(plan: MemoryPlan, found: Room) -> str | None:
    """What is to be said before a run whose states and episodes are still to be made; None where they fit."""
    if plan.total <= found.left:
        return None
    fits = int((found.left - SPARE * found.limit) // plan.each)
    need = f"{plan.num_envs:,} environments need at least {plan.total / MIB:,.0f} MiB"
    return f"memory: {need}, and {found.left / MIB:,.0f} are left of {_where(found)}; {_remedy(plan, fits)}"


def while_it_goes_on(plan: MemoryPlan, found: Room) -> str | None:
    """What is to be said of a run that goes on; None where enough is left."""
    if found.share >= SHORT:
        return None
    lacking = SPARE * found.limit - found.left
    fits = plan.num_envs - int(-(-lacking // plan.each))
    left = f"{found.left / MIB:,.0f} MiB are left of {_where(found)}"
    return f"memory runs out: {left}; {_remedy(plan, fits)}"


def _where(found: Room) -> str:
    return f"the {found.limit / MIB:,.0f} of {found.place}"


def _remedy(plan: MemoryPlan, fits: int) -> str:
    """Settings that would fit."""
    if fits >= FEWEST:
        return f"--num-envs {fits} instead of {plan.num_envs} would fit (esper estimate says more)"
    each = f"an environment needs {plan.each / MIB:,.1f} MiB"
    return f"{each}: no number of them would fit; fewer decisions (--horizon), a smaller host or more memory would help"


class MemoryWatch:
    """Says once in a run that its memory runs out, and once more where it had become better in between."""

    def __init__(
        self,
        warn: Callable[[str], None] = lambda line: logger.warning("esper: %s", line),
        ask: Callable[[torch.device], Room | None] = room,
    ) -> None:
        """Begin.

        Args:
          warn: told a line.
          ask: what a device has left.
        """
        self._warn, self._ask, self._told = warn, ask, False
        self._plan, self._device = MemoryPlan(0, 0, 0), torch.device("cpu")

    def begin(self, engines: Sequence[Engine]) -> None:
        """Before the first round: say so if it will not fit; nothing later."""
        if not self._plan.num_envs:
            self._plan, self._device = plan_of(engines), engines[0].data.train.inputs.device
            found = self._ask(self._device)
            line = None if found is None else before_it_begins(self._plan, found)
            self._told = line is not None
            if line is not None:
                self._warn(line)

    def look(self) -> dict[str, float]:
        """Now and then, once it has begun: say so if memory runs out.

        Returns:
          ``memory_left``, the share of the memory that is left; nothing where that cannot be told.
        """
        found = self._ask(self._device)
        if found is None:
            return {}
        line = while_it_goes_on(self._plan, found)
        if line is not None and not self._told:
            self._warn(line)
        self._told = line is not None or (self._told and found.share < 2 * SHORT)
        return {"memory_left": found.share}
