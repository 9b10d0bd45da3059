"""Modules written down as programs, against their Python functions in float64; and what cannot be written down."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from esper.kasmina.forward import train_forward
from esper.kasmina.network import build_network
from esper.kasmina.plan import make_plan
from esper.kasmina.programs import with_programs
from esper.kasmina.tracing import NotTraceable, trace
from torch import Tensor

import esper
from esper.kasmina import arena, gate, programs, tracing
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import HostBlock, plain_block
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, group_norm, linear, max_pool2, track
from esper.kasmina.layout import Layout, Param, constant, fan_in_uniform
from esper.kasmina.site import Site, conv_site
from esper.kernels.program import Instruction, Op, library
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.utils import rng

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

NETWORKS = 3
SITES = (conv_site(1, 4, 4), conv_site(6, 5, 3), conv_site(16, 1, 1), conv_site(24, 2, 2))
EVERY = pytest.mark.parametrize("blueprint", CONV_BLUEPRINTS, ids=lambda blueprint: blueprint.name)


def normal(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.key(number), shape)


def assert_close(found: Tensor, wanted: Tensor, place: str) -> None:
    """Up to float32's rounding, measured in the size of what the tensor holds."""
    assert wanted.dtype == torch.float64
    size = max(1.0, wanted.detach().abs().max().item())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 * size, msg=lambda m: f"{place}: {m}")


Unit = Callable[..., Any]


def seed_unit(apply: Callable[..., Any], layout: Layout, shape: tuple[int, ...]) -> Unit:
    written = programs.write(apply, shape, layout)
    assert written is not None
    return programs.module_unit(written)


def stage_units(stage: HostBlock, shape: tuple[int, ...]) -> tuple[Unit, Unit, tuple[int, ...]]:
    """Training and inference form, and the shape of what the stage gives."""
    written = programs.write_stage(stage, shape)
    assert written is not None
    return programs.train_unit(written.train), programs.infer_unit(written.infer), written.train.trace.shape


