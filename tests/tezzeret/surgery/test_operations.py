"""Every operation against plain layers and closed forms: structure, outputs, gradients, moments; losses fall."""

import re
from functools import cache

import pytest
import torch
from surgery_nets import F64, HOSTS, patient_of
from torch.func import grad
from torch.nn import functional as F

from esper.tezzeret.surgery import (
    AddSkip,
    InsertLayer,
    ModifyLayer,
    RemoveLayer,
    Rewire,
    SurgeryRules,
    layers_of,
    surgery,
)
from esper.tezzeret.surgery.forward import Forward
from esper.tezzeret.surgery.measure import losses

OPEN = SurgeryRules(topology=True, accuracy_loss=101.0, growth=9.0)
"""All is allowed but what is wrong."""


@cache
def patient(name):
    return patient_of(HOSTS[name]())


def outputs(body, learned, samples):
    x = samples.inputs.expand(len(learned.steps), *samples.inputs.shape)
    return Forward(body.graph)(learned.params, learned.buffers, x).output


def operate(name, *ops):
    """Operations one behind the other: patient before and behind, and the last report."""
    body, learned, samples = patient(name)
    report = None
    for op in ops:
        body, learned, report = surgery(body, learned, op, samples, OPEN)
        assert report.done, str(report)
    return body, learned, report


