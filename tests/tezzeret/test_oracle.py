"""The definition against the oracle: dispatch and tape on one side, compute-all, select and autograd on the other.

Scenes come from random legal walks of the life cycle with drawn measurements, so that every active stage, every
blueprint and every blend is met; learners are drawn for them, with noise where seeds start at the identity.
"""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

import esper
from esper.engine import Engine
from esper.kasmina import arena, lifecycle, metrics
from esper.kasmina.objectives import cross_entropy, mean_squared_error
from esper.kasmina.slot_table import SlotTable, take_table
from esper.kasmina.structure import Structure
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation, Precision, SampleOrder
from esper.leyline.events import Epoch, Evaluation, Health
from esper.leyline.learners import Learners, learners_of, with_learners
from esper.leyline.stages import ACTIVE, MERGED, Stage, is_in
from esper.leyline.state import Slots, State
from esper.runtime.tasks import TASKS
from esper.tezzeret import oracle
from esper.tolaria.evaluation import evaluate, shapley_values
from esper.tolaria.training import draw_batches
from esper.utils import rng

logger = logging.getLogger(__name__)
E, LENGTH = 8, 16
TOLERANCE = 1e-12
OPTIMIZERS = (("sgd", "sgd"), ("adam", "adamw"), ("adamw", "adam"))
OBJECTIVES = (cross_entropy(), cross_entropy(label_smoothing=0.2), mean_squared_error())
EASY = {"min_training_epochs": 1, "blend_epochs": 2, "min_blending_epochs": 1, "embargo_epochs": 1}
EASY |= {"min_improvement": -100.0, "min_contribution": -100.0, "min_gradient_ratio": 0.0}
SIZES = {"batch_size": 4, "steps_per_epoch": 2, "eval_batch_size": 3, "horizon": 20, "precision": Precision.FLOAT64}


class WalkStep(NamedTuple):
    """The slots of one step of a walk, when its decisions are taken."""

    slots: Slots
    epoch: Tensor
    table: SlotTable


def numbers() -> dict[str, float | Tensor]:
    """Hyperparameters of every environment.

    ``adam_epsilon`` is large: where a gradient is 0 by symmetry, Adam divides rounding by it.
    """

    def spread(low: float, high: float) -> Tensor:
        return torch.linspace(low, high, E, dtype=torch.float64)

    found: dict[str, float | Tensor] = {"host_lr": spread(0.01, 0.05), "seed_lr": spread(0.06, 0.02)}
    found |= {"host_weight_decay": spread(0.0, 0.02), "seed_weight_decay": spread(0.01, 0.0)}
    found |= {"momentum": spread(0.5, 0.9), "adam_beta1": spread(0.8, 0.9), "adam_beta2": spread(0.99, 0.9)}
    found |= {"adam_epsilon": spread(1e-3, 1e-2), "alpha_target": spread(1.0, 0.6), "warmup_epochs": spread(0.0, 3.0)}
    return found | {"host_clip": spread(0.3, 3.0), "seed_clip": spread(0.5, 0.05), "final_lr_fraction": spread(1, 0.2)}


GATED_CHARS = "chars, gated"
"""The characters with slots between vectors alone: no gate averages tokens."""


def build(name: str, which: int) -> Engine:
    """A preset with little data, and the ``which``-th choice of everything else."""
    task, isolation = TASKS[name.partition(",")[0]](), tuple(Isolation)[which]
    few = {"train": task.data.train.take(slice(20)), "validation": task.data.validation.take(slice(5))}
    data = task.data._replace(**few)
    host, seeds = OPTIMIZERS[which]
    settings = SIZES | EASY | numbers() | {"host_optimizer": host, "seed_optimizer": seeds}
    settings |= {"sample_order": tuple(SampleOrder)[which % 2], "isolation": isolation}
    settings |= {} if name in ("chars", "chars_varied") else {"blends": tuple(Blend)}
    if name == "digits_deep":  # Shapley values want at most 4
        settings |= {"slots": (0, 2, 4, "input:logits")}
    if name == GATED_CHARS:
        settings |= {"slots": (0, 0, "block0:logits")}
    return esper.make(task._replace(data=data, objective=OBJECTIVES[which]), E, backend="eager", **settings)


