"""Objectives: against torch.nn.functional and closed forms in float64, and their derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F

from esper.kasmina.objectives import MOST_SQUARES, Objective, cross_entropy, mean_squared_error
from esper.leyline.config import ConfigError
from esper.utils import rng

F64 = torch.float64
SHAPES = st.sampled_from([(1, 1), (2, 5), (3, 4, 6)])  # networks, samples, positions
WEIGHTS = st.none() | st.lists(st.floats(0.125, 4.0), min_size=4, max_size=4).map(tuple)


def draw(seed: int, shape: tuple[int, ...], classes: int = 4) -> tuple[Tensor, Tensor]:
    keys = rng.split(rng.key(seed))
    return 3 * rng.normal(keys[0], (*shape, classes), F64), (classes * rng.uniform(keys[1], shape)).long()


@settings(max_examples=40)
@given(st.integers(0, 99), SHAPES, st.sampled_from([0.0, 0.1, 1.0]), WEIGHTS)
def test_cross_entropy_is_torchs(seed: int, shape: tuple[int, ...], smoothing: float, weights: tuple | None) -> None:
    outputs, targets = draw(seed, shape)
    objective = cross_entropy(smoothing, weights)
    found = objective.loss(outputs, targets)
    weight = None if weights is None else torch.tensor(weights, dtype=F64)
    flat = F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), weight, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(found, flat.reshape(shape), rtol=1e-14, atol=1e-14)
    scales = torch.ones(4, dtype=F64) if weight is None else weight
    wanted = (1 - smoothing) * F.one_hot(targets, 4).double() + smoothing / 4
    closed = -(wanted * scales * outputs.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(found, closed, rtol=1e-13, atol=1e-13)
    assert torch.equal(objective.score(outputs, targets), outputs.argmax(-1).eq(targets).double())


def test_the_plain_mean_of_weighted_losses_is_torchs_sum_over_samples() -> None:
    outputs, targets = draw(3, (1, 20))
    found = cross_entropy(class_weights=(1.0, 2.0, 0.5, 0.5)).loss(outputs, targets).mean()
    weight = torch.tensor([1.0, 2.0, 0.5, 0.5], dtype=F64)
    wanted = F.cross_entropy(outputs[0], targets[0], weight, reduction="sum") / 20
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_cross_entropy_of_large_logits(size: float) -> None:
    """Exact to rounding where the exponentials are 0 or infinite; the slope is p minus one-hot."""
    outputs, targets = (size * torch.tensor([[[1.0, 0.0, -1.0], [-1.0, 1.0, 1.0]]])), torch.tensor([[2, 0]])
    loss = cross_entropy().loss(outputs, targets)
    torch.testing.assert_close(loss, torch.tensor([[2 * size, 2 * size + math.log(2)]]), rtol=1e-7, atol=0)
    slope = grad(lambda outputs: cross_entropy().loss(outputs, targets).sum())(outputs)
    torch.testing.assert_close(slope, torch.tensor([[[1.0, 0.0, -1.0], [-1.0, 0.5, 0.5]]]))


@settings(max_examples=40)
@given(st.integers(0, 99), SHAPES)
def test_squared_error_of_classes_is_torchs_of_one_hot(seed: int, shape: tuple[int, ...]) -> None:
    outputs, targets = draw(seed, shape)
    objective = mean_squared_error()
    wanted = F.mse_loss(outputs, F.one_hot(targets, 4).double(), reduction="none").mean(-1)
    torch.testing.assert_close(objective.loss(outputs, targets), wanted)
    assert torch.equal(objective.score(outputs, targets), cross_entropy().score(outputs, targets))


@settings(max_examples=40)
@given(st.integers(0, 99), SHAPES, st.floats(0.5, 4.0))
def test_squared_error_of_vectors_is_torchs(seed: int, shape: tuple[int, ...], scale: float) -> None:
    outputs, targets = draw(seed, shape)[0], draw(seed + 100, shape)[0]
    objective = mean_squared_error(scale)
    loss = objective.loss(outputs, targets)
    torch.testing.assert_close(loss, F.mse_loss(outputs, targets, reduction="none").mean(-1))
    score = objective.score(outputs, targets)
    torch.testing.assert_close(score, 1 - torch.minimum(loss / scale, torch.full_like(loss, MOST_SQUARES)))
    assert bool((score >= -9).all() & (score <= 1).all())


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7, 1.0])
def test_the_score_of_vectors_is_the_coefficient_of_determination(noise: float) -> None:
    """With errors as wide as the targets, what is cut off is below 1 pp; with smaller ones nothing is."""
    keys = rng.split(rng.key(5))
    targets = 2 * rng.normal(keys[0], (1, 20000, 1), F64) + 7
    variance = float(targets.var(correction=0))
    outputs = targets + noise * 2 * rng.normal(keys[1], targets.shape, F64)
    wanted = 1 - float((outputs - targets).square().mean()) / variance
    assert mean_squared_error(variance).score(outputs, targets).mean().item() == pytest.approx(wanted, abs=0.01)
    mean = targets.mean().expand_as(targets)
    assert mean_squared_error(variance).score(mean, targets).mean().item() == pytest.approx(0.0, abs=0.01)
    assert mean_squared_error(variance).loss(mean, targets).mean().item() == pytest.approx(variance)


CASES = [
    (cross_entropy(), torch.zeros(4)),
    (cross_entropy(0.1), torch.zeros(4)),
    (cross_entropy(0.1, (1.0, 2.0, 3.0, 0.0)), torch.full((4,), -5.0)),
    (mean_squared_error(), torch.full((4,), 0.25)),
]


@pytest.mark.parametrize(("objective", "guess"), CASES)
def test_the_loss_of_knowing_nothing(objective: Objective, guess: Tensor) -> None:
    """Every class once, the same outputs for all."""
    loss = objective.loss(guess.double().expand(1, 4, 4), torch.arange(4).unsqueeze(0)).mean().item()
    assert objective.guess_loss(4) == pytest.approx(loss, rel=1e-14)
    assert cross_entropy().guess_loss(7) == math.log(7) and mean_squared_error(2.5).guess_loss(7) == 2.5


SMOOTH = [cross_entropy(), cross_entropy(0.1, (1.0, 2.0, 3.0, 0.5)), mean_squared_error(), mean_squared_error(2.0)]


@pytest.mark.parametrize("objective", SMOOTH)
def test_derivatives_are_central_differences(objective: Objective) -> None:
    """First and second ones, backward and forward, and of a batch of populations."""
    outputs, targets = draw(1, (2, 3))
    if objective is SMOOTH[-1]:
        targets = draw(2, (2, 3))[0]

    def total(outputs: Tensor) -> Tensor:
        return (objective.loss(outputs, targets) * torch.tensor([[1.0], [2.0]], dtype=F64)).sum()

    slope = grad(total)
    pushes = 1e-6 * torch.eye(24, dtype=F64).reshape(24, 2, 3, 4)
    wanted = torch.stack([total(outputs + push) - total(outputs - push) for push in pushes]) / 2e-6
    torch.testing.assert_close(slope(outputs).flatten(), wanted, rtol=1e-7, atol=1e-8)
    bends = torch.stack([slope(outputs + push) - slope(outputs - push) for push in pushes]) / 2e-6
    torch.testing.assert_close(hessian(total)(outputs).flatten(0, 2), bends, rtol=1e-7, atol=1e-8)
    ones = torch.ones_like(outputs)
    torch.testing.assert_close(jvp(total, (outputs,), (ones,))[1], wanted.sum(), rtol=1e-7, atol=1e-7)
    many = torch.stack([outputs, -outputs])
    torch.testing.assert_close(vmap(slope)(many), torch.stack([slope(one) for one in many]))


def test_equal_arguments_are_one_objective() -> None:
    assert cross_entropy() is cross_entropy(0, None) and cross_entropy(0.1, [1, 2]) is cross_entropy(0.1, (1.0, 2.0))
    assert mean_squared_error() is mean_squared_error(None) and mean_squared_error(1) is mean_squared_error(1.0)
    assert cross_entropy() != cross_entropy(0.1) and mean_squared_error() != mean_squared_error(1.0)


@pytest.mark.parametrize("build", [
    lambda: cross_entropy(-0.1),
    lambda: cross_entropy(math.nan),
    lambda: cross_entropy(class_weights=(1.0, -1.0)),
    lambda: cross_entropy(class_weights=(0.0, 0.0)),
    lambda: cross_entropy(class_weights=(1.0, math.inf)),
    lambda: cross_entropy(class_weights=(1.0, 1.0)).guess_loss(3),
    lambda: mean_squared_error(0.0),
    lambda: mean_squared_error(math.nan),
    lambda: mean_squared_error().loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)),
    lambda: mean_squared_error().score(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64)),
    lambda: mean_squared_error(1.0).loss(torch.zeros(1, 2, 1), torch.zeros(1, 2)),
    lambda: mean_squared_error(1.0).score(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)),
])  # fmt: skip
def test_what_makes_no_sense_is_said_in_one_line(build) -> None:
    with pytest.raises(ConfigError, match=r"\A[^\n]*expected[^\n]*\Z"):
        build()