def assert_gradients(found: Tensor, wanted: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    grad = normal(99, *wanted.shape)
    own = torch.autograd.grad(found, [one for one, _ in pairs], grad)
    exact = torch.autograd.grad(wanted, [two for _, two in pairs], grad.double())
    for number, (one, two) in enumerate(zip(own, exact, strict=True)):
        assert_close(one, two, f"gradient {number}")


def twice(value: Tensor) -> tuple[Tensor, Tensor]:
    """The same numbers as a leaf in float32 and one in float64."""
    return value.clone().requires_grad_(), value.double().requires_grad_()


@EVERY
@pytest.mark.parametrize("site", SITES, ids=lambda site: "x".join(map(str, site.shape)))
def test_blueprints(blueprint: Blueprint, site: Site) -> None:
    layout = blueprint.layout(site)
    unit = seed_unit(blueprint.apply, layout, site.shape)
    flat = layout.init(rng.split(rng.key(1), NETWORKS), torch.float32)
    params, x = twice(flat + 0.3 * normal(2, *flat.shape)), twice(normal(3, NETWORKS, 18, *site.shape))
    own, exact = unit(params[0], x[0]), blueprint.apply(layout.views(params[1]), x[1])
    assert_close(own, exact, "output")
    assert_gradients(own, exact, [params, x])


@pytest.mark.parametrize("site", SITES, ids=lambda site: "x".join(map(str, site.shape)))
def test_the_gate(site: Site) -> None:
    layout = gate.layout(site)
    unit = seed_unit(gate.opening(site), layout, site.shape)
    flat = layout.init(rng.split(rng.key(1), NETWORKS), torch.float32)
    params, x = twice(flat + 0.3 * normal(2, *flat.shape)), twice(normal(3, NETWORKS, 18, *site.shape))
    own, exact = unit(params[0], x[0]), gate.opening(site)(layout.views(params[1]), x[1])
    assert own.shape == exact.shape == (NETWORKS, 18)
    assert_close(own, exact, "output")
    assert_gradients(own, exact, [params, x])


def stages() -> list[tuple[str, HostBlock, tuple[int, ...]]]:
    """Every stage of hosts with all sides of kernels, some blocks with and some without pooling; odd sizes of maps."""
    found = []
    for kernel in (1, 3, 5):
        host = cnn_host((2, 7, 6), 5, num_blocks=2, base_channels=3, pool_blocks=1, kernel_size=kernel)
        shape: tuple[int, ...] = host.input_shape
        for index, stage in enumerate(host.blocks):
            found.append((f"kernel {kernel}, stage {index}", stage, shape))
            shape = stage.site.shape if stage.site else shape
    return found


@pytest.mark.parametrize(
    ("name", "stage", "shape"), stages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_stages_of_the_host(name: str, stage: HostBlock, shape: tuple[int, ...]) -> None:
    train, infer, out = stage_units(stage, shape)
    flat = stage.layout.init(rng.split(rng.key(1), NETWORKS), torch.float32)
    params, x = twice(flat + 0.2 * normal(2, *flat.shape)), twice(normal(3, NETWORKS, 21, *shape))
    buffers = normal(4, NETWORKS, stage.buffer_layout.size).abs() + 0.3
    named = stage.buffer_layout.views(buffers.double())
    own, running = train(params[0], buffers, x[0])
    exact, wanted = stage.train(stage.layout.views(params[1]), named, x[1])
    assert out == exact.shape[2:] == (stage.site.shape if stage.site else exact.shape[2:])
    assert_close(own, exact, "output")
    assert_gradients(own, exact, [params, x])
    assert not running.requires_grad
    for key, value in stage.buffer_layout.views(running).items():
        assert_close(value, wanted[key], key)
    with torch.no_grad():
        own = infer(params[0], buffers, x[0])
        assert_close(own, stage.infer(stage.layout.views(params[1]), named, x[1]), "inference")


def conv(name: str, out: int, into: int, kernel: int = 3) -> Param:
    return fan_in_uniform(name, (out, into, kernel, kernel), into * kernel**2)


C, H, W = 4, 3, 5
SHAPE = (C, H, W)
PARAMS = Layout(
    (
        conv("conv", C, C),
        conv("flat", C, C, 1),
        constant("weight", (C,), 1.0),
        constant("bias", (C,), 0.0),
        constant("openness", (1,), 0.5),
    )
)
BUFFERS = Layout((constant("mean", (C,), 0.0), constant("variance", (C,), 1.0), conv("fixed", C, C)))


def norm(p: Any, x: Any) -> Any:
    return group_norm(x, p["weight"], p["bias"], 2)


def lifted(p: Any, x: Any) -> Any:
    """Written for one network, as the blueprint's documentation offers."""
    single = lambda p, x: x + torch.nn.functional.conv2d(x, p["conv"], padding=1)  # noqa: E731
    return torch.func.vmap(single)(p, x)


def branching(p: Any, x: Any) -> Any:
    return x * 2 if (x > 0).any() else x * 3


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "vmap": lifted,
    "tanh": lambda p, x: torch.tanh(x),
    "an activation": lambda p, x: torch.nn.functional.gelu(x),
    "an if on values": branching,
    "an if on features": lambda p, x: x * 2 if x else x * 3,
    "a comparison": lambda p, x: x * 2 if x == x * 1 else x * 3,
    "not": lambda p, x: x * 2 if not x else x * 3,
    "an index": lambda p, x: x[..., 0],
    "a range": lambda p, x: x[:, :, 1:] + x[:, :, :-1],
    "a mean of one axis": lambda p, x: x * x.mean((-1,))[..., None, None],
    "a mean of one number": lambda p, x: x.mean(-1),
    "a mean of all": lambda p, x: x * x.mean(),
    "a mean with its axes": lambda p, x: x * x.mean((-2, -1), keepdim=True),
    "a sum over positions": lambda p, x: x * x.sum((-2, -1))[..., None, None],
    "division": lambda p, x: x / 2,
    "difference": lambda p, x: x - 2 * x,
    "negation": lambda p, x: -x,
    "power": lambda p, x: x**2,
    "matrices": lambda p, x: x @ x.mT,
    "a product of maps": lambda p, x: x * x,
    "a sum with a number": lambda p, x: x + 1,
    "a number with a sum": lambda p, x: 1 + x,
    "a sum with a parameter": lambda p, x: x + p["conv"],
    "a parameter with a sum": lambda p, x: p["conv"] + x,
    "a product with a parameter": lambda p, x: p["openness"] * x,
    "a method of a parameter": lambda p, x: conv2d(x, p["conv"].flip(-1)),
    "a function of a parameter": lambda p, x: conv2d(x, torch.tanh(p["conv"])),
    "a part of a parameter": lambda p, x: conv2d(x, p["conv"][:, :1]),
    "the shape of a batch": lambda p, x: x.reshape(x.shape[0], -1),
    "a vector without axes times a vector": lambda p, x: x * x.mean((-2, -1)),
    "vectors times maps": lambda p, x: x.mean((-2, -1)) * x.mean((-2, -1))[..., None, None],
    "a sum of a vector and maps": lambda p, x: x + x.mean((-2, -1))[..., None, None],
    "a vector as the result": lambda p, x: x.mean((-2, -1))[..., None, None],
    "nothing": lambda p, x: x,
    "None": lambda p, x: None,
    "a new tensor": lambda p, x: torch.ones(3, 2, *SHAPE),
    "concatenation": lambda p, x: torch.cat((x, x), 2),
    "another function": lambda p, x: torch.nn.functional.max_pool2d(x, 2),
    "a dtype": lambda p, x: x.to(torch.float64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_down(name: str) -> None:
    with pytest.raises(NotTraceable):
        trace(REFUSED[name], SHAPE, PARAMS)
    assert programs.write(REFUSED[name], SHAPE, PARAMS) is None


def flat_kernel(p: Any, x: Any) -> Any:
    return conv2d(x, p["conv"])


@pytest.mark.parametrize("sides", [(1, 3), (3, 1), (2, 2)])
def test_kernels_that_are_not_odd_squares(sides: tuple[int, int]) -> None:
    layout = Layout((fan_in_uniform("conv", (C, C, *sides), C),))
    assert programs.write(flat_kernel, SHAPE, layout) is None


STAGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "a weight among the buffers": lambda p, b, x: conv2d(x, b["fixed"]),
    "statistics among the parameters": lambda p, b, x: apply_batch_norm(
        x, p["weight"], p["bias"], p["weight"], p["bias"]
    ),
    "buffers that stay": lambda p, b, x: (norm(p, x), b),
    "buffers exchanged": lambda p, b, x: (
        norm(p, x),
        {"mean": track(b["variance"], x.mean((-2, -1))), "variance": b["mean"], "fixed": b["fixed"]},
    ),
    "a variance before its mean": lambda p, b, x: apply_batch_norm(x, p["weight"], p["bias"], b["variance"], b["mean"]),
    "a buffer as features": lambda p, b, x: x + b["mean"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_that_cannot_be_written_down(name: str) -> None:
    with pytest.raises(NotTraceable):
        trace(STAGES[name], SHAPE, PARAMS, BUFFERS)


def test_statistics_of_two_norms_reach_their_buffers() -> None:
    """In another order than they are computed in."""
    buffers = Layout(tuple(constant(name, (C,), float(n)) for n, name in enumerate(("v2", "m1", "m2", "v1"))))

    def stage(p: Any, b: Any, x: Any) -> Any:
        y, m1, v1 = batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])
        z, m2, v2 = batch_norm(conv2d(torch.relu(y), p["flat"]), p["weight"], p["bias"])
        new = {"m1": m1, "v1": v1, "m2": m2, "v2": v2}
        return x + z, {name: track(b[name], value) for name, value in new.items()}

    host = HostBlock(PARAMS.params, buffers.params, stage, lambda p, b, x: norm(p, x), conv_site(*SHAPE), 0)
    train, _, _ = stage_units(host, SHAPE)
    params, running = normal(1, NETWORKS, PARAMS.size), normal(2, NETWORKS, buffers.size)
    x = normal(3, NETWORKS, 32, *SHAPE)
    own, new = train(params, running, x)
    exact, wanted = stage(PARAMS.views(params.double()), buffers.views(running.double()), x.double())
    assert_close(own, exact, "output")
    assert_close(new, torch.cat([wanted[p.name] for p in buffers.params], 1), "buffers")


NORMED = Instruction(Op.GROUP_NORM, 1, 0, weight=0, bias=4)
RELU = Instruction(Op.RELU, 2, 1)


@pytest.mark.parametrize("op", tracing.NORMS)
def test_a_relu_becomes_part_of_the_norm_that_it_alone_reads(op: Op) -> None:
    code = [NORMED._replace(op=op), RELU, Instruction(Op.ADD, 3, 2, 0)]
    fused = tracing._fuse_relus(code, 3)
    assert fused == [NORMED._replace(op=op, to=2, rectify=True), code[2]]


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ([NORMED, RELU, Instruction(Op.ADD, 3, 2, 1)], 3),  # read twice
        ([NORMED, RELU, Instruction(Op.ADD, 3, 1, 1)], 3),  # read thrice, once by the relu
        ([NORMED, RELU], 1),  # the result itself
        ([Instruction(Op.CONV, 1, 0, weight=0), RELU], 2),  # no norm
    ],
)
def test_a_relu_stays_apart_where_others_read_the_norm(code: list[Instruction], output: int) -> None:
    assert tracing._fuse_relus(code, output) == code


