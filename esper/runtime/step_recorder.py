"""Keeping what an environment's steps tell beside what a collector sees, for a dataset of episodes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from esper.kasmina.structure import seed_sizes
from esper.leyline.events import Transition
from esper.leyline.state import State
from esper.nissa.trace import record
from esper.simic.environment import EsperEnv
from esper.simic.rewards import Reward

BEFORE = ("observation", "action_mask", "seed_params")
"""What a step recorder keeps beside the frames of a trace: what the task itself shows, not a shared interface."""


class StepRecorder:
    """Keeps what an environment's steps tell beside what a collector sees.

    Attributes:
      env: whose steps.
      frames: of each step since ``begin``, in order: those of a trace and ``BEFORE``, [E, ...] each.
      terms: names of what the reward is made of.
    """

    def __init__(self, env: EsperEnv) -> None:
        self.env = env
        self.frames = list[dict[str, Tensor]]()
        self.terms = tuple[str, ...]()

    def begin(self, played: Mapping[str, Tensor]) -> None:
        """Listen from here on, behind what was played of the episodes, as ``so_far`` told it; empty: they begin."""
        count = len(next(iter(played.values()))) if played else 0
        self.frames = [{name: value[step] for name, value in played.items()} for step in range(count)]
        self.env.listeners["recorder"] = self._hear

    def so_far(self) -> dict[str, Tensor]:
        """The frames, [t, E, ...] each."""
        return {name: torch.stack([frame[name] for frame in self.frames]) for name in self.frames[0]}

    def take(self) -> list[dict[str, Tensor]]:
        """The frames, which are forgotten; nothing is kept until the next ``begin``."""
        frames, self.frames = self.frames, []
        self.env.listeners.pop("recorder", None)
        return frames

    def _hear(self, before: State, after: State, event: Transition, earned: Reward) -> None:
        engine = self.env.engine
        shown = (engine.observe(before), engine.mask(before), seed_sizes(engine.structure, after.slots).sum(1))
        frame = record(engine.codec, after, event, earned.terms, earned.total)
        self.frames.append(frame | dict(zip(BEFORE, shown, strict=True)))
        self.terms = tuple(earned.terms)
