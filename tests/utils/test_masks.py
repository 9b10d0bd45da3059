"""What holds nowhere is left out only where that is known at no cost."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import esper
from esper.utils.masks import holds_nowhere

NOWHERE, SOMEWHERE = torch.zeros(3, 2, dtype=torch.bool), torch.eye(3, dtype=torch.bool)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_numbers_on_the_cpu_are_looked_at():
    assert holds_nowhere(NOWHERE) and not holds_nowhere(SOMEWHERE)
    assert holds_nowhere(NOWHERE[:0]), "without elements there is nothing to change"


def test_a_transform_sees_the_whole_program():
    seen = []
    torch.vmap(lambda row: seen.append(holds_nowhere(row)) or row)(NOWHERE)
    torch.func.functionalize(lambda mask: seen.append(holds_nowhere(mask)) or mask)(NOWHERE)
    assert seen == [False, False]


def test_a_compiler_sees_the_whole_program():
    @torch.compile(backend="eager", fullgraph=True)
    def told(mask: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return mask | mask, holds_nowhere(mask)

    assert told(NOWHERE)[1] is False


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("watch", [Watched, FakeTensorMode])
def test_who_watches_operations_sees_the_whole_program(watch):
    with watch():
        assert not holds_nowhere(NOWHERE)


def test_another_device_is_not_asked():
    assert not holds_nowhere(torch.zeros(2, dtype=torch.bool, device="meta"))


def test_autograd_sees_the_whole_program():
    """What no seed is ramped by has the derivative 0, as where a seed is; not none."""
    with torch.enable_grad():
        assert not holds_nowhere(NOWHERE)
        engine = esper.make("synthetic", 2, backend="eager", differentiable=True, steps_per_epoch=1)
        target = torch.tensor(0.75, requires_grad=True)
        hypers = engine.hypers.replace(alpha_target=target)
        state, _ = replace(engine, hypers=hypers).step(engine.init(0), torch.zeros(2, dtype=torch.int64))
        (slope,) = torch.autograd.grad(state.slots.alpha.sum(), target)
    assert slope.item() == 0.0
