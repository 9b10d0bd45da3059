"""Vectors and flattened maps on the native backend: hosts of linear layers, probes and perceptrons."""

from itertools import pairwise

import pytest
import torch
from tezzeret_states import Pair, batch_of
from torch import Tensor

import esper
from esper.kasmina.blueprint import preserving
from esper.kasmina.bypass_blueprints import linear_probe
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import Host, HostBlock, plain_block
from esper.kasmina.layers import linear
from esper.kasmina.layout import Params, constant, fan_in_uniform
from esper.kasmina.site import vector_site
from esper.kasmina.vector_bypasses import VECTOR_BYPASSES, mlp_bypass
from esper.leyline.config import Isolation
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

INPUT, CLASSES, ENVS, BATCH = (2, 6, 5), 5, 16, 13
PROBES = (*VECTOR_BYPASSES, linear_probe(pooled=True), mlp_bypass(8, 2))


def layer(into: int, out: int, hidden: bool) -> HostBlock:
    def apply(p: Params, x: Tensor) -> Tensor:
        y = linear(x.flatten(2), p["weight"], p["bias"])
        return torch.relu(y) if hidden else y

    params = fan_in_uniform("weight", (out, into), into), constant("bias", (out,), 0.1)
    return plain_block(params, apply, vector_site(out) if hidden else None, into * out)


LOW_RANK = preserving(
    "low_rank",
    frozenset({"vector"}),
    lambda site: (fan_in_uniform("down", (2, *site.shape), 4), fan_in_uniform("up", (*site.shape, 2), 2)),
    lambda p, x: x + linear(torch.tanh(linear(x, p["down"])), p["up"]),
    lambda site: 1,
    9.0,
)


def perceptron() -> esper.Task:
    sizes = [torch.Size(INPUT).numel(), 7, 6, CLASSES]
    blocks = [layer(*pair, hidden=pair[1] != CLASSES) for pair in pairwise(sizes)]
    dataset = synthetic(INPUT, num_classes=CLASSES, num_train=40, num_val=20)
    slots = (0, "input:logits", 1, "block0:logits")
    return esper.Task(
        "vectors", Host("mlp", INPUT, CLASSES, tuple(blocks)), (LOW_RANK, *PROBES), dataset, {"slots": slots}
    )


def around_maps() -> esper.Task:
    dataset = synthetic(INPUT, num_classes=CLASSES, num_train=40, num_val=20)
    host = cnn_host(INPUT, CLASSES, 2, 4, 1)
    slots = (0, "input:logits", "block0:logits", "block1:logits")
    return esper.Task("maps", host, (*CONV_BLUEPRINTS[:2], *PROBES), dataset, {"slots": slots})


@pytest.mark.parametrize("isolation", Isolation)
@pytest.mark.parametrize("made", [perceptron, around_maps])
def test_vectors_equal_the_definition(made: object, isolation: Isolation) -> None:
    assert callable(made)
    task = made()
    pair = Pair(task._replace(settings=task.settings | {"isolation": isolation}), ENVS)
    assert pair.fast.describe()[0].startswith("native")
    pair.assert_near(batch_of(pair.fast, BATCH), 3e-4)
