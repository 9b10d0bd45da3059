"""One epoch and one evaluation equal plain PyTorch, environment by environment.

Pooling windows of these data have no ties but zeros after a relu, whose gradient is 0 whoever receives it.
"""

import math
from functools import cache
from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

from esper.leyline.actions import Blend
from esper.leyline.config import Precision, SampleOrder
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.tezzeret.native.library import library
from esper.tolaria.evaluation import evaluate, shapley_values
from esper.tolaria.training import sample_indices

TINY = 1e-8
"""A seed whose gradient is smaller has ratio 0: its gate is shut."""


def relative(ours: Tensor, theirs: Tensor | float) -> float:
    """Largest difference over the largest size of a row; rows without numbers differ by nothing."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    assert ours.shape == theirs.shape
    if not theirs.numel():
        return 0.0
    return float((ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("slot", range(3))
def test_configs_cover_everything(configs, slot):
    held = {spec for config in configs if len(config.slots) == 3 for spec in config.specs[slot]}
    kinds = max(spec.blueprint for spec in held) + 1
    assert kinds == {"conv": 7, "token": 6}[configs[0].topology]
    assert held >= set(product(ACTIVE, range(kinds), Blend))
    assert {spec.stage for spec in held} == set(Stage) - {Stage.UNKNOWN}


def test_both_backends_are_held_to_it(run):
    single = run.engine.config.precision is Precision.FLOAT32
    assert run.engine.backend.name == ("native" if single and library() else "eager")


def test_minibatches(run):
    """An epoch repeats no sample; shared order is one order, independent orders differ."""
    order = sample_indices(run.engine.config, run.before, run.engine.data.train.size)
    shared = run.config.order is SampleOrder.SHARED
    rows = [order.flatten().tolist()] if shared else order.flatten(1).tolist()
    assert all(len(set(row)) == len(row) for row in rows)
    assert len(set(map(tuple, rows))) == (1 if shared else run.engine.config.num_envs)


def test_training(run):
    errors = {}
    for env, (plain, report) in enumerate(zip(run.plains, run.reports, strict=True)):
        rows = {"host": (run.after.host[env], slice(None))}
        rows |= {name: (run.after.seeds[env], columns) for name, (_, columns) in run.spans(env).items()}
        assert rows.keys() == plain.trained.keys()
        for name, (part, columns) in rows.items():
            ours = (part.params[columns], *part.moments[:, columns])
            for row, (what, theirs) in zip(ours, plain.trained[name].rows().items(), strict=True):
                errors[env, f"{name} {what}"] = relative(row, theirs)
        errors[env, "buffers"] = relative(run.after.buffers[env], plain.buffers())
        errors[env, "loss"] = relative(run.epoch.loss[env], report.loss)
        errors[env, "accuracy"] = relative(run.epoch.accuracy[env], report.accuracy)
    run.assert_small(errors)
    assert run.epoch.finite.all()


def test_only_what_trains_changes(run):
    config, before, after = run.engine.config, run.before, run.after
    for env in range(config.num_envs):
        idle, steps = torch.ones_like(before.seeds.params[env], dtype=torch.bool), before.seeds.steps[env].clone()
        for name, (slot, columns) in run.spans(env).items():
            idle[columns] = False
            steps[slot] += config.steps_per_epoch if name.startswith("seed") else 0
        assert torch.equal(after.seeds.params[env, idle], before.seeds.params[env, idle])
        assert torch.equal(after.seeds.moments[env][:, idle], before.seeds.moments[env][:, idle])
        assert torch.equal(after.seeds.steps[env], steps)
    assert torch.equal(after.host.steps, before.host.steps + config.steps_per_epoch)


def test_health(run):
    health, errors = run.epoch.health, {}
    for env, (plain, report) in enumerate(zip(run.plains, run.reports, strict=True)):
        size = {name: sum(p.numel() for p in part.params) for name, part in plain.trained.items()}
        host, low, high = report.norms["host"], plain.numbers["vanishing_norm"], plain.numbers["exploding_norm"]
        errors[env, "host norm"] = relative(health.host_norm[env], host.norm())
        errors[env, "vanishing"] = relative(health.vanishing[env], (host < low).double().mean())
        errors[env, "exploding"] = relative(health.exploding[env], (host > high).double().mean())
        for slot in range(len(run.config.slots)):
            seed = report.norms.get(f"seed {slot}", torch.zeros(1))
            ratio = seed.norm() / host.norm() * (size["host"] / size.get(f"seed {slot}", 1)) ** 0.5
            ratio = ratio if seed.norm() >= TINY else torch.zeros(())
            errors[env, f"seed {slot} norm"] = relative(health.seed_norm[env, slot], seed.norm())
            errors[env, f"seed {slot} ratio"] = relative(health.seed_ratio[env, slot], ratio)
            errors[env, f"seed {slot} healthy"] = float(health.seed_healthy[env, slot] != (seed <= high).all())
    run.assert_small(errors)


def test_evaluation(run):
    engine = run.engine
    evaluation = evaluate(engine.backend, engine.hypers, run.after, run.table, run.plan, engine.data)
    data, errors = engine.data.to("cpu", torch.float64), {}
    inputs, targets = data.validation.inputs, data.validation.targets

    def per_sample(logits: Tensor) -> Tensor:
        return (logits.argmax(-1) == targets).double().reshape(len(targets), -1).mean(1)

    for env in range(engine.config.num_envs):
        plain = run.trained_plain(env)
        logits = plain.infer(inputs, {})
        own, hits = per_sample(logits), (logits.argmax(-1) == targets).double()
        loss = nn.CrossEntropyLoss()(logits.flatten(0, -2), targets.flatten())
        errors[env, "loss"] = relative(evaluation.loss[env], loss)
        errors[env, "accuracy"] = relative(evaluation.accuracy[env], 100 * own.mean())
        by_class = torch.stack([100 * hits[targets == label].mean() for label in range(engine.data.num_classes)])
        errors[env, "class accuracy"] = relative(evaluation.class_accuracy[env], by_class)
        for slot, specs in enumerate(run.config.specs):
            change = torch.zeros_like(own)
            if specs[env].stage in MERGED:
                change = own - per_sample(plain.infer(inputs, {slot: 0.0}))
            elif specs[env].stage == Stage.TRAINING:
                target = plain.numbers["alpha_target"]
                change = per_sample(plain.infer(inputs, {slot: target})) - own
            error = 100 * (change.var(correction=0) / len(targets)).sqrt()
            errors[env, f"effect {slot}"] = relative(evaluation.effect[env, slot], 100 * change.mean())
            errors[env, f"effect error {slot}"] = relative(evaluation.effect_error[env, slot], error)
            assert evaluation.measured[env, slot] == (specs[env].stage in ACTIVE)
    run.assert_small(errors)
    assert evaluation.finite.all()


def test_shapley_values(run):
    """By definition: the mean, over all orders of joining, of what a slot adds when it joins."""
    engine = run.engine
    values = shapley_values(engine.backend, engine.hypers, run.after, run.table, run.plan, engine.data)
    data = engine.data.to("cpu", torch.float64)
    inputs, targets = data.validation.inputs, data.validation.targets
    for env in range(engine.config.num_envs):
        plain = run.trained_plain(env)
        merged = [slot for slot, specs in enumerate(run.config.specs) if specs[env].stage in MERGED]

        @cache
        def accuracy(off: frozenset[int], plain=plain) -> float:
            return 100 * (plain.infer(inputs, dict.fromkeys(off, 0.0)).argmax(-1) == targets).double().mean().item()

        expected = torch.zeros_like(values[env])
        for order in permutations(merged):
            for place, slot in enumerate(order):
                off = frozenset(order[place + 1 :])
                expected[slot] += (accuracy(off) - accuracy(off | {slot})) / math.factorial(len(merged))
        torch.testing.assert_close(values[env], expected, rtol=0, atol=1e-4 if values.dtype == torch.float32 else 1e-9)
