"""Whole lives, as functions of numbers that derivatives are taken of: by the definition, and unrolled.

Numbers are a dict: ``host`` [E, P] and ``seeds`` [E, Q] to begin with, ``host_lr`` and ``seed_lr`` [E], ``alphas``
[phases, E, S] (read where a seed is merged), ``initial`` [E, Q]: what is added to the initial values of seeds that
germinate. A life gives the validation losses [E] at its end.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import Structure
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.leyline.stages import MERGED, Stage
from esper.tezzeret import eager
from esper.tezzeret.batches import Batch, Batches
from esper.utils import rng


def load(name: str) -> Any:
    """A helper that lies beside this one."""
    key = f"tezzeret_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


smooth, unrolled = load("smooth"), load("unrolled")
E, F64, CPU = smooth.E, smooth.F64, torch.device("cpu")
Numbers = dict[str, Tensor]


class Phase(NamedTuple):
    """Minibatches under one table; seeds in GERMINATED are initialised before them."""

    table: SlotTable
    batches: tuple[Batch, ...]


class Life(NamedTuple):
    """Where a life begins, and its phases."""

    structure: Structure
    hypers: HyperParams
    learners: Learners
    phases: tuple[Phase, ...]
    samples: tuple[Tensor, Tensor]


def begin(choice: Any, tables: Any, counts: tuple[int, ...], seed: int) -> tuple[Life, Numbers]:
    """A life and the numbers at which it is lived; ``tables`` are arguments of ``table_of``."""
    structure, hypers = smooth.build(choice)
    made = [smooth.table_of(structure, *table) for table in tables]
    learners = smooth.learners_at(structure, made[0], seed)
    phases = tuple(
        Phase(table, tuple(smooth.batch_of(seed + 100 * (i + 1) + 10 * n) for n in range(count)))
        for i, (table, count) in enumerate(zip(made, counts, strict=True))
    )
    targets = (rng.uniform(rng.key(seed + 9), (smooth.V,)) * smooth.CLASSES).long()
    life = Life(structure, hypers, learners, phases, (smooth.drawn(seed + 8, smooth.V, *smooth.SHAPE), targets))
    alphas = 0.2 + 0.6 * rng.uniform(rng.key(seed + 7), (len(phases), E, len(structure.slots)), dtype=F64)
    numbers = {"host": learners.host.params, "seeds": learners.seeds.params, "alphas": alphas}
    numbers |= {
        "host_lr": hypers.host_lr,
        "seed_lr": hypers.seed_lr,
        "initial": torch.zeros_like(learners.seeds.params),
    }
    return life, numbers


def alphas_of(phase: Phase, alphas: Tensor) -> Tensor:
    """Alphas where a seed is merged, else 0."""
    return torch.where(torch.as_tensor(phase.table.within(MERGED)), alphas, 0.0)


def germinate(life: Life, table: SlotTable, learners: Learners, more: Tensor) -> Learners:
    """Germination, with something added to what is drawn."""
    key, epoch = rng.fold_in(rng.key(3), torch.arange(E)), torch.zeros(E, dtype=torch.int64)
    learners = arena.init_seeds(life.structure, table, learners, key, epoch)
    fresh = torch.zeros(E, life.structure.num_seed_params, dtype=torch.bool)
    for env, number in zip(*table.within((Stage.GERMINATED,)).nonzero(), strict=True):
        slot = life.structure.slots[number]
        fresh[env, slot.blueprint_columns(int(table.blueprint[env, number]))] = True
        fresh[env, slot.gate_columns] = True
    if not fresh.any():
        return learners
    params = learners.seeds.params + torch.where(fresh, more, 0.0)
    return learners._replace(seeds=learners.seeds._replace(params=params))


def batches_of(phase: Phase) -> Batches:
    """A phase's minibatches as the order of an epoch."""
    inputs, targets = (torch.stack([batch[i] for batch in phase.batches]).flatten(0, 2) for i in (0, 1))
    order = torch.arange(targets.shape[0]).reshape(len(phase.batches), E, smooth.B).movedim(0, 1)
    zero = torch.zeros(E, 2, dtype=torch.int64)
    return Batches(inputs, targets, order, zero, zero[:, 0])


