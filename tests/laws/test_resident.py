"""Episodes leave nothing behind: what the process holds does not grow.

A few hundred steps of each environment here; ``pytest -m large tests/laws/test_resident.py`` takes 2,500 of each of
four, ten thousand in all.
"""

import pytest
import torch

import esper
from esper.runtime import debug
from esper.runtime.rollout import rollout
from esper.tamiyo.policies import random_policy
from esper.utils.resident import STATUS, held

MOST = 0.01
"""Growth that is allowed, as a share of what is held."""

CPU = torch.device("cpu")


def growth(task, steps):
    """By how much memory grows over some steps, once as many as a tenth of them have been taken, at least 120."""
    engine, seed = esper.make(task, 4), 0
    policy, length = random_policy(engine.codec), engine.config.horizon

    def play(count):
        nonlocal seed
        for _ in range(-(-count // length)):
            rollout(engine, policy, seed)
            seed += 1
        return held(CPU)

    with debug.watching(False):
        before = play(max(120, steps // 10))
        return play(steps) / before - 1


@pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")
@pytest.mark.parametrize("steps", [240, pytest.param(2_500, marks=pytest.mark.large)])
def test_memory_does_not_grow(small_task, steps):
    grown = growth(small_task, steps)
    print(f"{steps} steps: {grown:+.4%}")  # noqa: T201
    assert grown < MOST
