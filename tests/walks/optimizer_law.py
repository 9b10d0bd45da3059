"""What must hold once ``optimizer.patch`` is applied: Lion is there by name, and steps as its paper says.

To be run against a patched copy of the package: ``python -m pytest optimizer_law.py``.
"""

import os

os.environ.setdefault("ESPER_NATIVE", "0")  # nothing is built for the copy

import torch

import esper
from esper.kasmina.optimizers import OPTIMIZERS, Rates


def test_one_step_by_hand():
    numbers = {"lr": 0.5, "decay": 0.1, "clip": torch.inf, "momentum": 0.0, "beta1": 0.9, "beta2": 0.5, "epsilon": 1.0}
    rates = Rates(**{name: torch.full((1, 1), value, dtype=torch.float64) for name, value in numbers.items()})
    params, grad = torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    moments = torch.tensor([[[-0.1, -1.0]]], dtype=torch.float64)
    after, moved, steps = OPTIMIZERS["lion"].update(grad, params, moments, torch.tensor([4]), rates, None)
    torch.testing.assert_close(after, torch.tensor([[1 - 0.5 * (1 + 0.1), -2 - 0.5 * (-1 - 0.2)]], dtype=torch.float64))
    torch.testing.assert_close(moved, torch.tensor([[[0.45, -0.25]]], dtype=torch.float64))
    assert steps.tolist() == [5]


def test_a_task_learns_with_it_by_name():
    engine = esper.make("synthetic", 2, backend="eager", host_optimizer="lion", host_lr=0.003, steps_per_epoch=8)
    state, losses = engine.init(0), []
    for _ in range(5):
        state, event = engine.step(state, torch.zeros(2, dtype=torch.int64))
        losses.append(event.epoch.loss.mean().item())
    assert losses[-1] < losses[0] - 0.2
