"""A life by a script, as a function of its schedule: what ``bench.hypergradient`` differentiates and tunes.

The script is discrete and fixed: in every environment one seed germinates, trains, is blended in and stays. The
schedule is continuous: learning rates of hosts and of seeds from epoch to epoch, and alpha in every epoch of blending
and after it. A life is a composition of the backend's own ``epoch`` and ``evaluate``, so one function serves the eager
backend, which gives derivatives, and the fastest one, which does not.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import esper
from esper.engine import Engine
from esper.kasmina import arena
from esper.kasmina.alpha import ramp
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import SlotTable
from esper.leyline.actions import NONE, Blend
from esper.leyline.config import ConfigError, SampleOrder
from esper.leyline.learners import learners_of
from esper.leyline.stages import MERGED, Stage
from esper.leyline.state import State
from esper.runtime.tasks import Task
from esper.tolaria.data import Dataset
from esper.tolaria.training import draw_batches
from esper.utils import rng

SPLIT_KEY, TUNING_SHARE = 20261121, 0.2
"""Seed by which samples are set apart for tuning, and their share of the training part."""

RATE_FACTOR = 20.0
"""Rates stay within this factor of the task's own."""

KNOTS = 3
"""Places of a life at which a rate is given: its beginning, its middle, its end; ln(rate) is linear in between."""


class Script(NamedTuple):
    """What happens in every environment, epoch by epoch, in its first slot; the other slots stay dormant."""

    stages: tuple[Stage, ...]
    blueprint: int

    @property
    def length(self) -> int:
        """Epochs T."""
        return len(self.stages)

    @property
    def learns(self) -> list[int]:
        """Epochs in which the seed learns."""
        return [epoch for epoch, stage in enumerate(self.stages) if stage > Stage.GERMINATED]

    @property
    def blends(self) -> list[int]:
        """Epochs in which the seed is blended in."""
        return [epoch for epoch, stage in enumerate(self.stages) if stage is Stage.BLENDING]


FULL = (1, 1, 3, 4, 1, 2)
QUICK = (1, 1, 1, 2, 1, 0)
"""Epochs in DORMANT, GERMINATED, TRAINING, BLENDING, SHADOWING and FOSSILIZED."""


def write_script(task: Task, blueprint: str, epochs: tuple[int, ...] = FULL) -> Script:
    """The script with so many epochs in each stage.

    Raises:
      ConfigError: the task has no such blueprint.
    """
    names = [each.name for each in task.blueprints]
    if blueprint not in names:
        raise ConfigError(f"blueprint {blueprint!r}: expected one of {', '.join(names)}")
    life = (Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.FOSSILIZED)
    stages = tuple(stage for stage, count in zip(life, epochs, strict=True) for _ in range(count))
    return Script(stages, names.index(blueprint))


class Space(NamedTuple):
    """The numbers that are tuned, side by side in a vector [H]: ln of the host's rate at the knots of its life, ln of
    the seed's rate at those of its own, alpha in each epoch of blending, and alpha after it.

    Attributes:
      script: what happens.
      start: [H]; the task's own rates in every epoch, and Esper's own ramp, a sigmoid.
      low, high: [H]; bounds.
    """

    script: Script
    start: Tensor
    low: Tensor
    high: Tensor

    @property
    def sizes(self) -> list[int]:
        """How many numbers are host's rates, seed's rates, and alphas."""
        return [KNOTS, KNOTS, len(self.script.blends) + 1]


def between_knots(values: Tensor, count: int) -> Tensor:
    """Values at equally many equal steps from the first knot to the last, linear between knots.

    Args:
      values: [KNOTS, E].
      count: steps n, >= 1; one step is the first knot.

    Returns:
      [n, E].
    """
    places = torch.linspace(0, KNOTS - 1, count, dtype=values.dtype).unsqueeze(1)
    weights = (1 - (places - torch.arange(KNOTS, dtype=values.dtype)).abs()).clamp(min=0)
    return weights @ values


class Schedule(NamedTuple):
    """Numbers of every epoch and environment, [T, E] each."""

    host_lr: Tensor  # 1 per SGD step
    seed_lr: Tensor  # 1 per SGD step
    alpha: Tensor  # 0 to 1; 0 before blending


def build_space(engine: Engine, script: Script) -> Space:
    """The space of schedules around the defaults of an engine's task."""
    hypers = engine.hypers
    alphas = ramp_of(script, hypers.sigmoid_steepness, hypers.alpha_target)
    rates = torch.cat((hypers.host_lr.log().expand(KNOTS), hypers.seed_lr.log().expand(KNOTS)))
    low, high = torch.zeros_like(alphas), torch.ones_like(alphas)
    span = math.log(RATE_FACTOR)
    return Space(script, torch.cat((rates, alphas)), torch.cat((rates - span, low)), torch.cat((rates + span, high)))


