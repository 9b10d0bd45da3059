"""A ``torch.nn.Module`` as a host: trained as by its own loop, accepted, cut where it can be, else refused by name."""

import copy
from functools import cache

import pytest
import torch
from module_nets import CASES, Perceptron, Residuals, ResNet20, Skip, SmallViT, descend, drawn, numbers
from torch import nn
from torch.nn import functional as F

import esper
from esper.kasmina import arena
from esper.kasmina.checks import check_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.slot_table import take_table
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.vector_blueprints import VECTOR_BLUEPRINTS
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError
from esper.leyline.learners import learners_of
from esper.tamiyo.scripted import grow
from esper.tezzeret import eager
from esper.tezzeret.batches import batch_at
from esper.tezzeret.modules.cuts import choose
from esper.tezzeret.modules.trace import trace
from esper.tezzeret.native.library import library
from esper.tolaria.digits import digits
from esper.tolaria.synthetic import synthetic
from esper.tolaria.training import draw_batches
from esper.utils import rng

F64 = torch.float64
NEEDS_NATIVE = pytest.mark.skipif(library() is None, reason="needs the native library")
KINDS = {"conv": CONV_BLUEPRINTS, "vector": VECTOR_BLUEPRINTS, "token": TOKEN_BLUEPRINTS}
EXAMPLE = rng.normal(rng.key(5), (4, 1, 8, 8))


def engine_of(host, data=None, kinds=(), backend="eager", **settings):
    data = synthetic((1, 8, 8), num_train=64, num_val=20, num_test=20) if data is None else data
    given = {"slots": (0,), "batch_size": 8, "steps_per_epoch": 10} | settings
    return esper.make(
        esper.Task("own", host, kinds or KINDS[host.blocks[0].site.kind], data, given), 2, backend=backend
    )


def row_of(host, named, layouts):
    """Tensors by name as a host's row."""
    parts = [named[param.name].detach().flatten() for block in host.blocks for param in layouts(block)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=F64)


@cache
def made(name):
    """A network, in double precision, and the host of it."""
    module = drawn(CASES[name].make).double()
    return module, esper.host(module, EXAMPLE.double(), CASES[name].sites)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_the_modules_own_loop(name):
    module, host = made(name)
    assert [site.kind for site in host.sites.values()] == CASES[name].kinds
    engine = engine_of(host, precision="float64", host_lr=0.1)
    state = engine.init(0)
    batches = draw_batches(engine.config, state, engine.data)
    learners, plan = learners_of(state), eager.plan(engine.structure, take_table(state.slots), torch.device("cpu"))
    pairs, losses = [], []
    for step in range(10):
        batch = batch_at(engine.structure, batches, step)
        learners, seen = engine.backend.minibatch_step(engine.hypers, plan, learners, state.slots.alpha, batch)
        pairs.append((batch.inputs[0], batch.targets[0]))
        losses.append(float(seen.loss[0]))
    plain = copy.deepcopy(module).train()
    wanted = descend(plain, [list(plain.parameters())], pairs, numbers(engine))
    assert losses == pytest.approx(wanted, abs=1e-9)
    named = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for row, layouts in ((learners.host.params, lambda b: b.params), (learners.buffers, lambda b: b.buffers)):
        torch.testing.assert_close(row[0], row_of(host, named, layouts), rtol=0, atol=1e-9)
        torch.testing.assert_close(row[1], row[0], rtol=0, atol=1e-9)


class NormedPerceptron(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10))


NATIVE = {"resnet": (ResNet20, "stem"), "residuals": (Residuals, "1"), "vectors": (NormedPerceptron, "3")}


@NEEDS_NATIVE
@pytest.mark.parametrize("name", NATIVE)
def test_ten_steps_in_the_native_library_are_those_of_the_modules_own_loop_statistics_too(name):
    """In single precision, which the library has; the module's loop in double."""
    module = drawn(NATIVE[name][0])
    engine = engine_of(esper.host(module, EXAMPLE, NATIVE[name][1]), backend="native", host_lr=0.1)
    start = engine.init(0)
    batches = draw_batches(engine.config, start, engine.data)
    pairs = [batch_at(engine.structure, batches, step) for step in range(10)]
    state, _ = engine.step(start, torch.zeros(2, dtype=torch.int64))
    plain = copy.deepcopy(module).double().train()
    own = [(batch.inputs[0].double(), batch.targets[0]) for batch in pairs]
    descend(plain, [list(plain.parameters())], own, numbers(engine))
    named = dict(plain.named_parameters()) | dict(plain.named_buffers())
    host = engine.structure.host
    assert sum(param.size for block in host.blocks for param in block.buffers) == len(state.buffers[0]) > 0
    for row, layouts in ((state.host.params, lambda b: b.params), (state.buffers, lambda b: b.buffers)):
        torch.testing.assert_close(row[0].double(), row_of(host, named, layouts), rtol=1e-5, atol=1e-5)
    test, plain = engine.data.test, plain.eval()
    hits = (plain(test.inputs.double()).argmax(1) == test.targets).double().mean()
    assert float(engine.test(state).accuracy[0]) == pytest.approx(100 * float(hits), abs=1e-4)


