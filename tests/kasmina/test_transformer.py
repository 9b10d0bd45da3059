"""The transformer host: sizes, sites, cost, first loss, and that a tied tensor is one tensor."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.kasmina import arena
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host, Tie, plain_block
from esper.kasmina.layers import causal_attention, embed, layer_norm, standardise
from esper.kasmina.layout import Layout, constant
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.site import token_site
from esper.kasmina.slot_table import take_table
from esper.kasmina.structure import Structure, build_structure
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.transformer import transformer_host
from esper.leyline.actions import Blend
from esper.leyline.config import Config, ConfigError, Precision
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.tezzeret.batches import Batch
from esper.tolaria.data import Dataset, Part
from esper.tolaria.synthetic import synthetic
from esper.utils import rng

N, B = 3, 4
CPU = torch.device("cpu")


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(13), number), shape, torch.float64)


def tokens(number: int, vocabulary: int, *shape: int) -> Tensor:
    return (rng.uniform(rng.fold_in(rng.key(14), number), shape) * vocabulary).long()


def network_of(host: Host) -> Structure:
    return build_structure(Config(num_envs=N, slots=()), host, (), cross_entropy(), CPU)


def logits_of(network: Structure, flat: Tensor, inputs: Tensor) -> Tensor:
    h = inputs
    for block, params in zip(network.host.blocks, arena.split_blocks(network.host, flat), strict=True):
        h = block.infer(block.reads.views(params), {}, h)
    return h


@pytest.mark.parametrize(
    ("vocabulary", "block", "layers", "heads", "width", "params"),
    [(50257, 256, 6, 6, 384, 30_044_544), (96, 16, 0, 4, 32, 96 * 32 + 16 * 32 + 64), (2, 1, 1, 1, 1, 30)],
)
def test_parameter_counts(vocabulary: int, block: int, layers: int, heads: int, width: int, params: int) -> None:
    host = transformer_host(vocabulary, block, layers, heads, width)
    assert host.num_params == params
    assert host.name == f"transformer {layers}x{width}"
    assert host.takes_tokens and host.input_shape == (block,) and host.num_outputs == vocabulary


def test_sites_follow_the_embedding_and_every_block() -> None:
    host = transformer_host(11, 6, num_layers=3, num_heads=2, width=8)
    assert host.sites == dict.fromkeys(range(4), token_site(6, 8))
    assert host.blocks[-1].site is None


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"vocabulary": 1}, "vocabulary = 1"),
        ({"block": 0}, "block = 0"),
        ({"num_layers": -1}, "num_layers = -1"),
        ({"num_heads": 3}, "num_heads = 3, width = 8: expected heads that divide the width"),
        ({"num_heads": 0}, "num_heads = 0"),
        ({"width": 0}, "width = 0"),
    ],
)
def test_impossible_hosts_are_refused(kwargs: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        transformer_host(**({"vocabulary": 11, "block": 6, "num_layers": 1, "num_heads": 2, "width": 8} | kwargs))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("vocabulary", "width", "layers"), [(96, 16, 0), (96, 64, 2), (1000, 128, 1)])
def test_the_first_loss_is_close_to_that_of_guessing(vocabulary: int, width: int, layers: int) -> None:
    """ln V + 0.4**2 / 2, from logits of standard deviation 0.4."""
    network = network_of(transformer_host(vocabulary, 16, layers, 4, width))
    flat, _ = arena.init_host(network.host, rng.split(rng.key(1), N), torch.float64)
    logits = logits_of(network, flat, tokens(1, vocabulary, N, 64, 16))
    loss = F.cross_entropy(logits.flatten(0, 2), tokens(2, vocabulary, N * 64 * 16))
    assert loss.item() == pytest.approx(math.log(vocabulary) + 0.08, abs=0.03)
    assert logits.std(3).mean().item() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("layers", [0, 2])
def test_cost_is_what_torch_counts(layers: int) -> None:
    network = network_of(transformer_host(11, 6, layers, 2, 8))
    flat, _ = arena.init_host(network.host, rng.split(rng.key(1), 1), torch.float32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        logits_of(network, flat, tokens(1, 11, 1, B, 6))
    assert counter.get_total_flops() == 2 * B * sum(block.flops for block in network.host.blocks) > 0


def test_the_tied_gradient_is_the_sum_over_both_uses() -> None:
    """Against a copy of the network whose head has a weight of its own with the same numbers."""
    network = network_of(transformer_host(11, 6, 1, 2, 8))
    flat, _ = arena.init_host(network.host, rng.split(rng.key(1), N), torch.float64)
    flat = flat.requires_grad_()
    inputs, cotangent = tokens(1, 11, N, B, 6), draw(2, N, B, 6, 11)
    (together,) = torch.autograd.grad(logits_of(network, flat, inputs), flat, cotangent)

    rows = [row.detach().clone().requires_grad_() for row in arena.split_blocks(network.host, flat)]
    h = inputs
    for block, row in zip(network.host.blocks, rows, strict=True):
        h = block.infer(block.reads.views(row), {}, h)
    embedding, middle, head = torch.autograd.grad(h, rows, cotangent)
    own, tied = head.split([16, 88], dim=1)
    assert embedding[:, :88].abs().max() > 0 and tied.abs().max() > 0
    embedding = torch.cat((embedding[:, :88] + tied, embedding[:, 88:]), dim=1)
    assert torch.allclose(together, torch.cat((embedding, middle, own), dim=1), rtol=0, atol=1e-12)


def test_a_host_without_ties_is_split_without_copies() -> None:
    network = network_of(cnn_host((1, 8, 8), 10, num_blocks=2, base_channels=2))
    flat, _ = arena.init_host(network.host, rng.split(rng.key(1), N), torch.float32)
    for row in arena.split_blocks(network.host, flat):
        assert row.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_layout_columns_are_where_the_views_are() -> None:
    layout = Layout((constant("a", (2, 3), 0.0), constant("b", (), 0.0), constant("c", (4,), 0.0)))
    flat = torch.arange(22).reshape(2, 11)
    for name, view in layout.views(flat).items():
        assert torch.equal(flat[:, layout.columns(name)], view.flatten(1))


WEIGHT = constant("weight", (3, 3), 0.5)


def tied_host(ties: tuple[Tie, ...], name: str = "other") -> Host:
    first = plain_block((WEIGHT,), lambda params, x: x, None, 1)
    return Host("pair", (3,), 3, (first, plain_block((constant(name, (3,), 0.0),), lambda p, x: x, None, 1, ties)))


PAIR = tied_host(()).blocks
BACKWARDS = tied_host(())._replace(blocks=(PAIR[0]._replace(ties=(Tie(1, PAIR[1].params[0]),)), PAIR[1]))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (tied_host((Tie(1, WEIGHT),)), "host 'pair', block 1: tied to 'weight' of block 1"),
        (tied_host((Tie(-1, WEIGHT),)), "tied to 'weight' of block -1; expected a tensor that a block before 1 owns"),
        (tied_host((Tie(0, WEIGHT._replace(shape=(9,))),)), "tied to 'weight' of block 0"),
        (BACKWARDS, "host 'pair', block 0: tied to 'other' of block 1"),
        (tied_host((Tie(0, WEIGHT),), "weight"), "block 1: parameters ['weight', 'weight']; expected distinct names"),
    ],
)
def test_ties_to_nothing_are_refused(host: Host, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        network_of(host)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_host_and_a_dataset_of_different_kinds_are_refused() -> None:
    data = synthetic((6,), num_classes=11, num_train=8, num_val=8)
    text = Dataset("text", *(Part(tokens(n, 11, 8, 6), tokens(n + 3, 11, 8, 6)) for n in range(3)), 11)
    linear = cnn_host((1, 1, 6), 11, num_blocks=1, pool_blocks=0)._replace(input_shape=(6,))
    for host, given in ((transformer_host(11, 6, 0, 1, 4), data), (linear, text)):
        with pytest.raises(ConfigError, match=r"dataset \S+ has (tokens|floating features), host .* takes"):
            esper.make(esper.Task("mixed", host, (), given, {}), 2)


def test_embed_is_torchs_own_row_by_row() -> None:
    found, weight = tokens(1, 7, N, B, 5), draw(1, N, 7, 4).requires_grad_()
    got = embed(found, weight)
    expected = torch.stack([F.embedding(t, w) for t, w in zip(found, weight, strict=True)])
    assert torch.equal(got, expected)
    cotangent = draw(2, *got.shape)
    ours, theirs = (torch.autograd.grad(out, weight, cotangent)[0] for out in (got, expected))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    shared = tokens(3, 7, B, 5)
    assert torch.equal(embed(shared.expand(N, B, 5), weight), weight[:, shared])


@pytest.mark.parametrize("between", [(), (5,)])
def test_layer_norm_is_torchs_own_row_by_row(between: tuple[int, ...]) -> None:
    x, weight, bias = 3 * draw(1, N, B, *between, 6) + 1, draw(2, N, 6), draw(3, N, 6)
    expected = torch.stack([F.layer_norm(*(r[0], (6,), *r[1:])) for r in zip(x, weight, bias, strict=True)])
    assert torch.allclose(layer_norm(x, weight, bias), expected, rtol=0, atol=1e-12)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(standardise(x), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_a_masked_softmax(heads: int) -> None:
    """By definition, with loops over networks, samples, heads and positions."""
    qkv = draw(1, 2, 2, 5, 24).requires_grad_()
    got, size = causal_attention(qkv, heads), 8 // heads
    query, key, value = qkv.split(8, dim=-1)
    expected = torch.zeros(2, 2, 5, 8, dtype=torch.float64)
    for n, b, t, h in torch.cartesian_prod(*map(torch.arange, (2, 2, 5, heads))).tolist():
        part = slice(h * size, (h + 1) * size)
        scores = key[n, b, : t + 1, part] @ query[n, b, t, part] / size**0.5
        expected[n, b, t, part] = torch.softmax(scores, 0) @ value[n, b, : t + 1, part]
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    cotangent = draw(2, *got.shape)
    ours, theirs = (torch.autograd.grad(out, qkv, cotangent)[0] for out in (got, expected))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_takes_the_fused_kernel_forwards_and_backwards(dtype: torch.dtype) -> None:
    qkv = draw(1, N, B, 8, 24).to(dtype).requires_grad_()
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it does not apply
        warnings.simplefilter("error")
        (grad,) = torch.autograd.grad(causal_attention(qkv, 2).square().sum(), qkv)
    assert grad.isfinite().all()


@pytest.mark.parametrize("blend", [Blend.LINEAR, Blend.GATED])
def test_a_grown_transformer_predicts_from_the_past_alone(blend: Blend) -> None:
    """With every blueprint in every slot, fully blended, gates included: logits before a change keep their bits."""
    data = Dataset("text", *(Part(tokens(n, 11, 8, 6), tokens(n + 3, 11, 8, 6)) for n in range(3)), 11)
    host, kinds = transformer_host(11, 6, 1, 2, 8), len(TOKEN_BLUEPRINTS)
    task = esper.Task("grown", host, TOKEN_BLUEPRINTS, data, {"slots": (0, 1)})
    engine = esper.make(task, kinds, backend="eager", precision=Precision.FLOAT64)
    state = engine.init(1)
    blueprint = (torch.arange(kinds).unsqueeze(1) + torch.arange(2)) % kinds
    ones = torch.ones_like(blueprint)
    slots = state.slots.replace(
        stage=int(Stage.FOSSILIZED) * ones, blueprint=blueprint, blend=int(blend) * ones, alpha=ones.double()
    )
    plan, learners = engine.backend.plan(take_table(slots), CPU), learners_of(state)
    learners = learners._replace(seeds=learners.seeds._replace(params=0.3 * draw(3, *state.seeds.params.shape)))
    first = tokens(5, 11, kinds, B, 6)
    second = torch.cat((first[:, :, :3], 10 - first[:, :, 3:]), dim=2)
    before, after = (
        engine.backend.forward(plan, learners, slots.alpha, Batch(inputs, inputs))[0] for inputs in (first, second)
    )
    assert torch.allclose(before[:, :, :3], after[:, :, :3], rtol=0, atol=1e-12)
    assert ((before - after)[:, :, 3:].abs().amax((1, 2, 3)) > 0.1).all()