def ramp_of(script: Script, steepness: Tensor, target: Tensor) -> Tensor:
    """Alphas of Esper's sigmoid ramp: one for each epoch of blending, and the target after it.

    Args:
      script: B epochs of blending.
      steepness, target: [] each.

    Returns:
      [B + 1].
    """
    total = len(script.blends) + 1
    done = torch.arange(1, total + 1)
    kind = torch.full_like(done, int(Blend.SIGMOID))
    return ramp(kind, done, torch.tensor(total, dtype=target.dtype), target, steepness)


def spread(space: Space, points: Tensor) -> Schedule:
    """A schedule for every environment from its own point.

    Args:
      space: H numbers.
      points: [E, H].
    """
    script = space.script
    host, seed, alphas = points.T.split(space.sizes)
    own = between_knots(seed, len(script.learns)).exp()
    seeds, weights = [own[0]] * script.length, [torch.zeros_like(own[0])] * script.length
    for epoch, rate in zip(script.learns, own, strict=True):
        seeds[epoch] = rate
    for epoch, stage in enumerate(script.stages):
        if stage in MERGED:
            place = script.blends.index(epoch) if epoch in script.blends else len(script.blends)
            weights[epoch] = alphas[place]
    return Schedule(between_knots(host, script.length).exp(), torch.stack(seeds), torch.stack(weights))


class Outcome(NamedTuple):
    """What held-out samples say at the end of a life, [E, V] each."""

    losses: Tensor  # nats
    hits: Tensor  # 0 or 1; of a sequence, the share


def table_at(script: Script, epoch: int, num_envs: int, num_slots: int) -> SlotTable:
    """The slots in an epoch of a script; the same in all environments."""

    def column(first: int, rest: int) -> np.ndarray:
        return np.tile(np.array([first] + [rest] * (num_slots - 1), dtype=np.int64), (num_envs, 1))

    stage = script.stages[epoch]
    held = stage is not Stage.DORMANT
    kind, blend = (script.blueprint, int(Blend.SIGMOID)) if held else (NONE, NONE)
    return SlotTable(column(int(stage), int(Stage.DORMANT)), column(kind, NONE), column(blend, NONE))


def live(engine: Engine, script: Script, schedule: Schedule, state: State, samples: tuple[Tensor, Tensor]) -> Outcome:
    """A whole life, and its validation.

    Args:
      engine: with any backend; with ``eager`` the outcome can be differentiated with respect to the schedule.
      script: T epochs.
      schedule: [T, E].
      state: [E]; fresh environments.
      samples: inputs [V, ...] and targets [V, ...] to validate with.

    Law: environment e depends on column e of the schedule alone.
    """
    structure, backend, learners = engine.structure, engine.backend, learners_of(state)
    count, num_slots = state.key.shape[0], structure.config.num_slots
    nobody = Counterfactuals(np.zeros(0, dtype=np.int64), np.zeros((0, num_slots), dtype=np.int64))
    for epoch, (host_lr, seed_lr, alpha) in enumerate(zip(*schedule, strict=True)):
        table, time = table_at(script, epoch, count, num_slots), torch.full_like(state.epoch, epoch)
        plan, hypers = backend.plan(table, state.key.device), engine.hypers.replace(host_lr=host_lr, seed_lr=seed_lr)
        learners = arena.init_seeds(structure, table, learners, state.key, time)
        batches = draw_batches(structure.config, state.replace(epoch=time), engine.data)
        rest = torch.zeros_like(alpha).unsqueeze(1).expand(count, num_slots - 1)
        alphas = torch.cat((alpha.unsqueeze(1), rest), dim=1)
        learners, _ = backend.epoch(hypers, plan, learners, alphas, batches)
    found = backend.evaluate(hypers, plan, learners, alphas, samples, nobody)
    return Outcome(found.losses, found.scores[:count])


class Bench(NamedTuple):
    """One task twice: as it can be differentiated, and as it runs fastest; and samples to tune by."""

    eager: Engine
    fast: Engine
    tuning: tuple[Tensor, Tensor]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """The task's test part, which nothing is tuned by."""
        return self.fast.data.test.inputs, self.fast.data.test.targets


def set_up(task: Task, num_envs: int, **settings: Any) -> Bench:
    """Set a part of the training samples apart for tuning, and build both engines on the rest.

    Args:
      task: its test part is for the report alone.
      num_envs: environments E.
      **settings: fields of ``Config`` and ``HyperParams``.
    """
    data = task.data
    order = rng.permutation(rng.key(SPLIT_KEY), data.train.size)
    tuning, rest = order.tensor_split((round(TUNING_SHARE * order.shape[0]),))
    own: Dataset = data._replace(train=data.train.take(rest))
    chosen: dict[str, Any] = {"sample_order": SampleOrder.INDEPENDENT} | settings
    task = task._replace(data=own)
    eager = esper.make(task, num_envs, backend="eager", differentiable=True, **chosen)
    fast = esper.make(task, num_envs, **chosen)
    aside = data.to("cpu", eager.config.precision.dtype)
    picked = aside.train.take(tuning)
    return Bench(eager, fast, (picked.inputs, picked.targets))