BY_HAND = {
    "momentum": (lambda: nn.BatchNorm2d(2, momentum=0.3), "operation batch_norm with momentum = 0.3"),
    "epsilon": (lambda: nn.BatchNorm2d(2, eps=1e-3), "operation batch_norm with eps = 0.001"),
    "weights": (lambda: nn.BatchNorm2d(2, affine=False), "a batch norm without weight or bias"),
}


@NEEDS_NATIVE
@pytest.mark.parametrize("name", BY_HAND)
def test_norms_that_the_native_library_has_not_run_eagerly_and_say_so(name):
    norm, reason = BY_HAND[name]

    def make():
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))

    host = esper.host(drawn(make), EXAMPLE, "2")
    with pytest.raises(ConfigError, match=reason):
        engine_of(host, backend="native")
    assert engine_of(host, backend="auto").describe()[0].startswith("eager")


@pytest.mark.parametrize("name", CASES)
def test_check_host_accepts_them(name):
    check_host(made(name)[1])


GROWN = {"resnet": "conv_light", "perceptron": "gated_mlp", "vit": "mlp", "skip": "conv_light"}


@pytest.mark.parametrize(
    "name", ["perceptron", *(pytest.param(name, marks=pytest.mark.large) for name in CASES if name != "perceptron")]
)
def test_a_seed_fossilizes_and_is_missed(name):
    """On the digits; in the narrowest form of each network."""
    narrow = {"resnet": lambda: ResNet20(1), "vit": lambda: SmallViT(4, 1), "skip": lambda: Skip(3)}
    host = esper.host(drawn(narrow.get(name, lambda: Perceptron(3))), EXAMPLE, CASES[name].sites)
    rates = {"host_lr": 0.1, "seed_lr": 0.1, "min_improvement": 0.1, "min_contribution": 0.3, "blend_epochs": 2}
    rates |= {"min_training_epochs": 1, "min_blending_epochs": 1, "val_samples": 180, "horizon": 20}
    kinds = KINDS[CASES[name].kinds[0]]
    engine = engine_of(host, digits(), kinds, "auto", batch_size=64, steps_per_epoch=16, **rates)
    policy, state = grow(engine.codec, GROWN[name], Blend.LINEAR), engine.init(0)
    for _ in range(20):
        state, _event = engine.step(state, policy(engine.mask(state)))
    slots = state.slots
    assert (slots.stage == int(esper.Stage.FOSSILIZED)).any()
    missed = (slots.stage == int(esper.Stage.FOSSILIZED)) & (slots.contribution > 2 * slots.contribution_error)
    assert missed.any(), (slots.contribution, slots.contribution_error)


def test_auto_finds_the_places_behind_layers_with_their_activations():
    cuts = [choose("", trace("", drawn(make).eval(), EXAMPLE), "auto") for make in (Residuals, SmallViT)]
    assert [cut.shape for cut in cuts[0]] == [(2, 8, 8), (2, 8, 8), (4, 4, 4), (4,)]
    found = [cut.name for cut in cuts[1]]
    assert {"add", "blocks.0", "norm"} < set(found) and not {"flatten", "patches"} & set(found)
    assert found[-1].startswith("select")  # the class token