def live(life: Life, numbers: Numbers, by_epoch: bool = False) -> Tensor:
    """By the definition: ``minibatch_step`` after ``minibatch_step``, or ``epoch`` after ``epoch``."""
    structure = life.structure
    hypers = life.hypers.replace(host_lr=numbers["host_lr"], seed_lr=numbers["seed_lr"])
    host, seeds = (getattr(life.learners, who)._replace(params=numbers[who]) for who in ("host", "seeds"))
    learners = life.learners._replace(host=host, seeds=seeds)
    for phase, given in zip(life.phases, numbers["alphas"], strict=True):
        learners, alphas = germinate(life, phase.table, learners, numbers["initial"]), alphas_of(phase, given)
        plan = eager.plan(structure, phase.table, CPU)
        if by_epoch:
            learners, _ = eager.epoch(structure, hypers, plan, learners, alphas, batches_of(phase))
            continue
        for batch in phase.batches:
            learners, _ = eager.minibatch_step(structure, hypers, plan, learners, alphas, batch)
    wanted = single_changes(phase.table)
    return eager.evaluate(structure, hypers, plan, learners, alphas, life.samples, wanted).losses.mean(1)


def live_unrolled(life: Life, numbers: Numbers, cut: bool = False) -> Tensor:
    """By autograd, environment by environment; see ``unrolled``."""
    germinated = [germinate(life, phase.table, life.learners, numbers["initial"]) for phase in life.phases]
    return torch.stack([_live_one(life, numbers, env, germinated, cut) for env in range(E)])


def _live_one(life: Life, numbers: Numbers, env: int, germinated: list[Learners], cut: bool) -> Tensor:
    hypers = life.hypers.replace(host_lr=numbers["host_lr"], seed_lr=numbers["seed_lr"])
    start = [getattr(life.learners, who)._replace(params=numbers[who]) for who in ("host", "seeds")]
    learners, net = life.learners._replace(host=start[0], seeds=start[1]), None
    for phase, given, drawn in zip(life.phases, numbers["alphas"], germinated, strict=True):
        context = unrolled.context_of(life.structure, hypers, phase.table, alphas_of(phase, given), env)
        net = unrolled.environment_of(context, learners, env) if net is None else net
        fresh = unrolled.environment_of(context, drawn, env)
        for number, stage in enumerate(context.stages):
            if stage == Stage.GERMINATED:
                for old, new in zip(net[2:], fresh[2:], strict=True):
                    old[number] = new[number]
        for batch in phase.batches:
            net = unrolled.step(context, net, *unrolled.take(batch, env), cut)
    return unrolled.validate(context, net, life.samples)


def gradient(life: Life, numbers: Numbers, weights: Tensor, cut: bool = False) -> tuple[Tensor, Numbers]:
    """Losses, and the gradient of their weighted sum, unrolled."""
    leaves = {name: value.clone().requires_grad_() for name, value in numbers.items()}
    losses = live_unrolled(life, leaves, cut)
    found = torch.autograd.grad((weights * losses).sum(), list(leaves.values()), materialize_grads=True)
    return losses.detach(), dict(zip(leaves, found, strict=True))


def curvature(life: Life, numbers: Numbers, weights: Tensor, direction: Numbers) -> Numbers:
    """Hessian of the weighted losses times a direction, unrolled."""
    leaves = {name: value.clone().requires_grad_() for name, value in numbers.items()}
    total = (weights * live_unrolled(life, leaves)).sum()
    first = torch.autograd.grad(total, list(leaves.values()), create_graph=True, materialize_grads=True)
    along = sum((part * direction[name]).sum() for name, part in zip(leaves, first, strict=True))
    found = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def direction_at(numbers: Numbers, seed: int, only: tuple[str, ...] | None = None) -> Numbers:
    """A drawn direction, 0 in all but some names."""
    drawn = {name: smooth.drawn(seed + i, *value.shape) for i, (name, value) in enumerate(numbers.items())}
    return {name: part if only is None or name in only else 0 * part for name, part in drawn.items()}


def shifted(numbers: Numbers, direction: Numbers, distance: float) -> Numbers:
    """Some way along a direction."""
    return {name: value + distance * direction[name] for name, value in numbers.items()}


def gap(found: Numbers, truth: Numbers) -> float:
    """Largest difference, each name's relative to its largest number."""
    worst = 0.0
    for name, part in found.items():
        assert part.isfinite().all() and truth[name].isfinite().all(), name
        scale = truth[name].abs().max().clamp(min=1e-6)
        worst = max(worst, ((part - truth[name]).abs().max() / scale).item() if part.numel() else 0.0)
    return worst
