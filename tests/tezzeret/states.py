"""States to compare backends from, minibatches, and the gradients of one."""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import esper
from esper.engine import Engine
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Precision
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.leyline.state import State
from esper.tezzeret import eager
from esper.tezzeret.backend import Plan
from esper.tezzeret.batches import Batch
from esper.tezzeret.score import Scores, score_samples
from esper.utils import rng

CPU = torch.device("cpu")
STAGES = (Stage.DORMANT, Stage.CULLED, Stage.TRAINING, Stage.TRAINING, Stage.BLENDING, *MERGED)


def is_one_of(stage: Tensor, stages: tuple[Stage, ...]) -> Tensor:
    return torch.isin(stage, torch.tensor([int(each) for each in stages]))


def mixed_state(engine: Engine, seed: int) -> State:
    """Every stage, blueprint and blend; noise on parameters and statistics. The same numbers in either precision."""
    state, keys = engine.init(seed), rng.split(rng.key(seed), 7)
    dtype, shape = engine.config.precision.dtype, (engine.config.num_envs, engine.config.num_slots)

    def pick(key: Tensor, choices: tuple[int, ...]) -> Tensor:
        return torch.tensor([int(choice) for choice in choices])[(rng.uniform(key, shape) * len(choices)).long()]

    stage = pick(keys[0], STAGES)
    held = is_one_of(stage, ACTIVE)
    offers = [slot.offers for slot in engine.structure.slots]
    kinds = pick(keys[1], tuple(range(len(engine.structure.blueprints))))
    for slot, offered in enumerate(offers):
        fits = torch.isin(kinds[:, slot], torch.tensor(offered))
        kinds[:, slot] = torch.where(fits, kinds[:, slot], offered[0])
    slots = state.slots.replace(
        stage=stage,
        blueprint=torch.where(held, kinds, -1),
        blend=torch.where(held, pick(keys[2], engine.config.blends), -1),
        alpha=torch.where(is_one_of(stage, MERGED), rng.uniform(keys[3], shape).to(dtype), 0.0),
    )
    params = (0.3 * rng.normal(keys[4], tuple(state.seeds.params.shape))).to(dtype)
    for number, slot in enumerate(engine.structure.slots):  # what lies between a seed and its gate is 0
        for env in held[:, number].nonzero().flatten().tolist():
            end = slot.blueprint_columns(int(kinds[env, number])).stop
            params[env, end : slot.gate_columns.start] = 0
    host = state.host.params + (0.1 * rng.normal(keys[6], tuple(state.host.params.shape))).to(dtype)
    buffers = state.buffers + (0.2 * rng.uniform(keys[5], tuple(state.buffers.shape))).to(dtype)
    state = state.replace(slots=slots, buffers=buffers, host=state.host.replace(params=host))
    return state.replace(seeds=state.seeds.replace(params=params))


def double(state: State) -> State:
    return state.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)


def plan_of(engine: Engine, state: State) -> Plan:
    return engine.backend.plan(take_table(state.slots), CPU)


def plain(hypers: HyperParams) -> HyperParams:
    """SGD whose moment is the gradient of the last minibatch."""
    rates = {"momentum": 0.0, "host_clip": math.inf, "seed_clip": math.inf}
    rates |= {"host_weight_decay": 0.0, "seed_weight_decay": 0.0}
    return hypers.replace(**{name: torch.full_like(hypers.momentum, rate) for name, rate in rates.items()})


class Lesson(NamedTuple):
    """What one minibatch tells."""

    loss: Tensor  # [E]
    accuracy: Tensor
    buffers: Tensor
    host: Tensor  # gradients
    seeds: tuple[Tensor, ...]  # per slot

    def rows(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (*self[:4], *self.seeds)


def lesson(engine: Engine, state: State, batch: Batch) -> Lesson:
    """Losses, accuracies, buffers and all gradients of a minibatch."""
    assert not state.seeds.moments.any()
    args = (plain(engine.hypers), plan_of(engine, state), learners_of(state), state.slots.alpha)
    after, epoch = engine.backend.minibatch_step(*args, batch)
    seeds = tuple(after.seeds.moments[:, 0, slot.columns] for slot in engine.structure.slots)
    return Lesson(epoch.loss, epoch.accuracy, after.buffers, after.host.moments[:, 0], seeds)


def batch_of(engine: Engine, size: int, seed: int = 5) -> Batch:
    """A minibatch of each environment's own."""
    count = engine.data.train.targets.shape[0]
    keys = rng.fold_in(rng.key(seed), torch.arange(engine.config.num_envs))
    rows = rng.permutation(keys, count)[:, :size]
    return Batch(engine.data.train.inputs[rows], engine.data.train.targets[rows])


def largest_gap(found: Tensor, wanted: Tensor) -> float:
    """Of all rows, the largest difference in units of the row's largest number."""
    if not wanted.numel():
        assert found.shape == wanted.shape
        return 0.0
    wide = wanted.flatten(1) if wanted.dim() > 1 else wanted.unsqueeze(1)
    return float(((found.double().reshape(wide.shape) - wide).abs().amax(1) / wide.abs().amax(1).clamp(min=1e-3)).max())


def evaluated(engine: Engine, state: State, wanted: Counterfactuals) -> tuple[Scores, Tensor]:
    """Scores; and the outputs [L, V, C] that they were made from."""
    seen: list[Tensor] = []

    def spy(structure: object, outputs_of: Callable[[Tensor], Tensor], samples: tuple, envs: int, rows: Tensor):
        def watched(inputs: Tensor) -> Tensor:
            seen.append(outputs_of(inputs)[rows])
            return outputs_of(inputs)

        return score_samples(structure, watched, samples, envs, rows)

    samples, args = engine.data.validation, (learners_of(state), state.slots.alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["esper.tezzeret.native.evaluate"], "score_samples", spy)
        patch.setattr(eager, "score_samples", spy)
        scores = engine.backend.evaluate(engine.hypers, plan_of(engine, state), *args, samples, wanted)
    return scores, torch.cat(seen, dim=1)


class Pair:
    """The same task and state: native in float32, and the definition in float64."""

    def __init__(self, task: esper.Task, envs: int, seed: int = 3) -> None:
        self.task = task
        self.fast = esper.make(task, envs, backend="native")
        self.exact = esper.make(task, envs, backend="eager", precision=Precision.FLOAT64)
        self.state = mixed_state(self.fast, seed)

    def lessons(self, batch: Batch) -> tuple[Lesson, Lesson]:
        """Of both."""
        wide = batch._replace(inputs=batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs)
        return lesson(self.fast, self.state, batch), lesson(self.exact, double(self.state), wide)

    def assert_near(self, batch: Batch, limit: float = 1e-4) -> None:
        """Rounding of float32 is 6e-8; a gradient is some thousand of them deep in sums and norms."""
        found, wanted = self.lessons(batch)
        assert torch.allclose(found.accuracy.double(), wanted.accuracy, rtol=1e-6)
        for mine, exact in zip(found.rows(), wanted.rows(), strict=True):
            assert mine.shape == exact.shape
            assert largest_gap(mine, exact) < limit, largest_gap(mine, exact)