CASES = {
    "insert linear": ("mlp", InsertLayer("new", "two"), True),
    "insert conv": ("branches", InsertLayer("new", "left", kernel=5), True),
    "insert behind a norm": ("cnn", InsertLayer("new", "block0.conv"), True),
    "insert without a norm": ("cnn", InsertLayer("new", "block0.conv", norm="none"), True),
    "insert a norm of its own": ("branches", InsertLayer("new", "left", norm="batch"), True),
    "insert with a norm among vectors": ("mlp", InsertLayer("new", "two", norm="batch"), True),
    "insert among tokens": ("transformer", InsertLayer("new", "block1.project", "none"), True),
    "remove linear": ("mlp", RemoveLayer("two"), False),
    "remove with a norm": ("cnn", RemoveLayer("block1.conv"), False),
    "remove a branch": ("branches", RemoveLayer("right"), False),
    "remove with a bridge": ("branches", RemoveLayer("second"), False),
    "wider, drawn": ("mlp", ModifyLayer("two", width=9, start="zero"), True),
    "wider, copied": ("mlp", ModifyLayer("one", width=11), True),
    "wider, gradmax": ("mlp", ModifyLayer("two", width=8, start="gradmax"), True),
    "narrower": ("mlp", ModifyLayer("two", width=4), False),
    "wider through a norm": ("cnn", ModifyLayer("block0.conv", width=8), True),
    "wider through a flatten": ("branches", ModifyLayer("left", width=7, start="zero"), True),
    "wider, conv, gradmax": ("branches", ModifyLayer("first", width=6, start="gradmax"), True),
    "wider inside a residual block": ("residual", ModifyLayer("conv1", width=9), True),
    "wider through a residual sum": ("residual", ModifyLayer("conv2", width=9), True),
    "wider before strides": ("residual", ModifyLayer("stem.0", width=8, start="zero"), True),
    "narrower, strided": ("residual", ModifyLayer("conv1", width=3), False),
    "remove inside a residual block": ("residual", RemoveLayer("conv2"), False),
    "narrower, conv": ("cnn", ModifyLayer("block0.conv", width=2), False),
    "wider mlp of a transformer": ("transformer", ModifyLayer("block1.expand", width=48), True),
    "the same, gradmax": ("transformer", ModifyLayer("block2.expand", width=40, start="gradmax"), True),
    "larger kernel": ("cnn", ModifyLayer("block1.conv", kernel=5), True),
    "smaller kernel": ("cnn", ModifyLayer("block1.conv", kernel=1), False),
    "skip": ("mlp", AddSkip("one", "three"), False),
    "skip through zeros": ("mlp", AddSkip("one", "three", "zero"), True),
    "skip to another shape": ("cnn", AddSkip("block0.conv", "block1.conv", "zero"), True),
    "skip to a vector": ("cnn", AddSkip("block0.conv", "block2"), False),
    "skip among tokens": ("transformer", AddSkip("block1.project", "block2.project", "zero"), True),
    "rewire": ("branches", Rewire("right", "left"), False),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_stay_where_promised_and_training_goes_on(case):
    name, op, stays = CASES[case]
    old, learned, samples = patient(name)
    body, new, report = operate(name, op)
    before, after = outputs(old, learned, samples), outputs(body, new, samples)
    if stays:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    else:
        assert (after - before).abs().max() > 1e-4
    assert report.before.loss == pytest.approx(float(losses(before, samples.targets).mean()))
    assert report.after.loss == pytest.approx(float(losses(after, samples.targets).mean()))

    forward, x = Forward(body.graph), samples.inputs.expand(3, *samples.inputs.shape)

    def loss(params):
        return losses(forward(params, new.buffers, x).output, samples.targets).sum()

    slopes = grad(loss)(dict(new.params))
    assert all(bool(slope.isfinite().all()) for slope in slopes.values())
    stepped = {key: value - 1e-2 * slopes[key] for key, value in new.params.items()}
    assert float(loss(stepped)) < float(loss(dict(new.params)))


def test_a_wider_perceptron_is_the_plain_one():
    body, learned, _ = operate("mlp", ModifyLayer("two", width=9), InsertLayer("new", "one"), AddSkip("one", "three"))
    samples = patient("mlp").samples
    row = {name: value[2] for name, value in learned.params.items()}

    def through(name, x):
        return F.relu(F.linear(x, row[f"{name}.weight"], row[f"{name}.bias"]))

    first = through("one", samples.inputs.flatten(1))
    # the way around leads from behind "one" itself; the new layer lies on the other way
    last = through("three", through("two", through("new", first))) + first
    wanted = F.linear(last, row["head.weight"], row["head.bias"])
    torch.testing.assert_close(outputs(body, learned, samples)[2], wanted, rtol=0, atol=1e-12)
    assert {name: tuple(node.shape) for name, node in body.params.items() if "weight" in name} == {
        "one.weight": (6, 16),
        "new.weight": (6, 6),
        "two.weight": (9, 6),
        "three.weight": (6, 9),
        "head.weight": (4, 6),
    }


def test_rewiring_is_the_plain_network():
    body, learned, _ = operate("branches", Rewire("right", "left"))
    samples = patient("branches").samples
    row = {name: value[1] for name, value in learned.params.items()}

    def conv(name, x):
        return F.relu(F.conv2d(x, row[f"{name}.weight"], row[f"{name}.bias"], padding=1))

    left = conv("left", conv("second", conv("first", samples.inputs)))
    pooled = F.max_pool2d(left + conv("right", left), 2).flatten(1)
    wanted = F.linear(pooled, row["head.weight"], row["head.bias"])
    torch.testing.assert_close(outputs(body, learned, samples)[1], wanted, rtol=0, atol=1e-12)


def test_a_removed_branch_leaves_the_other():
    body, learned, _ = operate("branches", RemoveLayer("right"))
    assert "right.weight" not in body.params and "first.weight" in body.params
    samples = patient("branches").samples
    row = {name: value[0] for name, value in learned.params.items()}
    h = samples.inputs
    for name in ("first", "second"):
        h = F.relu(F.conv2d(h, row[f"{name}.weight"], row[f"{name}.bias"], padding=1))
    left = F.relu(F.conv2d(h, row["left.weight"], row["left.bias"], padding=1))
    wanted = F.linear(F.max_pool2d(left + h, 2).flatten(1), row["head.weight"], row["head.bias"])
    torch.testing.assert_close(outputs(body, learned, samples)[0], wanted, rtol=0, atol=1e-12)


def test_a_bridge_starts_as_the_middle_of_the_kernel():
    body, learned, _ = operate("branches", RemoveLayer("second"))
    assert tuple(body.params["second.bridge"].shape) == (4, 3, 1, 1)
    old = patient("branches").learned
    assert torch.equal(learned.params["second.bridge"], old.params["second.weight"][..., 1:2, 1:2])
    assert not learned.moments["second.bridge"].any()


def test_a_larger_kernel_has_zeros_around_the_old():
    _, learned, _ = operate("cnn", ModifyLayer("block0.conv", kernel=5))
    old = patient("cnn").learned
    torch.testing.assert_close(learned.params["block0.conv"][..., 1:4, 1:4], old.params["block0.conv"], rtol=0, atol=0)
    assert float(learned.params["block0.conv"].abs().sum()) == pytest.approx(
        float(old.params["block0.conv"].abs().sum())
    )


@pytest.mark.parametrize("start", ["zero", "net2net", "gradmax"])
def test_moments_of_old_parameters_keep_their_bits(start):
    name, old = "mlp", patient("mlp").learned
    _, learned, _ = operate(name, ModifyLayer("two", width=8, start=start))
    for tensor, kept in (("two.weight", (slice(6),)), ("three.weight", (slice(None), slice(6)))):
        own = learned.moments[tensor][(slice(None), slice(None), *kept)]
        assert torch.equal(own, old.moments[tensor])
        assert float(learned.moments[tensor].abs().sum()) == pytest.approx(float(old.moments[tensor].abs().sum()))
    assert torch.equal(learned.moments["one.weight"], old.moments["one.weight"])
    assert torch.equal(learned.params["two.weight"][:, :6], old.params["two.weight"])
    assert torch.equal(learned.steps, old.steps)


def test_removing_what_was_inserted_gives_the_old_value_again():
    for name, after in (("mlp", "two"), ("cnn", "block0.conv"), ("branches", "left")):
        old = patient(name)
        body, learned, _ = operate(name, InsertLayer("new", after), RemoveLayer("new"))
        assert body == old.body
        for table, before in zip(learned[:3], old.learned[:3], strict=True):
            assert table.keys() == before.keys() and all(torch.equal(table[key], before[key]) for key in table)


def test_net2net_copies_share_out_what_reads_them():
    old = patient("mlp").learned
    _, learned, _ = operate("mlp", ModifyLayer("two", width=9))
    new = learned.params["two.weight"][:, 6:]
    for env in range(3):
        for copy in new[env]:
            assert any(torch.equal(copy, unit) for unit in old.params["two.weight"][env])
    torch.testing.assert_close(
        learned.params["three.weight"].sum(2), old.params["three.weight"].sum(2), rtol=0, atol=1e-12
    )
    copied = learned.params["three.weight"][:, :, 6:]
    assert not torch.isclose(copied, old.params["three.weight"][:, :, :3] / 2).all()


def test_gradmax_has_the_largest_gradient_that_readers_of_this_length_can_give():
    """By the matrix of gradients at what reads and features, worked out by hand."""
    old, (body, learned, _) = patient("mlp"), operate("mlp", ModifyLayer("two", width=8, start="gradmax"))
    samples, env = old.samples, 1
    row = {name: value[env] for name, value in old.learned.params.items()}
    first = F.relu(F.linear(samples.inputs.flatten(1), row["one.weight"], row["one.bias"]))
    second = F.relu(F.linear(first, row["two.weight"], row["two.bias"]))

    def behind(h):
        return F.cross_entropy(F.linear(F.relu(h), row["head.weight"], row["head.bias"]), samples.targets)

    matrix = grad(behind)(F.linear(second, row["three.weight"], row["three.bias"])).T @ first  # [readers, features]
    singular = torch.linalg.svdvals(matrix)[:2]
    length = row["three.weight"].norm(dim=0).mean()

    def loss(weight):
        params = {name: value[env : env + 1] for name, value in learned.params.items()} | {"two.weight": weight}
        x = samples.inputs.unsqueeze(0)
        return losses(Forward(body.graph)(params, {}, x).output, samples.targets).sum()

    slope = grad(loss)(learned.params["two.weight"][env : env + 1])[0, 6:]
    torch.testing.assert_close(slope.norm(dim=1), singular * length, rtol=1e-9, atol=0)
    assert not learned.params["two.weight"][:, 6:].any()


REFUSED = {
    "unknown": ("mlp", RemoveLayer("tow"), "no layer 'tow'; did you mean 'two'?"),
    "relu": ("mlp", InsertLayer("new", "head"), "relu behind 'head' would cut what is negative"),
    "name": ("mlp", InsertLayer("two", "one"), "'two': there is 'two.weight' already; expected a new name"),
    "output": ("mlp", ModifyLayer("head", width=6), "the width of 'head' is that of the network's output"),
    "tied": ("transformer", ModifyLayer("block1.project", width=12), "is read in two ways"),
    "cycle": ("mlp", AddSkip("three", "one"), "a node would depend on itself; expected a graph without cycles"),
    "orphans": ("mlp", Rewire("head", "one"), "nothing would read .* any more"),
    "shapes": ("cnn", Rewire("block1.conv", "block2"), "gives .* reads .* expected the same"),
    "bridge": ("mlp", RemoveLayer("one"), "a bridge for 'one' would be as large as it"),
    "norm": ("mlp", InsertLayer("new", "one", norm="layer"), "norm 'layer'; expected same or batch or none"),
    "sequence": (
        "transformer",
        InsertLayer("new", "block1.project", "none", norm="batch"),
        "which gives a sequence; expected maps or vectors",
    ),
    "kernel": ("mlp", ModifyLayer("one", kernel=3), "'one' has no kernel that can change"),
    "start": ("mlp", ModifyLayer("one", width=8, start="copy"), "start 'copy'; expected zero or net2net or gradmax"),
    "gradmax": (
        "cnn",
        ModifyLayer("block0.conv", width=6, start="gradmax"),
        "no bias behind 'block1.conv' can take up",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line(case):
    name, op, reason = REFUSED[case]
    body, learned, samples = patient(name)
    outcome = surgery(body, learned, op, samples, OPEN)
    assert outcome.body is body and outcome.learned is learned
    assert "\n" not in outcome.report.reason
    assert re.search(reason, outcome.report.reason), outcome.report.reason


def test_every_layer_has_its_name_and_end():
    found = layers_of(patient("cnn").body)
    assert list(found) == ["block0.conv", "block1.conv", "block2"]
    nodes = patient("cnn").body.graph.nodes
    assert [nodes[each.end].op for each in found.values()] == ["relu", "relu", "convolve"]
    assert patient("mlp").learned.params["one.weight"].dtype == F64
