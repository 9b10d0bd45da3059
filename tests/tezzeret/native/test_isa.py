"""Every vector width against torch and the definition in float64; the choice of an instruction set by ``ESPER_ISA``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tezzeret_states as states
import torch
from native_builds import Build, unload
from native_networks import Writer, assert_agrees, deal, enclose

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.config import ConfigError
from esper.tezzeret import toolchain
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.native.library import library, pack
from esper.tezzeret.native.programs import Op
from esper.tolaria.synthetic import synthetic

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

BATCHES = (1, 3, 5, 13, 21, 64)
ENVS = 3


def test_the_library_has_the_width_of_its_build(build: Build) -> None:
    assert pack() == build.pack


def task(batch: int) -> esper.Task:
    """Channels and positions that leave a rest after every size of tile."""
    dataset = synthetic((3, 6, 7), num_train=64, num_val=batch)
    host = cnn_host(dataset.input_shape, dataset.num_classes, 2, 7, 1)
    settings = {"slots": (0, 1), "batch_size": batch, "steps_per_epoch": 1, "eval_batch_size": batch}
    return esper.Task("t", host, CONV_BLUEPRINTS, dataset, settings)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("batch", BATCHES)
def test_every_width_equals_the_definition(batch: int) -> None:
    """And so every other width, up to rounding: a step, a minibatch's gradients, and the outputs of all lanes."""
    pair = states.Pair(task(batch), ENVS)
    pair.assert_near(states.batch_of(pair.fast, batch), 3e-4)
    wanted = single_changes(take_table(pair.state.slots))
    state = states.double(pair.state)
    outputs, exact = states.evaluated(pair.fast, pair.state, wanted)[1], states.evaluated(pair.exact, state, wanted)[1]
    assert outputs.shape == exact.shape and outputs.shape[0] > ENVS
    assert states.largest_gap(outputs, exact) < 1e-4
    wait = torch.zeros(ENVS, dtype=torch.int64)
    (after, _), (true, _) = pair.fast.step(pair.state, wait), pair.exact.step(state, wait)
    for name in (("host", "moments"), ("seeds", "moments"), ("host", "params"), "buffers", ("signals", "val_loss")):
        assert states.largest_gap(after.get(name), true.get(name)) < 3e-4, name


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_tile_of_a_convolution(kernel: int, batch: int) -> None:
    writer = Writer((5, 3, 7))
    writer.add(Op.CONV, out=15, kernel=kernel, bias=True)
    assert_agrees(deal(enclose(writer.code()), 2, batch))


SHAPES = [
    ((3, 2, 12), 9),
    ((6, 4, 10), 5),
    ((2, 1, 16), 4),
    ((4, 17, 15), 3),
    ((1, 5, 12), 8),
    ((8, 3, 11), 2),
    ((3, 2, 8), 9),
]
"""Rows of whole tiles and of parts, one row and more than a strip; channels that leave a rest, and too few of them."""


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_convolutions_by_minimal_filtering(shape: tuple[int, int, int], out: int) -> None:
    """Behind another, so that gradients of the input are asked for; and where the direct form stays."""
    writer = Writer(shape)
    first = writer.add(Op.CONV, out=shape[0], kernel=1, bias=True)
    writer.add(Op.CONV, first, out=out, kernel=3, bias=True)
    assert_agrees(deal(enclose(writer.code()), 2, 5))


@pytest.fixture
def fresh() -> Iterator[None]:
    unload()
    yield
    unload()


MACHINES = {
    "sse": toolchain.ISAS["sse"].macros,
    "avx2 or sse": toolchain.ISAS["sse"].macros | toolchain.ISAS["avx2"].macros,
    "neon": toolchain.ISAS["neon"].macros,
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("allowed", MACHINES)
@pytest.mark.parametrize("name", ["avx512", "AVX2", "native"])
def test_what_is_no_instruction_set_of_this_machine(allowed: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "macros", lambda compiler: MACHINES[allowed])
    monkeypatch.setenv("ESPER_ISA", name)
    lacks = " (this machine lacks it)" if name == "avx512" else ""
    line = f"ESPER_ISA = '{name}'{lacks}: expected {allowed} here"
    with pytest.raises(ValueError) as error:
        toolchain.load()
    assert str(error.value) == line
    for backend in ("auto", "native"):
        with pytest.raises(ConfigError) as error:
            esper.make(task(4), 1, backend=backend)
        assert str(error.value) == line
    monkeypatch.setenv("ESPER_NATIVE", "0")
    assert toolchain.load() is None, "what is not used cannot be wrong"


def test_an_instruction_set_is_part_of_a_librarys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler, source = find_compiler(), tmp_path / "answer.cpp"
    assert compiler is not None
    source.write_text('extern "C" int answer() { return 41; }\n')
    own = [name for name, isa in toolchain.ISAS.items() if isa.macros <= toolchain.macros(compiler)]
    names = set()
    for isa in ("", *own):
        monkeypatch.setenv("ESPER_ISA", isa)
        names.add(toolchain.built(tmp_path, compiler)[0])
    assert len(names) == 1 + len(own) > 1