def measured(engine: Engine, state: State, key: Tensor) -> tuple[Epoch, Evaluation]:
    """An epoch as it might have been: drawn."""
    shape, zero = state.slots.stage.shape, torch.zeros(E, dtype=torch.float64)
    drawn = rng.normal(key, (E, 2 * shape[1] + 1), torch.float64)
    effect, accuracy = 20 + 10 * drawn[:, : shape[1]], 50 + drawn[:, -1]
    yes, table = torch.ones(shape, dtype=torch.bool), torch.zeros_like(effect)
    health = Health(zero, zero, zero, table, table + 1, yes)
    classes = torch.zeros(E, engine.data.num_classes, dtype=torch.float64)
    alive = torch.ones(E, dtype=torch.bool)
    return Epoch(zero, zero, alive, health), Evaluation(zero, accuracy, classes, alive, effect, table, yes)


PREFERENCE = torch.tensor([0.0, -1.0, 2.0, -2.5, 1.0, -6.0], dtype=torch.float64)
"""Logits by operation: culling and changing rarely, so that seeds live long enough to be permanent."""


def walk(engine: Engine, seed: int) -> list[WalkStep]:
    """Decide, germinate, measure, tick."""
    state, steps = engine.init(seed), []
    for step in range(LENGTH):
        key = rng.fold_in(rng.key(seed), step)
        logits = torch.where(engine.mask(state), PREFERENCE[engine.codec.op], -torch.inf)
        action = rng.categorical(rng.fold_in(key, torch.arange(E)), logits)
        epoch, evaluation = measured(engine, state, key)
        slots, _ = lifecycle.apply_action(engine.structure, engine.hypers, state.slots, action, evaluation.accuracy)
        steps.append(WalkStep(slots, state.epoch, take_table(slots)))
        slots = metrics.record(engine.hypers, slots, epoch, evaluation)
        slots, _ = lifecycle.tick(engine.config, engine.hypers, slots, evaluation.accuracy)
        slots = slots.replace(in_snapshot=is_in(slots.stage, ACTIVE))  # as if the governor had copied them
        state = state.replace(slots=slots, epoch=state.epoch + 1, rounds=state.rounds + 1)
    return steps


def state_of(engine: Engine, at: WalkStep, seed: int) -> State:
    """A state at that step: active seeds as if initialised just now, with noise on hosts and on what seeds
    use; what lies between a seed and its gate is 0.
    """
    structure, state, stage = engine.structure, engine.init(seed), at.table.stage.copy()
    stage[at.table.within(ACTIVE)] = int(Stage.GERMINATED)
    learners = arena.init_seeds(structure, at.table._replace(stage=stage), learners_of(state), state.key, at.epoch)
    used = torch.zeros(E, structure.num_seed_params, dtype=torch.bool)
    for env, number in zip(*at.table.within(ACTIVE).nonzero(), strict=True):
        slot = structure.slots[number]
        used[env, slot.blueprint_columns(int(at.table.blueprint[env, number]))] = True
        used[env, slot.gate_columns] = True

    def noisy(params: Tensor, stream: int) -> Tensor:
        return params + 0.2 * rng.normal(rng.fold_in(rng.key(seed), stream), params.shape, params.dtype)

    seeds = torch.where(used, noisy(learners.seeds.params, 1), learners.seeds.params)
    host = learners.host._replace(params=noisy(learners.host.params, 0))
    buffers = noisy(learners.buffers, 2).abs()
    changed = Learners(host, buffers, learners.seeds._replace(params=seeds), learners.seed_buffers)
    return with_learners(state.replace(slots=at.slots, epoch=at.epoch, rounds=at.epoch), changed)


