"""Alpha ramps against their closed forms, at both precisions and every length up to fifty."""

import math

import pytest
import torch

from esper.kasmina.alpha import ramp
from esper.leyline.actions import BLENDS, NONE, Blend, Curve

DTYPES = [torch.float32, torch.float64]
TOTALS = range(1, 51)
TOLERANCE = {torch.float32: 3e-7, torch.float64: 1e-15}


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stretched(t: float, k: float) -> float:
    """The logistic curve of steepness k about 1/2, stretched to end at 0 and 1."""
    return (logistic(k * (t - 0.5)) - logistic(-k / 2)) / (logistic(k / 2) - logistic(-k / 2))


CLOSED_FORMS = {
    Blend.LINEAR: lambda t: t,
    Blend.GATED: lambda t: t,
    Blend.COSINE: lambda t: (1 - math.cos(math.pi * t)) / 2,
    Blend.SIGMOID: lambda t: stretched(t, 12),
}


def alphas(
    blend: int, total: int, target: float, dtype: torch.dtype, extra: int = 3, steepness: float = 12
) -> torch.Tensor:
    """Alpha at steps 0 .. total + extra, as one environment with that many slots."""
    done = torch.arange(total + 1 + extra).unsqueeze(0)
    numbers = (torch.tensor([[float(number)]], dtype=dtype) for number in (total, target, steepness))
    return ramp(torch.full_like(done, int(blend)), done, *numbers)[0]


def test_every_blend_has_a_closed_form() -> None:
    assert set(CLOSED_FORMS) == set(Blend) == set(BLENDS)
    assert {rule.curve for rule in BLENDS.values()} == set(Curve)
    assert [blend for blend, rule in BLENDS.items() if rule.gated] == [Blend.GATED]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", Blend)
def test_follows_its_closed_form(blend: Blend, dtype: torch.dtype) -> None:
    for total in TOTALS:
        expected = [CLOSED_FORMS[blend](done / total) for done in range(total + 1)]
        got = alphas(blend, total, 1.0, dtype, extra=0)
        assert got.dtype == dtype
        assert torch.allclose(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [1.0, 0.5, 0.3, 0.0])
@pytest.mark.parametrize("blend", Blend)
def test_begins_at_zero_and_ends_at_its_target_exactly(blend: Blend, target: float, dtype: torch.dtype) -> None:
    exact = torch.tensor(target, dtype=dtype)
    for total in TOTALS:
        got = alphas(blend, total, target, dtype)
        assert got[0] == 0
        assert torch.equal(got[total:], exact.expand(4))
        assert ((got >= 0) & (got <= exact)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", Blend)
def test_rises_with_every_step(blend: Blend, dtype: torch.dtype) -> None:
    for total in TOTALS:
        assert (alphas(blend, total, 1.0, dtype, extra=0).diff() > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blend", Blend)
def test_is_symmetric_about_one_half(blend: Blend, dtype: torch.dtype) -> None:
    for total in TOTALS:
        got = alphas(blend, total, 1.0, dtype, extra=0).double()
        assert torch.allclose(got + got.flip(0), torch.ones_like(got), rtol=0, atol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steepness", [0.1, 1.0, 4.0, 30.0, 1e3])
def test_the_sigmoid_has_the_steepness_that_it_is_given(steepness: float, dtype: torch.dtype) -> None:
    ends = 1 - 2 / (1 + math.exp(steepness / 2))  # what the rounding of the curve's ends is divided by
    for total in TOTALS:
        expected = [0.0, *(stretched(done / total, steepness) for done in range(1, total)), 1.0]
        got = alphas(Blend.SIGMOID, total, 1.0, dtype, 0, steepness)
        wanted = torch.tensor(expected, dtype=torch.float64)
        assert torch.allclose(got.double(), wanted, rtol=0, atol=max(1, steepness) * TOLERANCE[dtype] / ends)
        assert (got.diff() >= 0).all()


def test_a_gentle_sigmoid_is_a_line_and_a_steep_one_a_step() -> None:
    gentle, line = (alphas(blend, 8, 1.0, torch.float64, 0, 0.1) for blend in (Blend.SIGMOID, Blend.LINEAR))
    assert torch.allclose(gentle, line, rtol=0, atol=1e-4)
    steep = alphas(Blend.SIGMOID, 8, 1.0, torch.float64, 0, 1e3)
    assert steep.tolist() == pytest.approx([0.0] * 4 + [0.5] + [1.0] * 4, abs=1e-12)


def test_each_slot_has_its_own_blend_and_each_environment_its_own_numbers() -> None:
    blend = torch.tensor([[0, 1, 2, 3, NONE]]).expand(2, -1)
    done = torch.tensor([[1, 1, 1, 1, 1], [3, 3, 3, 3, 3]])
    total, target = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [0.5]])
    got = ramp(blend, done, total, target, torch.tensor([[12.0], [3.0]]))
    for env, (time, goal, steepness) in enumerate(((0.5, 1.0, 12), (0.75, 0.5, 3))):
        for slot, each in enumerate(Blend):
            share = stretched(time, steepness) if each is Blend.SIGMOID else CLOSED_FORMS[each](time)
            assert got[env, slot].item() == pytest.approx(goal * share, abs=1e-6)
    assert got[:, 4].tolist() == [0.0, 0.0]


def test_before_the_first_step_alpha_is_zero() -> None:
    assert alphas(Blend.LINEAR, 1, 1.0, torch.float32)[0] == 0
    one = torch.tensor([[1.0]])
    assert ramp(torch.tensor([[0]]), torch.tensor([[-3]]), one, one, one) == 0


@pytest.mark.parametrize("blend", Blend)
def test_an_alphas_bits_do_not_depend_on_how_many_environments_there_are(blend: Blend) -> None:
    done = torch.arange(64 * 3).reshape(64, 3) % 50
    numbers = (torch.tensor([[number]]) for number in (50.0, 0.9, 12.0))
    total, target, steepness = numbers
    whole = ramp(torch.full_like(done, int(blend)), done, total, target, steepness)
    for count in (1, 2, 3, 5, 7, 33):
        few = ramp(torch.full_like(done[:count], int(blend)), done[:count], total, target, steepness)
        assert torch.equal(few, whole[:count])
