"""What must hold once ``host_layer.patch`` is applied: a convolutional host takes leaky relus, in every backend.

It is written with an operation of torch that the native backend knows, which runs it without being told. To be run
against a patched copy of the package: ``python -m pytest host_layer_law.py``. The kernels are those of the package, so
nothing is built for the copy.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import esper
from esper.kasmina.checks import check_host
from esper.kasmina.cnn import cnn_host
from esper.kasmina.layers import leaky_relu
from esper.tamiyo.baselines import random_legal
from esper.tezzeret.native.library import library
from esper.utils import rng

SLOPE, SAMPLES, IMAGE, CLASSES = 0.1, 6, (2, 9, 8), 5
LEAKY = partial(leaky_relu, slope=SLOPE)
native = pytest.mark.skipif(library() is None, reason="no C++ compiler")


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(5), number), shape, torch.float64)


def test_equals_torch_nn_to_the_second_derivative():
    x = torch.cat((draw(1, 20), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)))
    x.requires_grad_()

    def facts(function) -> tuple[Tensor, ...]:
        y = function(x)
        (slope,) = torch.autograd.grad((y * y)[:20].sum(), x, create_graph=True)
        (at_zero,) = torch.autograd.grad(y[20:22].sum(), x, retain_graph=True)
        return y, slope, torch.autograd.grad(slope.sum(), x)[0], at_zero

    torch.testing.assert_close(facts(LEAKY), facts(nn.LeakyReLU(SLOPE)), rtol=0, atol=0, equal_nan=True)
    finite = x.detach()[:22]
    torch.testing.assert_close(LEAKY(finite), torch.maximum(finite, SLOPE * finite), rtol=0, atol=0)


def leaky_host():
    return cnn_host(IMAGE, CLASSES, num_blocks=2, base_channels=3, pool_blocks=1, activation=LEAKY)


def in_torch() -> nn.Sequential:
    """The same network, without weights."""
    with torch.device("meta"):
        return nn.Sequential(
            *(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(SLOPE)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
        )


@pytest.mark.parametrize("train", [True, False])
def test_its_host_is_the_network_of_torch_nn(train):
    """Logits, running statistics and the gradient of every parameter."""
    host, net = leaky_host(), in_torch().train(train)
    check_host(host)
    row, y = draw(2, 1, host.num_params).requires_grad_(), draw(3, 1, SAMPLES, *IMAGE)
    x, weights, statistics = y[0], list[Tensor](), list[Tensor]()
    for block, part in zip(host.blocks, row.split([block.layout.size for block in host.blocks], 1), strict=True):
        own = block.layout.views(part)
        new = block.buffer_layout.views(block.buffer_layout.init(rng.key(0).unsqueeze(0), torch.float64))
        y, new = block.train(own, new, y, None) if train else (block.infer(own, new, y), new)
        weights += [view[0] for view in own.values()]
        statistics += [value[0] for value in new.values()]
    names = [name for name, _ in net.named_buffers() if "running" in name]
    held = {name: torch.full(net.get_buffer(name).shape, float("var" in name), dtype=torch.float64) for name in names}
    params = dict(zip([name for name, _ in net.named_parameters()], weights, strict=True))
    wanted = functional_call(net, params | held, x)
    torch.testing.assert_close(y[0], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(statistics, list(held.values()), rtol=0, atol=1e-12)
    weighs = draw(4, *wanted.shape)
    grads = [torch.autograd.grad((out * weighs).sum(), row, retain_graph=True)[0] for out in (y[0], wanted)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.fixture
def task(small_task):
    host = cnn_host((1, 8, 8), 4, num_blocks=3, base_channels=2, pool_blocks=1, activation=LEAKY)
    return small_task._replace(host=host)


@native
def test_native_runs_it_as_eager_does(task, small_task):
    """Equal but for rounding; the same host with relus is a thousand times farther away."""
    fast, plain = (esper.make(task, 4, backend=name) for name in ("native", "eager"))
    other = esper.make(small_task, 4, backend="eager")
    policy, state = random_legal(fast.codec), fast.init(2)
    for number in range(6):
        action = policy(fast.mask(state), rng.fold_in(rng.key(number), torch.arange(4)))
        (after, _), (wanted, _), (relu, _) = (each.step(state, action) for each in (fast, plain, other))
        for part in ("host", "seeds"):
            torch.testing.assert_close(after[part].params, wanted[part].params, rtol=0, atol=1e-6)
        torch.testing.assert_close(after.buffers, wanted.buffers, rtol=0, atol=1e-6)
        torch.testing.assert_close(after.signals.val_loss, wanted.signals.val_loss, rtol=0, atol=1e-6)
        assert ((after.host.params - relu.host.params).abs().amax(1) > 1e-3).all()
        state = after
