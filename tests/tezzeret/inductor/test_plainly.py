"""Modules written for one network and lifted by vmap, or deciding by value: checks pass, and so do all backends."""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import esper
from esper.engine import Engine
from esper.kasmina.blueprint import preserving
from esper.kasmina.checks import check_blueprint, check_host
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host, plain_block
from esper.kasmina.layout import Param, Params
from esper.kasmina.site import conv_site
from esper.runtime.tasks import Task
from esper.tamiyo.scripted import grow
from esper.tezzeret.inductor.graph import build_graph
from esper.tezzeret.inductor.unit_calls import build_units


def lifted(params: Params, x: Tensor) -> Tensor:
    """A convolution of one network, vmapped: its rule needs the number of networks as a plain number."""
    return torch.func.vmap(lambda p, x: x + F.conv2d(x, p["w"], padding=1))(params, x)


def lifted_norm(params: Params, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda p, x: x + p["w"].mean() * F.group_norm(x, 1))(params, x)


def deciding(params: Params, x: Tensor) -> Tensor:
    """Python asks for a value: no graph can hold both branches."""
    scale = 1.0 if bool((x.detach() < torch.inf).all()) else 0.0
    return x + scale * params["w"].mean((1, 2, 3, 4))[:, None, None, None, None].tanh() * x


FORMS = {"conv2d": lifted, "group_norm": lifted_norm, "deciding": deciding}


def kind_of(apply):
    def params(site):
        return (Param("w", (site.channels, site.channels, 3, 3), "normal", 0.001),)

    return preserving("lifted", frozenset({"conv"}), params, apply, lambda site: 0, 0.1)


def task_of(small_task: Task, apply) -> Task:
    host = cnn_host((1, 8, 8), 4, num_blocks=1, base_channels=2)
    settings = small_task.settings | {"slots": (0,), "steps_per_epoch": 1}
    return small_task._replace(host=host, blueprints=(kind_of(apply),), settings=settings)


def played(engine: Engine):
    """Three epochs with a seed in every environment, and then in one of them alone."""
    policy, state = grow(engine.codec, engine.structure.blueprints[0].name), engine.init(0)
    for _ in range(2):
        state, event = engine.step(state, policy(engine.mask(state)))
    return event


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("form", "build"), [("conv2d", build_units), ("group_norm", build_units), ("deciding", build_graph)]
)
def test_what_passes_the_check_runs_compiled_or_as_it_is_written(small_task, form, build, caplog):
    check_blueprint(kind_of(FORMS[form]), conv_site(2, 4, 4))
    eager = esper.make(task_of(small_task, FORMS[form]), 3, backend="eager")
    backend = build(eager.structure, "eager")  # dynamo's own part of torch.compile, which is what refuses
    with caplog.at_level(logging.INFO):
        found = played(Engine(eager.structure, backend, eager.hypers, eager.data))
    torch.testing.assert_close(found.evaluation.loss, played(eager).evaluation.loss, rtol=1e-4, atol=1e-5)
    said = [row for row in caplog.records if "as it is written" in row.getMessage()]
    named = [line for line in backend.describe() if line.startswith("as it is written")]
    assert len({row.getMessage() for row in said}) >= len(named)
    assert all(row.levelno == logging.INFO and "\n" not in row.getMessage() for row in said)
    assert not [row for row in caplog.records if row.levelno >= logging.WARNING]
    if form != "group_norm":
        assert named


def test_a_host_lifted_by_vmap_passes_its_check_and_trains(small_task, caplog):
    conv = Param("w", (4, 1, 3, 3), "uniform", 1 / 3)
    head = Param("v", (4, 4), "uniform", 0.5)

    def block(params: Params, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda p, x: F.max_pool2d(torch.relu(F.conv2d(x, p["w"], padding=1)), 2))(params, x)

    def last(params: Params, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda p, x: x.mean((-2, -1)) @ p["v"].T)(params, x)

    blocks = plain_block((conv,), block, conv_site(4, 4, 4), 2304), plain_block((head,), last, None, 16)
    host = Host("lifted", (1, 8, 8), 4, blocks)
    check_host(host)
    task = small_task._replace(host=host, settings=small_task.settings | {"slots": (0,)})
    with caplog.at_level(logging.INFO):
        auto = esper.make(task, 3)  # native writes it down, or refuses it in a line and another runs it
    refused = [row for row in caplog.records if "backend 'native'" in row.getMessage()]
    assert (auto.backend.name == "native") == (not refused)
    eager = esper.make(task, 3, backend="eager")
    compiled = Engine(eager.structure, build_units(eager.structure, "eager"), eager.hypers, eager.data)
    idle = torch.zeros(3, dtype=torch.int64)
    losses = [engine.step(engine.init(0), idle)[1].evaluation.loss for engine in (auto, eager, compiled)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
def test_a_fault_of_the_function_itself_is_raised(small_task):
    def broken(params: Params, x: Tensor) -> Tensor:
        return x @ params["w"]

    engine = esper.make(task_of(small_task, broken), 3, backend="eager")
    compiled = Engine(engine.structure, build_units(engine.structure, "eager"), engine.hypers, engine.data)
    for each in (engine, compiled):
        with pytest.raises(RuntimeError):
            played(each)
