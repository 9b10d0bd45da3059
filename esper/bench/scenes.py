"""States to measure from: seeds placed by the engine's own functions, then held in a stage.

A state is a value, so a repeat that starts from it always does the same work, whatever the clock would do next.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina import arena, lifecycle
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, HostBlock, Tie, plain_block
from esper.kasmina.plan import make_plan
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.stages import MERGED, Stage
from esper.leyline.state import State
from esper.runtime.tasks import Task
from esper.utils import rng

PLACES = 0x5EED
"""Folded into the seed's key, apart from the engine's streams: which cells hold a seed."""

SHAKE = 0.1
"""Standard deviation of what is added to the numbers of every seed."""

HALFWAY = 0.5
"""Alpha of a seed in BLENDING."""


def chosen_cells(envs: int, slots: int, share: float, seed: int) -> np.ndarray:
    """Spread seeds evenly at random over environments and slots.

    Returns:
      int64 [E, S]; the number of the seed in each cell, -1 where there is none. round(share * E * S) are placed.
    """
    count = round(share * envs * slots)
    order = rng.permutation(rng.fold_in(rng.key(seed), PLACES), envs * slots).numpy()
    cells = np.full(envs * slots, -1, dtype=np.int64)
    cells[order[:count]] = np.arange(count)
    return cells.reshape(envs, slots)


class Seeds(NamedTuple):
    """What to place, in equal shares: each list is dealt to the seeds in an order of its own."""

    kinds: tuple[int, ...]  # blueprints; where one does not fit, the first that does
    stages: tuple[Stage, ...]
    blends: tuple[Blend, ...]


def seeded(engine: Engine, share: float, seeds: Seeds, seed: int) -> State:
    """A state with a share of its slots seeded.

    The seeds' numbers are drawn as ever, and then shaken: fresh seeds start near the identity, and a validation could
    not tell whether they take part.

    Args:
      engine: what to place them in.
      share: of all slots, 0 to 1.
      seeds: what to place.
      seed: of the environments, places and numbers.
    """
    network, state, key = engine.network, engine.init(seed), rng.fold_in(rng.key(seed), PLACES)
    cells = chosen_cells(engine.config.num_envs, engine.config.num_slots, share, seed)
    kinds, stages, blends = (_dealt(rng.fold_in(key, i), cells, choices) for i, choices in enumerate(seeds))
    for slot in range(engine.config.num_slots):
        action = _germinations(engine, slot, kinds[:, slot], blends[:, slot])
        slots, _ = lifecycle.apply_action(network, engine.hypers, state.slots, action, state.signals.val_accuracy)
        state = state.replace(slots=slots)
    plan = make_plan(network, state.slots)
    state = arena.sow(network, state, plan)
    params = state.seeds.params.clone()
    noise = SHAKE * rng.normal(rng.fold_in(state.key, PLACES), (params.shape[1],), params.dtype)
    for slot, groups in enumerate(plan.fresh):
        for group in groups:
            for columns in (arena.blueprint_columns(network, slot, group.blueprint), arena.gate_columns(network, slot)):
                params[group.rows, columns] += noise[group.rows, columns]
    stage = torch.as_tensor(np.where(cells < 0, int(Stage.DORMANT), stages), device=state.key.device)
    slots = state.slots.replace(stage=stage, alpha=_alpha(stage, params.dtype))
    return state.replace(slots=slots, seeds=state.seeds.replace(params=params))


def _dealt(key: Tensor, cells: np.ndarray, choices: tuple[int, ...]) -> np.ndarray:
    """A choice for every seed, each choice as often as any other; like ``cells``, -1 where there is no seed."""
    order = rng.permutation(key, int(cells.max(initial=-1)) + 1).numpy()
    table = np.array([*(int(choices[place % len(choices)]) for place in order), -1], dtype=np.int64)
    return table[cells]


def _germinations(engine: Engine, slot: int, kinds: np.ndarray, blends: np.ndarray) -> Tensor:
    """Per environment, the action that places a blueprint in a slot; WAIT where it is -1."""
    fits = [k for k, layout in enumerate(engine.network.layouts[slot]) if layout]

    def action(kind: int, blend: int) -> int:
        if kind < 0:
            return engine.codec.encode(Action(Op.WAIT))
        return engine.codec.encode(Action(Op.GERMINATE, slot, kind if kind in fits else fits[0], blend))

    device = engine.data.train_inputs.device
    return torch.tensor([action(int(k), int(b)) for k, b in zip(kinds, blends, strict=True)], device=device)


def _alpha(stage: Tensor, dtype: torch.dtype) -> Tensor:
    merged = torch.isin(stage, torch.tensor([int(s) for s in MERGED], device=stage.device))
    return torch.where(stage == int(Stage.BLENDING), HALFWAY, merged.to(dtype)).to(dtype)


def plain_task(task: Task, slots: tuple[int, ...], blueprint: Blueprint | None) -> Task:
    """The task of a plain network: no slots, and in the place of each the blueprint as an ordinary part of the host.

    Args:
      task: with slots.
      slots: host stages after which they sit.
      blueprint: the module; None = the host alone.
    """
    stages, moved = list[HostBlock](), list[int]()
    for index, stage in enumerate(task.host.blocks):
        moved.append(len(stages))
        ties = tuple(Tie(moved[tie.block], tie.param) for tie in stage.ties)
        stages.append(stage._replace(ties=ties))
        for _ in range(slots.count(index) if blueprint else 0):
            site = task.host.sites[index]
            assert blueprint is not None
            stages.append(plain_block(blueprint.params(site), blueprint.apply, site, blueprint.flops(site)))
    name = f"{task.name}, plain" + (f" with {blueprint.name}" if blueprint else "")
    host = Host(name, task.host.input_shape, task.host.num_outputs, tuple(stages), task.host.takes_tokens)
    return task._replace(name=name, host=host, settings=task.settings | {"slots": ()})
