"""Population-based training, written with ``select`` and ``replace``: the worst take over the best, and go on changed.

Source: Jaderberg et al. 2017, "Population based training of neural networks".
"""

import dataclasses

import torch

import esper
from esper.leyline.environments import OF_THE_RUN, replace, select
from esper.utils import rng

MEMBERS, EVERY, EPOCHS, KEY = 8, 2, 6, rng.key(7)


def exploit(state, rates, epoch):
    """The worst quarter takes over weights, moments and seeds of the best, and a learning rate near theirs."""
    order = state.signals.val_accuracy.argsort(stable=True)
    worst, best = order[: MEMBERS // 4], order[-(MEMBERS // 4) :]
    factor = torch.where(rng.uniform(rng.fold_in(KEY, epoch), (len(worst),)) < 0.5, 0.8, 1.25)
    return replace(state, worst, select(state, best)), rates.index_copy(0, worst, rates[best] * factor), worst, best


def trained(with_exploitation):
    rates = 10 ** rng.uniform(KEY, (MEMBERS,), -4.0, -0.5)
    engine = esper.make("synthetic", MEMBERS, backend="eager", host_lr=rates, steps_per_epoch=4, val_samples=64)
    state, wait = engine.init(seed=1), torch.zeros(MEMBERS, dtype=torch.int64)
    for epoch in range(1, EPOCHS + 1):
        state, _ = engine.step(state, wait)
        if with_exploitation and epoch % EVERY == 0:
            before = state
            state, rates, worst, best = exploit(state, rates, epoch)
            assert_taken_over(before, state, worst, best)
            engine = dataclasses.replace(engine, hypers=engine.hypers.replace(host_lr=rates).lock_())
    return state.signals.val_accuracy


def assert_taken_over(before, after, worst, best):
    """Row by row: those that were taken over have the bits of the best, all others their own."""
    source = torch.arange(MEMBERS)
    source[worst] = best
    leaves = dict(before.items(include_nested=True, leaves_only=True))
    for path, leaf in after.items(include_nested=True, leaves_only=True):
        rows = leaves[path] if path in OF_THE_RUN else torch.stack([leaves[path][i] for i in source.tolist()])
        assert torch.equal(leaf.nan_to_num(), rows.nan_to_num()), path


def test_a_population_that_copies_its_best_ends_better_than_one_that_does_not():
    assert trained(True).mean() > trained(False).mean() + 5