def test_relus_of_what_is_read_twice_by_numbers() -> None:
    def apply(p: Any, x: Any) -> Any:
        y = norm(p, conv2d(x, p["conv"]))
        return torch.relu(y) + y + torch.relu(norm(p, x))

    def both(p: Any, x: Any) -> Any:
        y = norm(p, x)
        unread = torch.relu(y)
        del unread
        return y

    for function in (apply, both):
        unit = seed_unit(function, PARAMS, SHAPE)
        params, x = twice(normal(1, NETWORKS, PARAMS.size)), twice(normal(2, NETWORKS, 18, *SHAPE))
        own, exact = unit(params[0], x[0]), function(PARAMS.views(params[1]), x[1])
        assert_close(own, exact, "output")
        assert_gradients(own, exact, [params, x])


def third_party(name: str, apply: Callable[[Any, Any], Any], channels: bool = True) -> Blueprint:
    def params(site: Site) -> tuple[Param, ...]:
        c = site.channels
        return conv("conv", c, c), constant("weight", (c,), 0.5), constant("bias", (c,), 0.1)

    return Blueprint(name, frozenset({"conv"}), params if channels else lambda site: (), apply, lambda site: 1, 9.0)


SOFT = third_party("soft", lambda p, x: x + torch.tanh(conv2d(x, p["conv"])))
LIFTED = third_party("lifted", lifted)
BATCHED = third_party(
    "batched", lambda p, x: x + torch.relu(batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])[0])
)
BARE = third_party("bare", lambda p, x: x + torch.sigmoid(x), channels=False)

