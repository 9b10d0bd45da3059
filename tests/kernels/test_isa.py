"""Every vector width against the plain form in float64; the choice of an instruction set by ``ESPER_ISA``."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import esper
from esper.bench.scenes import Seeds, seeded
from esper.engine import Engine
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.inference import lane_logits
from esper.kasmina.lanes import fork_lanes
from esper.kasmina.plan import take_census
from esper.kasmina.programs import with_programs
from esper.kernels import chain, direct, native, optimizer, pooling, program
from esper.leyline.config import ConfigError, Precision
from esper.leyline.stages import ACTIVE
from esper.leyline.state import State
from esper.tolaria import data
from esper.utils import rng

pytestmark = pytest.mark.skipif(program.library() is None, reason="no C++ compiler")

CACHES = (
    *(native.load, program.library, program.pack, chain.library),
    *(optimizer.library, direct.library, pooling._library),
)
BATCHES = (1, 3, 5, 13, 21, 64)
ENVS = 3
SEEDS = Seeds(tuple(range(len(CONV_BLUEPRINTS))), ACTIVE, tuple(esper.Config(num_envs=1, slots=()).blends))


class Build(NamedTuple):
    """How libraries are built: the instruction set, more flags, and the width that results."""

    isa: str
    flags: tuple[str, ...]
    pack: int


BUILDS = {
    "sse": Build("sse", (), 4),
    "neon": Build("neon", (), 4),
    "avx2": Build("avx2", (), 8),
    "avx512": Build("avx512", (), 16),
    "avx512's row": Build("", ("-DESPER_LANES=16", "-DESPER_REGISTERS=32", "-O1"), 16),
}
"""The last on any machine, slowly: vectors that are wider than its registers."""


def unload() -> None:
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture(scope="module", params=BUILDS.values(), ids=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """Everything that runs meanwhile runs in libraries of this build."""
    compiler, wanted = native.find_compiler(), request.param
    assert compiler is not None
    if wanted.isa and not native.ISAS[wanted.isa].macros <= native._macros(compiler):
        pytest.skip(f"this machine has no {wanted.isa}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_ISA", wanted.isa)
        patch.setattr(native, "FLAGS", (*native.FLAGS, *wanted.flags))
        unload()
        yield wanted
    unload()


def test_every_library_has_the_width_of_its_build(build: Build) -> None:
    built = chain.library()
    assert built is not None
    assert program.pack() == built.esper_pack() == build.pack


def task(batch: int) -> esper.Task:
    """Channels and positions that leave a rest after every size of tile."""
    dataset = data.synthetic((3, 6, 7), num_train=64, num_val=batch)
    host = cnn_host(dataset.input_shape, dataset.num_classes, 2, 7, 1)
    settings = {"slots": (0, 1), "batch_size": batch, "steps_per_epoch": 1, "eval_batch_size": batch}
    return esper.Task("t", host, CONV_BLUEPRINTS, dataset, settings)


def outcome(engine: Engine, state: State) -> dict[str, Tensor]:
    """What one step gives, and the logits of all lanes before it."""
    lanes = fork_lanes(engine.network, take_census(state.slots), False, torch.device("cpu"))
    inputs = engine.data.val_inputs.expand(ENVS, *engine.data.val_inputs.shape)
    logits = lane_logits(engine.network, state, lanes, engine.hypers.alpha_target.expand(ENVS))(inputs)
    after, _ = engine.step(state, torch.zeros(ENVS, dtype=torch.int64))
    losses = torch.stack((after.signals.train_loss, after.signals.val_loss), dim=1)
    moments = {"host": after.host.moments, "seeds": after.seeds.moments}
    return {"logits": logits, "losses": losses, "buffers": after.buffers} | moments


@functools.cache
def plain(batch: int) -> tuple[State, dict[str, Tensor]]:
    """A state, and its outcome in the plain form in float64."""
    state = seeded(esper.make(task(batch), ENVS, compile=False), 0.8, SEEDS, 3)
    exact = esper.make(task(batch), ENVS, compile=False, precision=Precision.FLOAT64)
    return state, outcome(exact, state.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf))


def largest_gap(found: Tensor, wanted: Tensor) -> float:
    """Of all rows, the largest difference in units of the row's largest number."""
    found, wanted = found.double().flatten(1), wanted.flatten(1)
    return float(((found - wanted).abs().amax(1) / wanted.abs().amax(1).clamp(min=1e-3)).max())