def gap(found: Any, truth: Any) -> float:
    """The largest difference of any leaf, relative to the leaf's largest number; what is not floating is equal."""
    worst = 0.0
    for (path, a), (_, b) in zip(tree_flatten_with_path(found)[0], tree_flatten_with_path(truth)[0], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, path
        if not a.is_floating_point():
            assert torch.equal(a, b), path
        elif a.numel():
            assert a.isfinite().all() and b.isfinite().all(), path
            worst = max(worst, ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item())
    return worst


def compare(engine: Engine, truth: Engine, state: State, table: SlotTable) -> float:
    """An epoch, then validation, contributions, prospects and Shapley values of what it left."""
    results, data = [], engine.data
    for each in (engine, truth):
        backend = each.backend
        plan = backend.plan(table, state.key.device)
        batches = draw_batches(engine.config, state, data)
        learners, epoch = backend.epoch(engine.hypers, plan, learners_of(state), state.slots.alpha, batches)
        after = with_learners(state, learners)
        found = evaluate(backend, engine.hypers, after, table, plan, data)
        values = shapley_values(backend, engine.hypers, after, table, plan, data)
        results.append((learners, epoch, found, values))
    return gap(*results)


def met(structure: Structure, at: WalkStep) -> set[tuple[Any, ...]]:
    """Stages, blueprints, and stages with a gate, of the slots that hold an active seed."""
    active, table = at.table.within(ACTIVE), at.table
    kinds = [("blueprint", structure.blueprints[kind].name) for kind in table.blueprint[active]]
    stages = [("stage", Stage(stage).name) for stage in table.stage[active]]
    return {*kinds, *stages, *(("gate", Stage(stage).name) for stage in table.stage[active & table.gated])}


def wanted(structure: Structure) -> set[tuple[Any, ...]]:
    """All that can be met."""
    words = ("stage", "gate") if Blend.GATED in structure.config.blends else ("stage",)
    stages = [(word, stage.name) for word in words for stage in ACTIVE]
    return {*stages, *(("blueprint", blueprint.name) for blueprint in structure.blueprints)}


@pytest.mark.parametrize("name", (*TASKS, GATED_CHARS))
def test_the_definition_equals_the_oracle_along_legal_walks(name):
    seen, worst, seed = set[tuple[Any, ...]](), 0.0, [*TASKS, GATED_CHARS].index(name)
    steps = [at for start in range(3) for at in walk(build(name, 0), 3 * seed + start)]
    for which in range(3):
        engine = build(name, which)
        truth = replace(engine, backend=oracle.build(engine.structure, torch.device("cpu")))
        at = max(steps, key=lambda at: len(met(engine.structure, at) - seen))  # shows most that is new
        seen |= met(engine.structure, at)
        worst = max(worst, compare(engine, truth, state_of(engine, at, seed), at.table))
    logger.info("%s: %.1e", name, worst)
    assert worst < TOLERANCE
    assert seen == wanted(engine.structure)


def test_seeds_learn_their_own_objective_before_a_bypass_that_reads_tokens():
    """What such a bypass adds is given: no gradient is asked of tokens."""
    which = list(Isolation).index(Isolation.OBJECTIVE)
    engine = build("chars", which)
    bypass = [slot.is_bypass for slot in engine.structure.slots].index(True)

    def behind(at: WalkStep) -> Any:
        trains = (at.table.stage[:, :bypass] == int(Stage.TRAINING)).any(1)
        return trains & at.table.within(MERGED)[:, bypass]

    at = max((at for seed in range(6) for at in walk(engine, seed)), key=lambda at: behind(at).sum())
    assert behind(at).sum() >= 2
    truth = replace(engine, backend=oracle.build(engine.structure, torch.device("cpu")))
    assert compare(engine, truth, state_of(engine, at, 5), at.table) < TOLERANCE
