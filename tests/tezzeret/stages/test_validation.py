"""Validation of the compiled form: what is altered is refused, each for its own reason; what is sound passes."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS, CONV_LIGHT
from esper.kasmina.layers import linear
from esper.kasmina.layout import fan_in_uniform
from esper.kasmina.site import conv_site, token_site, vector_site
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.tezzeret.native.programs import Op
from esper.tezzeret.stages import TOLERANCE, ArtefactRefused, BlueprintForm, Subject, eager_form, subject_of, validate
from esper.tezzeret.stages.bounds import Bounds
from esper.tezzeret.stages.forms import Goal
from esper.tezzeret.stages.inputs import batch_of, goal_of, numbers_of
from esper.tezzeret.stages.native_form import form_of_code, from_bytes, native_form
from esper.tezzeret.stages.refusal import REASONS


def with_nan(values: Tensor) -> Tensor:
    """The last number of every row is none."""
    return torch.cat((values.flatten(1)[:, :-1], values.flatten(1)[:, :1] * torch.nan), 1).view_as(values)


Alter = Callable[[BlueprintForm, Subject], BlueprintForm]
SITE = conv_site(4, 4, 4)
FREE = Bounds(slower=1e9, leak=1 << 40, runs=1)
"""Time and memory are not looked at."""


def outputs(change: Callable[[Tensor], Tensor]) -> Alter:
    return lambda form, subject: form._replace(infer=lambda *row: change(form.infer(*row)))


def trained(**changes: Callable[[Tensor], Tensor]) -> Alter:
    def alter(form: BlueprintForm, subject: Subject) -> BlueprintForm:
        def train(*arguments):
            gave = form.train(*arguments)
            return gave._replace(**{name: change(getattr(gave, name)) for name, change in changes.items()})

        return form._replace(train=train)

    return alter


def programs(of: Op, **fields: int) -> Alter:
    """Every instruction of a kind becomes another, in the code itself."""

    def alter(form: BlueprintForm, subject: Subject) -> BlueprintForm:
        both = from_bytes(form.code)
        changed = []
        for each in both:
            told = tuple(i._replace(**fields) if i.op is of else i for i in each.code.instructions)
            assert told != each.code.instructions
            changed.append(each._replace(code=each.code._replace(instructions=told)))
        return form_of_code(subject, *changed)

    return alter


def without(name: str) -> Alter:
    """The gradient of one tensor is 0."""

    def alter(form: BlueprintForm, subject: Subject) -> BlueprintForm:
        columns = subject.layout.columns(name)

        def cut(grad: Tensor) -> Tensor:
            return grad.index_fill(1, torch.arange(columns.start, columns.stop), 0.0)

        return trained(params=cut)(form, subject)

    return alter


def mixing(form: BlueprintForm, subject: Subject) -> BlueprintForm:
    def infer(params, buffers, x):
        y = form.infer(params, buffers, x)
        return y + 1e-2 * y.mean(0, keepdim=True) if x.shape[0] == 3 else y

    return form._replace(infer=infer)


ALTERED: dict[str, tuple[str, Alter]] = {
    "a relu dropped": ("wrong values", programs(Op.GROUP_NORM, rectify=False)),
    "one group fewer": ("wrong values", programs(Op.GROUP_NORM, groups=2)),
    "logarithms of anything": ("not finite", programs(Op.ADD, op=Op.LOG)),
    "a NaN": (
        "not finite",
        outputs(with_nan),
    ),
    "three tolerances off": ("wrong values", outputs(lambda y: y + 3 * TOLERANCE * (1 + y.abs()))),
    "a number too few": ("shape", outputs(lambda y: y[..., :-1])),
    "double": ("shape", outputs(lambda y: y.double())),
    "losses of others": ("wrong values", trained(losses=lambda losses: losses.flip(1) + 1e-3)),
    "gradients a thousandth off": ("wrong gradients", trained(params=lambda grad: 1.001 * grad)),
    "gradients of inputs a thousandth off": ("wrong gradients", trained(inputs=lambda grad: 1.001 * grad)),
    "gradients with a NaN": (
        "not finite",
        trained(params=with_nan),
    ),
    "no gradient at all": ("blocked gradient", trained(params=torch.zeros_like)),
    "no gradient to one tensor": ("blocked gradient", without("norm.bias")),
    "no gradient to the input": ("blocked gradient", trained(inputs=torch.zeros_like)),
    "rows that see each other": ("dependent rows", mixing),
}


@pytest.fixture(scope="module")
def light() -> tuple[BlueprintForm, Subject]:
    subject = subject_of(CONV_LIGHT, SITE)
    return native_form(subject), subject


@pytest.mark.parametrize("name", ALTERED)
def test_what_is_altered_is_refused_for_its_own_reason(name: str, light: tuple[BlueprintForm, Subject]) -> None:
    reason, alter = ALTERED[name]
    with pytest.raises(ArtefactRefused) as refused:
        validate(alter(*light), light[1], bounds=FREE)
    assert refused.value.reason == reason, str(refused.value)
    assert "\n" not in str(refused.value) and "expected" in str(refused.value)


def test_a_slow_one_and_a_leaking_one(light: tuple[BlueprintForm, Subject]) -> None:
    form, subject = light
    kept: list[Tensor] = []
    numbers = numbers_of(subject, 2, torch.float32, torch.device("cpu"))
    batch = batch_of(subject, "normal", 32, 2, numbers.params)
    row = (numbers.params, numbers.buffers, batch.x)
    eager = eager_form(subject)
    begun = time.perf_counter()
    for _ in range(20):
        eager.train(*row, goal_of(subject, batch.x, batch.targets))
    pause = time.perf_counter() - begun  # twenty calls: far from twice one, also on a busy machine

    def slow(*arguments):
        time.sleep(pause)
        return form.train(*arguments)

    def leaking(*arguments):
        kept.extend(torch.ones(1 << 13) for _ in range(9))
        return form.train(*arguments)

    free = [torch.ones(1 << 13) for _ in range(4000)]  # memory that the process has and does not use hides no leak
    del free[::2]
    for reason, train in (("slow", slow), ("leak", leaking)):
        with pytest.raises(ArtefactRefused) as refused:
            validate(form._replace(train=train), subject)
        assert refused.value.reason == reason, str(refused.value)


def test_every_reason_is_known() -> None:
    assert {reason for reason, _ in ALTERED.values()} <= set(REASONS)


def test_a_fresh_seed_beyond_its_bound(light: tuple[BlueprintForm, Subject]) -> None:
    form, subject = light
    nearer = subject._replace(blueprint=CONV_LIGHT._replace(identity_bound=1e-3))
    with pytest.raises(ArtefactRefused, match=r"identity bound: .* expected <= 0.00101"):
        validate(form, nearer, bounds=FREE)


def test_an_eager_form_that_overflows() -> None:
    subject = subject_of(
        preserving(
            "steep",
            frozenset({"vector"}),
            lambda site: (fan_in_uniform("w", (site.channels, site.channels), site.channels),),
            lambda params, x: x + torch.exp(linear(x, params["w"])),
            lambda site: site.channels**2,
            10.0,
        ),
        vector_site(4),
    )
    with pytest.raises(ArtefactRefused, match=r"not finite: its eager form .*normal x 100"):
        validate(native_form(subject), subject, bounds=FREE)


def test_half_a_tolerance_passes(light: tuple[BlueprintForm, Subject]) -> None:
    form, subject = light
    nearly = outputs(lambda y: y + 0.5 * TOLERANCE * (y.abs().max().clamp(max=1) + y.abs()))(form, subject)
    assert 0.3 < validate(nearly, subject, bounds=FREE)["outputs"] < 1


SOUND = [(kind, SITE) for kind in CONV_BLUEPRINTS]
SOUND += [(kind, token_site(6, width)) for kind in TOKEN_BLUEPRINTS for width in (8, 5)]
"""Of an odd width attention has one head, and all that it needs beside its parameters is constants."""


@pytest.mark.parametrize(("kind", "site"), SOUND, ids=[f"{kind.name} {site.shape}" for kind, site in SOUND])
def test_every_native_form_is_sound(kind: Blueprint, site) -> None:
    subject = subject_of(kind, site)
    form = native_form(subject)
    found = validate(form, subject, bounds=FREE)
    assert found["outputs"] <= 1 and found["gradients"] <= 1
    assert from_bytes(form.code) == from_bytes(form_of_code(subject, *from_bytes(form.code)).code)


def test_forms_give_what_autograd_gives_of_plain_layers() -> None:
    """The composition around a form, by ``torch.nn.functional`` in float64, network by network."""
    subject = subject_of(CONV_LIGHT, SITE)
    numbers = numbers_of(subject, 2, torch.float32, torch.device("cpu"))
    batch = batch_of(subject, "normal", 5, 2, numbers.params)
    goal = goal_of(subject, batch.x, batch.targets)
    named = subject.layout.views(numbers.params.double())
    for form in (eager_form(subject), native_form(subject)):
        y = form.infer(numbers.params, numbers.buffers, batch.x)
        gave = form.train(numbers.params, numbers.buffers, batch.x, goal)
        for network in range(2):
            parts = tuple(
                named[name][network].clone().requires_grad_() for name in ("conv", "norm.weight", "norm.bias")
            )
            x = batch.x[network].double().requires_grad_()
            truth = x + torch.relu(F.group_norm(F.conv2d(x, parts[0], padding=1), 4, *parts[1:]))
            losses = F.cross_entropy(truth.flatten(1) @ goal.weight.double().T, goal.targets[network], reduction="none")
            grads = torch.autograd.grad(losses.mean(), (*parts, x))
            torch.testing.assert_close(y[network].double(), truth, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gave.losses[network].double(), losses, rtol=1e-5, atol=1e-5)
            flat = torch.cat([grad.flatten() for grad in grads[:3]])
            torch.testing.assert_close(gave.params[network].double(), flat, rtol=1e-5, atol=1e-6)
            assert gave.inputs is not None
            torch.testing.assert_close(gave.inputs[network].double(), grads[3], rtol=1e-5, atol=1e-6)


def test_a_goal_is_of_the_output_s_own_size() -> None:
    subject = subject_of(CONV_LIGHT, SITE)
    small, large = (goal_of(subject, scale * torch.ones(1, 2, 4, 4, 4), torch.zeros(1, 2).long()) for scale in (1, 100))
    assert isinstance(small, Goal)
    torch.testing.assert_close(100 * large.weight, small.weight)