class Tied(nn.Module):
    """A language model whose head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.mlp = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.token.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = 0.1 * self.token(x)
        h = self.drop(h + torch.tanh(self.mlp(h)))
        return self.head(h)


def test_tied_weights_stay_tied_and_dropout_draws_from_keys():
    module = drawn(Tied)
    host = esper.host(module, torch.randint(0, 12, (3, 6), generator=torch.Generator().manual_seed(0)))
    assert host.takes_tokens and [tie.param.name for tie in host.blocks[-1].ties] == ["token.weight"]
    assert host.num_params == sum(parameter.numel() for parameter in module.parameters())
    check_host(host)
    block = next(block for block in host.blocks if block.draws)
    keys = rng.fold_in(rng.key(1), torch.arange(2))
    params = block.reads.views(block.layout.init(keys, F64)) if not block.ties else {}
    x = torch.ones(2, 4, *host.sites[0].shape, dtype=F64)
    one, two = (block.train(params, {}, x, k)[0] for k in (keys, keys.flip(0)))
    torch.testing.assert_close(one, two.flip(0), rtol=0, atol=0)
    assert not torch.equal(one[0], one[1])
    assert 0.3 < float((one == 0).double().mean()) < 0.7


def test_frozen_parts_keep_their_bits_and_their_statistics():
    module = drawn(Residuals)
    host = esper.host(module, EXAMPLE, "1", frozen=("0", "1"))
    trained = {param.name for block in host.blocks for param in block.params}
    tracked = {param.name for block in host.blocks for param in block.buffers}
    assert trained == {n for n, _ in module.named_parameters() if not n.startswith(("0.", "1."))}
    assert not [name for name in tracked if name.startswith(("0.", "1."))]
    engine = engine_of(host, steps_per_epoch=2)
    state, _ = engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))
    network = engine.network_of(state, 0)
    assert {n for n, p in network.named_parameters() if not p.requires_grad} >= {"0.0.weight", "1.norm1.weight"}
    own = dict(module.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, own[name]) == name.startswith(("0.", "1.")), name


def test_shuffled_starts_hold_the_same_numbers_in_another_order():
    host = esper.host(drawn(Perceptron), EXAMPLE, start="shuffled")
    keys = rng.fold_in(rng.key(1), torch.arange(3))
    params, _ = arena.init_host(host, keys, F64)
    given, _ = arena.init_host(made("perceptron")[1], keys, F64)
    assert not torch.equal(params[0], params[1]) and torch.equal(given[0], given[1])
    block = host.blocks[0].layout
    for param in block.params:
        own, start = (rows[:, block.columns(param.name)].sort(1).values for rows in (params, given))
        torch.testing.assert_close(own, start, rtol=0, atol=0)


class Noisy(Perceptron):
    def forward(self, x):
        return self.head(self.layers(x) + torch.rand_like(self.layers(x)))


class Counting(Perceptron):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1)
        return super().forward(x) * self.seen


class Branching(Perceptron):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class Averaging(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 10))


REFUSED = {
    "random": (Noisy, {}, "rand_like in 'forward' draws random numbers"),
    "counter": (Counting, {}, "writes into 'seen'"),
    "branch": (Branching, {}, "torch.export cannot follow it"),
    "momentum": (Averaging, {}, "'2' averages over all batches"),
    "no site": (Perceptron, {"sites": "layers.7"}, "no module or operation 'layers.7' .* did you mean 'layers."),
    "inside": (Residuals, {"sites": "1.conv1"}, "features pass by '1.conv1'"),
    "frozen": (Perceptron, {"frozen": "layer"}, "frozen = 'layer': no such submodule; did you mean 'layers'"),
    "start": (Perceptron, {"start": "new"}, "start = 'new': expected 'given' or 'shuffled'"),
    "all frozen": (Perceptron, {"frozen": ("layers", "head")}, "no parameter that learns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_host_is_refused_in_one_line(name):
    make, settings, expected = REFUSED[name]
    with pytest.raises(ConfigError, match=expected) as raised:
        esper.host(drawn(make), EXAMPLE, **settings)
    assert "\n" not in str(raised.value)


def test_in_place_activations_on_what_is_used_again_are_computed_or_refused():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 5), nn.Linear(5, 10)

        def forward(self, x):
            h = self.a(x.flatten(1))
            F.relu(h, inplace=True)
            return self.b(h)

    module = drawn(Aliased)
    host = esper.host(module, EXAMPLE)
    state = engine_of(host).init(0)
    torch.testing.assert_close(engine_of(host).network_of(state, 0).eval()(EXAMPLE), module.eval()(EXAMPLE))


def test_backends_say_whether_they_take_it():
    host = made("skip")[1]
    data = synthetic((1, 8, 8), num_train=32, num_val=20, num_test=20)
    task = esper.Task("own", host, CONV_BLUEPRINTS, data, {"slots": (0,), "steps_per_epoch": 1, "batch_size": 4})
    with pytest.raises(ConfigError, match="backend 'inductor': host Skip, a torch"):
        esper.make(task, 2, backend="inductor")
    assert esper.make(task, 2).describe()[0].startswith(("native", "eager"))
