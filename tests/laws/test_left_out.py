"""What a step leaves out, because it would happen to no slot, would have changed no bit.

The second source is the whole program: a mode that watches operations makes every one of them be carried out.
"""

import pytest
import torch
from tensordict import TensorDictBase, TypedTensorDict
from torch.utils._python_dispatch import TorchDispatchMode

import esper
from esper.tamiyo.baselines import random_legal
from esper.utils import rng
from esper.utils.tree import leaves_of

ENVS, STEPS = 6, 24
SETTINGS = {
    "as shipped": {},
    "every way to decide": {"retarget": True, "auto_advance": True, "decision_history": 2},
    "rolled back": {"host_lr": 100.0, "loss_limit": 0.1, "loss_sigmas": 0.1, "loss_multiple": 1.01, "min_history": 2},
}


class Watched(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def tensors_of(tree) -> list[torch.Tensor]:
    found = list[torch.Tensor]()
    for leaf in leaves_of(tree):
        found += leaf.values(True, True) if isinstance(leaf, TensorDictBase | TypedTensorDict) else [leaf]
    return found


def same(one, other) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype for a, b in pairs)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_whole_program_gives_the_same_bits(settings):
    """Under random decisions, legal ones and others, and where all wait."""
    engine = esper.make("digits", ENVS, backend="eager", steps_per_epoch=1, batch_size=8, val_samples=16, **settings)
    state, policy, rolled_back = engine.init(2), random_legal(engine.codec), 0
    keys = rng.fold_in(rng.key(4), torch.arange(ENVS))
    for step in range(STEPS):
        action = policy(engine.mask(state), rng.fold_in(keys, step))
        action = (action * 7 + step) % engine.codec.size if step % 3 == 2 else action
        action = torch.zeros_like(action) if step % 6 == 0 else action
        after, event = engine.step(state, action)
        with Watched():
            watched, told = engine.step(state, action)
            mask = engine.mask(after)
        assert same(after, watched) and same(event, told) and same(engine.mask(after), mask)
        state, rolled_back = after, rolled_back + int(event.judgement.rolled_back.sum())
    assert (rolled_back > 0) == ("host_lr" in settings)
