"""Bypasses against a plain composite of ``torch.nn`` modules, environment by environment, by both backends."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from esper.kasmina import arena
from esper.kasmina.counterfactuals import coalitions, single_changes
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import build_structure
from esper.leyline.actions import NONE, Blend
from esper.leyline.config import Config, Isolation, Precision
from esper.leyline.hypers import build_hypers
from esper.leyline.learners import Learners, Weights
from esper.leyline.stages import ACTIVE, Stage
from esper.tezzeret import eager, oracle
from esper.tezzeret.batches import Batch
from esper.utils import rng

_spec = importlib.util.spec_from_file_location("tezzeret_composites", Path(__file__).with_name("composites.py"))
plain = sys.modules.setdefault("tezzeret_composites", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(plain)

E, B, V, F64, CPU = 5, 6, 7, torch.float64, torch.device("cpu")
TOLERANCE = 1e-12
D, T, B_, S = Stage.DORMANT, Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING
COURSES = {
    plain.Shortcut: (
        [((T, T), (T, B_), (D, T), (T, D), (B_, T))] * 3 + [((B_, B_), (B_, S), (D, B_), (B_, D), (S, B_))] * 2
    ),
    plain.Around: (
        [((T, T), (T, B_), (B_, T), (D, T), (S, T))] * 2
        + [((B_, B_), (B_, S), (S, B_), (D, B_), (S, B_))] * 2
        + [((S, S), (S, S), (S, S), (D, S), (S, S))]
    ),
}
"""Per composite, for each of five steps the stages of the two slots in five environments."""
NUMBERS = {"host_lr": 0.1, "seed_lr": 0.2, "momentum": 0.8, "host_weight_decay": 0.01, "seed_weight_decay": 0.02}
NUMBERS |= {"host_clip": 0.4, "seed_clip": 0.6, "alpha_target": 0.7}
CASES = [(plain.Shortcut, isolation) for isolation in (Isolation.OBJECTIVE, Isolation.STRAIGHT_THROUGH)]
CASES += [(plain.Around, Isolation.STRAIGHT_THROUGH)]


def build(kind, isolation):
    config = Config(
        num_envs=E,
        slots=kind.slots,
        blends=(Blend.LINEAR,),
        batch_size=B,
        eval_batch_size=4,
        isolation=isolation,
        precision=Precision.FLOAT64,
    )
    return build_structure(config, plain.HOST, plain.BLUEPRINTS, plain.OBJECTIVE, CPU)


def table_of(kind, stages):
    stage = torch.tensor([[int(each) for each in row] for row in stages]).numpy()
    empty = stage == int(Stage.DORMANT)
    held = torch.tensor(kind.kinds).expand(E, 2).numpy().copy()
    held[empty] = NONE
    return SlotTable(stage, held, held.clip(max=int(Blend.LINEAR)))


def begin(structure, kind, table):
    """Hosts and seeds as they germinate, running statistics away from their first values."""
    key = rng.fold_in(rng.key(5), torch.arange(E))
    host, buffers = arena.init_host(structure.host, key, F64)
    seeds = torch.zeros(E, structure.num_seed_params, dtype=F64)
    rest = (structure.seed_optimizer.init(seeds), torch.zeros(E, 2, dtype=torch.int64))
    weights = Weights(host, structure.host_optimizer.init(host), torch.zeros(E, dtype=torch.int64))
    learners = Learners(weights, buffers + 0.1, Weights(seeds, *rest), seeds.new_zeros(E, structure.num_seed_buffers))
    stage = table.stage.copy()
    stage[stage != int(Stage.DORMANT)] = int(Stage.GERMINATED)
    return arena.init_seeds(structure, table._replace(stage=stage), learners, key, torch.zeros_like(key[:, 0]))


def compose(structure, kind, table, learners):
    """The same as modules."""
    found = []
    with torch.random.fork_rng(devices=[]):  # modules draw initial values; all are overwritten
        for env in range(E):
            host = plain.TrainedModule(
                plain.PlainHost(), learners.host.params[env], learners.buffers[env], NUMBERS, "host"
            )
            seeds = {}
            for number in (table.stage[env] != int(Stage.DORMANT)).nonzero()[0].tolist():
                seeds[number] = plain.TrainedModule(
                    kind.modules[number](), *seed_rows(structure, kind, learners, env, number), NUMBERS, "seed"
                )
            found.append(kind(host, seeds, structure.config.isolation, NUMBERS["alpha_target"]))
    return found


def seed_rows(structure, kind, learners, env, number):
    slot = structure.slots[number]
    size = slot.buffer_row(kind.kinds[number]).size
    columns = slot.blueprint_columns(kind.kinds[number])
    return learners.seeds.params[env, columns], learners.seed_buffers[env, slot.buffer_columns][:size]


def batch_of(seed):
    targets = (rng.uniform(rng.key(seed), (E, B)) * plain.CLASSES).long()
    return Batch(rng.normal(rng.key(seed + 100), (E, B, *plain.SHAPE), F64), targets)


def alphas_of(table):
    return torch.where(torch.as_tensor(table.stage > int(Stage.TRAINING)), torch.tensor([0.3, 0.6], dtype=F64), 0.0)


def stages_of(table, env):
    return {n: Stage(stage) for n, stage in enumerate(table.stage[env].tolist()) if stage in ACTIVE}


def close(found, truth):
    assert ((found - truth).abs().max() / truth.abs().max()).item() < TOLERANCE


def check_learners(structure, kind, learners, composites):
    for env, composite in enumerate(composites):
        close(torch.cat((learners.host.params[env], learners.buffers[env])), composite.host.row())
        for number, seed in composite.seeds.items():
            close(torch.cat(seed_rows(structure, kind, learners, env, number)), seed.row())


def trained(backend, kind, isolation):
    """Five steps of both; after each they are the same."""
    structure = build(kind, isolation)
    hypers, table = build_hypers(NUMBERS, E, F64, CPU), table_of(kind, COURSES[kind][0])
    learners = begin(structure, kind, table)
    composites, runs = compose(structure, kind, table, learners), backend.build(structure, CPU)
    for number, stages in enumerate(COURSES[kind]):
        table, batch = table_of(kind, stages), batch_of(number)
        alphas = alphas_of(table)
        learners, seen = runs.minibatch_step(hypers, runs.plan(table, CPU), learners, alphas, batch)
        losses = [
            composite.train(batch.inputs[env], batch.targets[env], stages_of(table, env), alphas[env].tolist())
            for env, composite in enumerate(composites)
        ]
        close(seen.loss, torch.tensor(losses, dtype=F64))
        check_learners(structure, kind, learners, composites)
    return runs, hypers, learners, composites


@pytest.mark.parametrize("backend", [eager, oracle], ids=["eager", "oracle"])
@pytest.mark.parametrize(("kind", "isolation"), CASES)
def test_a_bypass_trains_and_is_validated_as_a_composite(backend, kind, isolation):
    runs, hypers, learners, composites = trained(backend, kind, isolation)
    samples = rng.normal(rng.key(8), (V, *plain.SHAPE), F64), torch.arange(V) % plain.CLASSES
    for stages in (COURSES[kind][0], COURSES[kind][-1]):
        table = table_of(kind, stages)
        plan, alphas = runs.plan(table, CPU), alphas_of(table)
        for wanted in (single_changes(table), coalitions(table)[0]):
            found = runs.evaluate(hypers, plan, learners, alphas, samples, wanted)
            for env, composite in enumerate(composites):
                outputs = composite.look(samples[0], stages_of(table, env), alphas[env].tolist())
                close(found.losses[env], plain.OBJECTIVE.loss(outputs, samples[1]))
                close(found.scores[env], plain.OBJECTIVE.score(outputs, samples[1]))
            for row, env, change in zip(found.scores[E:], wanted.env.tolist(), wanted.change.tolist(), strict=True):
                off = [0.0 if what == 1 else alpha for what, alpha in zip(change, alphas[env].tolist(), strict=True)]
                on = change.index(2) if 2 in change else None
                outputs = composites[env].look(samples[0], stages_of(table, env), off, on)
                close(row, plain.OBJECTIVE.score(outputs, samples[1]))
