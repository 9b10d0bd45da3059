"""The convolutional host and the learned gate: sizes, sites, and the same numbers as torch.nn."""

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import gate
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host
from esper.kasmina.site import Site, conv_site
from esper.leyline.config import ConfigError
from esper.utils import rng

N, B = 2, 6
IMAGE = (3, 32, 32)


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(5), number), shape, torch.float64)


@pytest.mark.parametrize(
    ("base", "blocks", "params"), [(8, 3, 6_418), (16, 3, 24_346), (32, 3, 94_762), (8, 5, 99_922)]
)
def test_parameter_counts(base: int, blocks: int, params: int) -> None:
    host = cnn_host(IMAGE, 10, num_blocks=blocks, base_channels=base)
    assert host.num_params == params
    assert host.name == f"cnn {'-'.join(str(base * 2**block) for block in range(blocks))}"


def test_sites_follow_every_block_and_pools_halve_the_map() -> None:
    host = cnn_host(IMAGE, 10, num_blocks=5, base_channels=8)
    assert list(host.sites) == [0, 1, 2, 3, 4]
    assert [site.shape for site in host.sites.values()] == [
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
        (64, 2, 2),
        (128, 1, 1),
    ]
    assert host.blocks[-1].site is None
    two = cnn_host((1, 9, 8), 10, num_blocks=3, base_channels=2, pool_blocks=2)
    assert [site.shape for site in two.sites.values()] == [(2, 4, 4), (4, 2, 2), (8, 2, 2)]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"input_shape": (3, 32)}, "cnn_host input_shape = (3, 32): expected (channels, height, width)"),
        ({"num_blocks": 0}, "num_blocks = 0"),
        ({"base_channels": 0}, "base_channels = 0"),
        ({"pool_blocks": 4}, "pool_blocks = 4"),
        ({"pool_blocks": -1}, "pool_blocks = -1"),
        ({"kernel_size": 2}, "cnn_host kernel_size = 2: expected an odd integer >= 1"),
        ({"input_shape": (1, 4, 8)}, "cnn_host pool_blocks = 3: input (1, 4, 8) is empty after block 2"),
    ],
)
def test_impossible_hosts_are_refused(kwargs: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        cnn_host(**({"input_shape": IMAGE, "num_classes": 10} | kwargs))
    assert said in str(error.value) and "\n" not in str(error.value)


def forward(host: Host, params: list[Tensor], buffers: list[Tensor], x: Tensor, train: bool) -> tuple[Tensor, list]:
    """All blocks; the logits and the new buffers."""
    new = []
    for block, flat, held in zip(host.blocks, params, buffers, strict=True):
        named = block.layout.views(flat), block.buffer_layout.views(held)
        if train:
            x, kept = block.train(*named, x, None)
            new.append(kept)
        else:
            x = block.infer(*named, x)
    return x, new


def twin(host: Host, params: list[Tensor], buffers: list[Tensor], row: int, pools: int) -> nn.Sequential:
    """The same network in torch.nn, made without weights so that no generator is drawn from."""
    modules: list[nn.Module] = []
    for index, block in enumerate(host.blocks[:-1]):
        named = {k: v[row] for k, v in block.layout.views(params[index]).items()}
        out, into, kernel, _ = named["conv"].shape
        conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, device="meta")
        norm = nn.BatchNorm2d(out, device="meta")
        held = block.buffer_layout.views(buffers[index])
        conv.load_state_dict({"weight": named["conv"]}, assign=True)
        state = {"weight": named["norm.weight"], "bias": named["norm.bias"], "running_mean": held["mean"][row].clone()}
        state |= {"running_var": held["variance"][row].clone(), "num_batches_tracked": torch.tensor(0)}
        norm.load_state_dict(state, assign=True)
        modules += [conv, norm, nn.ReLU(), *([nn.MaxPool2d(2)] if index < pools else [])]
    named = {k: v[row] for k, v in host.blocks[-1].layout.views(params[-1]).items()}
    head = nn.Linear(named["weight"].shape[1], host.num_outputs, device="meta")
    head.load_state_dict(named, assign=True)
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.mark.parametrize("kernel", [1, 3])
def test_is_the_same_network_as_in_torch_nn(kernel: int) -> None:
    host = cnn_host((2, 9, 8), 5, num_blocks=3, base_channels=3, pool_blocks=2, kernel_size=kernel)
    params = [draw(10 + i, N, block.layout.size) for i, block in enumerate(host.blocks)]
    buffers = [draw(20 + i, N, block.buffer_layout.size).abs() + 0.5 for i, block in enumerate(host.blocks)]
    x = draw(1, N, B, 2, 9, 8)
    trained, new = forward(host, params, buffers, x, train=True)
    inferred, _ = forward(host, params, buffers, x, train=False)
    for row in range(N):
        network = twin(host, params, buffers, row, pools=2)
        assert torch.allclose(inferred[row], network.eval()(x[row]), rtol=0, atol=1e-10)
        assert torch.allclose(trained[row], network.train()(x[row]), rtol=0, atol=1e-10)
        norms = [module for module in network if isinstance(module, nn.BatchNorm2d)]
        for norm, kept in zip(norms, new[:-1], strict=True):
            assert torch.allclose(kept["mean"][row], norm.running_mean, rtol=0, atol=1e-12)
            assert torch.allclose(kept["variance"][row], norm.running_var, rtol=0, atol=1e-12)
    assert new[-1] == {}


@pytest.mark.parametrize("channels", [1, 4, 8, 16, 32, 64])
def test_gate_size_and_start(channels: int) -> None:
    site, hidden = conv_site(channels, 3, 2), max(8, channels // 4)
    layout = gate.layout(site)
    assert layout.size == channels * hidden + 2 * hidden + 1
    flat = layout.init(rng.split(rng.key(1), N), torch.float64)
    weight = gate.unit(site)(flat, draw(1, N, B, channels, 3, 2))
    assert weight.shape == (N, B)
    assert torch.allclose(weight, torch.sigmoid(torch.tensor(2.0, dtype=torch.float64)), rtol=0, atol=1e-15)


def test_gate_is_the_documented_function_and_every_tensor_learns() -> None:
    site = conv_site(4, 3, 2)
    layout = gate.layout(site)
    flat, x = draw(2, N, layout.size).requires_grad_(), draw(1, N, B, 4, 3, 2)
    got = gate.unit(site)(flat, x)
    for row in range(N):
        w1, b1, w2, b2 = flat[row].split([32, 8, 8, 1])
        hidden = torch.relu(x[row].mean((-2, -1)) @ w1.reshape(8, 4).T + b1)
        assert torch.allclose(got[row], torch.sigmoid(hidden @ w2 + b2), rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(got.sum(), flat)
    assert all((piece.flatten(1).abs().amax(1) > 0).all() for piece in layout.views(grad).values())


@pytest.mark.parametrize(
    ("site", "dims"),
    [(conv_site(4, 3, 2), (-2, -1)), (Site("token", (5, 4), 1), (2,)), (Site("token", (5, 4), -1), (2,))],
)
def test_sites_pool_all_but_networks_samples_and_channels(site: Site, dims: tuple[int, ...]) -> None:
    features = draw(1, N, B, *site.shape)
    assert site.channels == 4
    assert torch.allclose(site.pool(features), features.mean(dims), rtol=0, atol=1e-12)
    vector = Site("vector", (4,), 0)
    assert torch.equal(vector.pool(features[..., :4, 0]), features[..., :4, 0])