BOXES = {
    "all written down": CONV_BLUEPRINTS,
    "one that is not": (*CONV_BLUEPRINTS[:3], SOFT),
    "one that raises": (*CONV_BLUEPRINTS[:3], LIFTED),
    "one that joins samples": (*CONV_BLUEPRINTS[3:], BATCHED),
    "without parameters": (BARE, *CONV_BLUEPRINTS[:2]),
}
E = 12


def mixed_state(engine: esper.Engine, seed: int) -> esper.State:
    """Every stage, blueprint and blend; parameters as sowing leaves them, plus noise."""
    state, keys = engine.init(seed), rng.split(rng.key(seed), 6)
    dtype, shape = engine.config.precision.dtype, (engine.config.num_envs, engine.config.num_slots)
    stages = torch.tensor([int(stage) for stage in (Stage.DORMANT, Stage.TRAINING, Stage.TRAINING, *MERGED)])
    stage = stages[(rng.uniform(keys[0], shape) * len(stages)).long()]
    holds = torch.isin(stage, torch.tensor([int(s) for s in ACTIVE]))
    kinds = (rng.uniform(keys[1], shape) * len(engine.network.blueprints)).long()
    blends = torch.tensor([int(b) for b in engine.config.blends])[(rng.uniform(keys[2], shape) * 3).long()]
    merged = torch.isin(stage, torch.tensor([int(s) for s in MERGED]))
    slots = state.slots.replace(
        stage=stage,
        blueprint=torch.where(holds, kinds, -1),
        blend=torch.where(holds, blends, -1),
        alpha=torch.where(merged, rng.uniform(keys[3], shape, dtype=dtype), 0.0),
    )
    params = (0.3 * rng.normal(keys[4], tuple(state.seeds.params.shape))).to(dtype)
    buffers = state.buffers + (0.2 * rng.uniform(keys[5], tuple(state.buffers.shape))).to(dtype)
    return state.replace(slots=slots, seeds=state.seeds.replace(params=params), buffers=buffers)


def engine_of(task: esper.Task, blueprints: tuple[Blueprint, ...], envs: int, precision: Precision) -> esper.Engine:
    task = esper.Task(task.name, task.host, blueprints, task.data, task.settings)
    return esper.make(task, envs, compile=False, precision=precision)


