"""``python -m esper.bench`` alone: how many environment steps a second this machine takes, within a minute."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from esper.bench import gates
from esper.bench.case import Bench, Trial, mixed
from esper.bench.measure import seconds_of
from esper.engine import Engine
from esper.leyline.stages import ACTIVE, is_in
from esper.leyline.state import Slots, State
from esper.utils import resident

ENVS = (1, 16, 64, 256, 1024)
"""Numbers of environments."""

LOADS = {"dormant": 0.0, "half active": 0.5}
"""Share of the slots with a seed, of every kind and stage equally often."""

GATED = 16
"""Numbers of environments up to which results are checked; more of them are rows of the same batch."""

BUDGET = 50.0
"""Seconds after which no further row is begun: with the start of the process it is a minute."""

PER_ROW = 1.5
"""Seconds in which a row is repeated, once at the least and ``MOST`` times at the most."""

MOST = 15

MATRIX = {"cpu": 1024, "cuda": 4096}
"""Side of the matrices whose product tells a device's rate."""


@dataclass(frozen=True)
class Row:
    """One number of environments under one load.

    Attributes:
      envs, load: which.
      missing: why nothing was measured; None where it was.
      milliseconds: median of an environment step of all environments.
      repeats: timings of which that is the median.
      env_steps, sgd_steps, samples: per second; of environments, of one host's SGD, of training.
      peak_bytes: what the process held at most during the repeats, on its device.
      of_matrix_rate: share of the rate of a matrix product that training and validation reach; see ``multiply_adds``.
    """

    envs: int
    load: str
    missing: str | None = None
    milliseconds: float = math.nan
    repeats: int = 0
    env_steps: float = math.nan
    sgd_steps: float = math.nan
    samples: float = math.nan
    peak_bytes: int = 0
    of_matrix_rate: float = math.nan


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the product of two square matrices, the best of five."""
    side = MATRIX.get(device.type, MATRIX["cpu"])
    left = torch.ones(side, side, dtype=dtype, device=device)
    seconds = [seconds_of(lambda: left @ left, device) for _ in range(6)][1:]
    return float(side**3 / min(seconds))


def multiply_adds(engine: Engine, slots: Slots) -> float:
    """Multiply-adds of one step of all environments: three forward passes for every sample trained, one validated.

    Convolutions and linear maps of hosts and active seeds, as they say of themselves. Counterfactuals, seeds' own
    objectives, norms, optimizers and augmentation are work that is not counted.
    """
    structure, config = engine.structure, engine.config
    cost = torch.zeros(len(structure.slots), len(structure.blueprints) + 1, dtype=torch.float64)
    for number, slot in enumerate(structure.slots):
        for kind, blueprint in enumerate(structure.blueprints):
            if slot.layouts[kind] is not None:
                cost[number, kind] = blueprint.flops(slot.reads, slot.acts)
    held: Tensor = torch.where(is_in(slots.stage, ACTIVE), slots.blueprint, len(structure.blueprints)).cpu()
    seeds = float(cost[torch.arange(len(structure.slots)), held].sum())
    forward = slots.stage.shape[0] * sum(block.flops for block in structure.host.blocks) + seeds
    trained = config.batch_size * config.steps_per_epoch
    return forward * (3 * trained + engine.data.validation.size)


def measure(
    bench: Bench, note: Callable[[str], None], begun: float, envs: Sequence[int] = ENVS, budget: float = BUDGET
) -> list[Row]:
    """All rows, from few environments to many.

    Args:
      bench: task, device, precision and backend.
      note: told what is being done.
      begun: when the budget began, by ``time.perf_counter``.
      envs: numbers of environments, ascending.
      budget: seconds.
    """
    rate, rows = matrix_rate(bench.device, bench.precision.dtype), list[Row]()
    for count, load in ((count, load) for count in envs for load in LOADS):
        spent = time.perf_counter() - begun
        if spent + _expected(rows, load, count) > budget:
            rows.append(Row(count, load, f"no time: {budget:g} s are for all rows"))
            continue
        note(f"{count} environments, {load}  ({spent:.0f} of {budget:g} s)")
        rows.append(_row(bench, count, load, rate))
        bench.engines.clear()
    return rows


def _expected(rows: Sequence[Row], load: str, envs: int) -> float:
    """Seconds that a row is likely to take: two steps, each a quarter of what the environments' number would ask for in
    proportion to the last row of its load, since more environments cost less each.
    """
    last = next((row for row in reversed(rows) if row.load == load and row.missing is None), None)
    return 0.0 if last is None else 2 * last.milliseconds / 1e3 * max(1.0, envs / last.envs / 4)


def _row(bench: Bench, count: int, load: str, rate: float) -> Row:
    engine = bench.engine(count)
    state: State = mixed(engine, LOADS[load], ACTIVE)
    wait = torch.zeros(count, dtype=torch.int64, device=bench.device)

    def step() -> Any:
        return engine.step(state, wait)

    if count <= GATED:
        wrong = gates.step_gate(Trial(step, engine, state))
        if wrong is not None:
            return Row(count, load, f"WRONG: {wrong}")
    else:
        step()
    resident.restart_peak(bench.device)
    taken = list(_repeats(step, bench.device))
    seconds, config = sorted(taken)[len(taken) // 2], engine.config
    return Row(
        envs=count,
        load=load,
        milliseconds=1e3 * seconds,
        repeats=len(taken),
        env_steps=count / seconds,
        sgd_steps=count * config.steps_per_epoch / seconds,
        samples=count * config.steps_per_epoch * config.batch_size / seconds,
        peak_bytes=resident.peak(bench.device),
        of_matrix_rate=multiply_adds(engine, state.slots) / seconds / rate,
    )


def _repeats(step: Callable[[], Any], device: torch.device) -> Iterator[float]:
    begun = time.perf_counter()
    for number in range(MOST):
        if number and time.perf_counter() - begun > PER_ROW:
            return
        yield seconds_of(step, device)


def to_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-able; NaN, which becomes null, where nothing was measured."""
    return [asdict(row) for row in rows]