@pytest.mark.parametrize("batch", BATCHES)
def test_every_width_equals_the_plain_form(build: Build, batch: int) -> None:
    """And so every other width, up to rounding."""
    state, wanted = plain(batch)
    engine = esper.make(task(batch), ENVS, compile=False)
    engine = Engine(with_programs(engine.network), engine.hypers, engine.data)
    assert engine.network.units.whole is not None
    found = outcome(engine, state)
    assert {name: part.shape for name, part in found.items()} == {name: part.shape for name, part in wanted.items()}
    for name, part in found.items():
        assert largest_gap(part, wanted[name]) < 1e-4, name


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_tile_of_a_convolution(build: Build, kernel: int, batch: int) -> None:
    shape, out = (5, 3, 7), 15
    size = out * shape[0] * kernel**2
    conv = program.Instruction(program.Op.CONV, 1, 0, weight=0, bias=size, kernel=kernel)
    code = program.Code((shape, (out, *shape[1:])), (conv,), 1, size + out)
    x, params, grad = (
        rng.normal(rng.key(seed), each)
        for seed, each in enumerate(((2, batch, *shape), (2, size + out), (2, batch, out, *shape[1:])))
    )
    leaves = [t.clone().requires_grad_() for t in (x, params)]
    y, _ = program.run(program.Rows((program.Program(code),), (2,)), *leaves)
    found = (y.detach(), *torch.autograd.grad(y, leaves, grad))
    exact = [t.double().requires_grad_() for t in (x, params)]
    weights, biases = exact[1][:, :size].reshape(2, out, shape[0], kernel, kernel), exact[1][:, size:]
    rows = [F.conv2d(*row, padding=kernel // 2) for row in zip(exact[0], weights, biases, strict=True)]
    y = torch.stack(rows)
    for mine, wanted in zip(found, (y.detach(), *torch.autograd.grad(y, exact, grad.double())), strict=True):
        assert largest_gap(mine, wanted) < 1e-5


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_direct_convolution(build: Build, kernel: int) -> None:
    x, weight = rng.normal(rng.key(0), (2, 21, 5, 6, 7)), rng.normal(rng.key(1), (2, 7, 5, kernel, kernel))
    grad = rng.normal(rng.key(2), (2, 21, 7, 6, 7))
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    y = direct.direct_conv2d(*leaves)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = torch.stack([F.conv2d(*row, padding=kernel // 2) for row in zip(*exact, strict=True)])
    assert largest_gap(y.detach(), wanted.detach()) < 1e-5
    for mine, truth in zip(
        torch.autograd.grad(y, leaves, grad), torch.autograd.grad(wanted, exact, grad.double()), strict=True
    ):
        assert largest_gap(mine, truth) < 1e-5


@pytest.fixture
def fresh() -> Iterator[None]:
    unload()
    yield
    unload()


@pytest.mark.usefixtures("fresh")
def test_a_width_that_changes_between_two_libraries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = program.pack()
    monkeypatch.setattr(chain, "pack", lambda: 5)
    with pytest.raises(RuntimeError, match=f"chain has packs of {own}, programs of 5: ESPER_ISA has changed"):
        chain.library()


MACHINES = {
    "sse": native.ISAS["sse"].macros,
    "avx2 or sse": native.ISAS["sse"].macros | native.ISAS["avx2"].macros,
    "neon": native.ISAS["neon"].macros,
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("allowed", MACHINES)
@pytest.mark.parametrize("name", ["avx512", "AVX2", "native"])
def test_what_is_no_instruction_set_of_this_machine(allowed: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_macros", lambda compiler: MACHINES[allowed])
    monkeypatch.setenv("ESPER_ISA", name)
    lacks = " (this machine lacks it)" if name == "avx512" else ""
    line = f"ESPER_ISA = '{name}'{lacks}: expected {allowed} here"
    with pytest.raises(ValueError) as error:
        native.load("program")
    assert str(error.value) == line
    for compile in (True, False):
        with pytest.raises(ConfigError) as error:
            esper.make(task(4), 1, compile=compile)
        assert str(error.value) == line
    monkeypatch.setenv("ESPER_NATIVE", "0")
    assert native.load("program") is None, "what is not used cannot be wrong"


def test_an_instruction_set_is_part_of_a_librarys_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler, source = native.find_compiler(), tmp_path / "answer.cpp"
    assert compiler is not None
    source.write_text('extern "C" int answer() { return 41; }\n')
    own = [name for name, isa in native.ISAS.items() if isa.macros <= native._macros(compiler)]
    names = set()
    for isa in ("", *own):
        monkeypatch.setenv("ESPER_ISA", isa)
        names.add(native._built(source, compiler))
    assert len(names) == 1 + len(own) > 1