def logits_and_gradients(engine: esper.Engine, state: esper.State) -> tuple[Tensor, ...]:
    """One forward pass in training form, and the gradients of every bank."""
    network, dtype = engine.network, engine.config.precision.dtype
    plan = make_plan(network, state.slots)
    host, seeds = (bank.params.clone().requires_grad_() for bank in (state.host, state.seeds))
    params = [arena.slot_params(network, seeds, slot, rows) for slot, rows in enumerate(plan.slots)]
    alphas = [state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
    banks = (arena.split_stages(network, host), arena.split_buffers(network, state.buffers))
    x = normal(50, state.batch_size[0], 20, *network.host.input_shape).to(dtype)
    logits, buffers = train_forward(network, plan.slots, banks, params, alphas, x)
    grad = normal(51, *logits.shape).to(dtype)
    return logits.detach(), torch.cat(buffers, 1), *torch.autograd.grad(logits, (host, seeds), grad)


@pytest.mark.parametrize("box", BOXES)
def test_a_network_of_programs_equals_the_plain_one(small_task: esper.Task, box: str) -> None:
    blueprints = BOXES[box]
    exact, plain = (
        engine_of(small_task, blueprints, E, precision) for precision in (Precision.FLOAT64, Precision.FLOAT32)
    )
    fast = esper.Engine(with_programs(plain.network), plain.hypers, plain.data)
    if box != "one that joins samples":
        complete = box in ("all written down", "without parameters")
        assert all((unit is not None) is complete for unit in (*fast.network.units.slots, fast.network.units.whole))
    assert all(old is not new for old, new in zip(plain.network.units.train, fast.network.units.train, strict=True))
    found = logits_and_gradients(fast, mixed_state(fast, 3))
    wanted = logits_and_gradients(exact, mixed_state(exact, 3))
    for name, one, two in zip(("logits", "buffers", "host", "seeds"), found, wanted, strict=True):
        for env in range(E):
            assert_close(one[env], two[env], f"{name} of {env}")


@pytest.mark.parametrize("envs", [1, E])
@pytest.mark.parametrize("box", BOXES)
def test_a_step_of_programs_equals_a_plain_one(small_task: esper.Task, box: str, envs: int) -> None:
    blueprints = BOXES[box]
    exact, plain = (
        engine_of(small_task, blueprints, envs, precision) for precision in (Precision.FLOAT64, Precision.FLOAT32)
    )
    fast = esper.Engine(with_programs(plain.network), plain.hypers, plain.data)
    results = [engine.step(mixed_state(engine, 4), torch.zeros(envs, dtype=torch.int64)) for engine in (fast, exact)]
    (own, own_event), (state, event) = results
    assert_close(own_event.epoch.loss, event.epoch.loss, "loss")
    for name in ("params", "moments"):
        for bank in ("host", "seeds"):
            assert_close(own.get(bank).get(name), state.get(bank).get(name), f"{bank} {name}")
    assert_close(own.buffers, state.buffers, "buffers")
    assert_close(own_event.evaluation.loss, event.evaluation.loss, "loss in evaluation")


def test_the_network_that_was_given_stays_plain(small_task: esper.Task) -> None:
    network = esper.make(small_task, 2, compile=False).network
    before = network.units
    with_programs(network)
    assert network.units is before and all(unit is None for unit in (*before.slots, before.whole))


def test_stages_behind_one_that_cannot_be_written_down(small_task: esper.Task) -> None:
    """Shapes are known again behind the next site."""
    host = small_task.host
    soft = plain_block((), lambda p, x: torch.tanh(x), host.blocks[0].site, 0)
    odd = host._replace(blocks=(host.blocks[0], soft, *host.blocks[1:]))
    network = build_network(esper.make(small_task, 2, compile=False).config, odd, CONV_BLUEPRINTS, torch.device("cpu"))
    units = with_programs(network).units
    assert [new is not old for new, old in zip(units.train, network.units.train, strict=True)] == [
        True, False, True, True, True,
    ]  # fmt: skip


def test_a_pool_and_a_linear_layer_of_a_users_own() -> None:
    """Shapes without maps: [n, B, F]."""
    layout = Layout((fan_in_uniform("weight", (5, C), C), constant("bias", (5,), 0.3)))

    def stage(p: Any, x: Any) -> Any:
        return linear(max_pool2(torch.relu(x)).mean((3, 4)), p["weight"], p["bias"])

    train, _, shape = stage_units(plain_block(layout.params, stage, None, 0), SHAPE)
    assert shape == (5,)
    params, x = twice(normal(1, NETWORKS, layout.size)), twice(normal(2, NETWORKS, 18, *SHAPE))
    own, buffers = train(params[0], torch.zeros(NETWORKS, 0), x[0])
    exact = stage(layout.views(params[1]), x[1])
    assert buffers.shape == (NETWORKS, 0)
    assert_close(own, exact, "output")
    assert_gradients(own, exact, [params, x])
