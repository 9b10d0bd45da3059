"""Optimizers on rows: against torch.optim row by row, and derivatives through steps against differences and torch."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.nn.utils import clip_grad_norm_

from esper.kasmina.layout import Layout, constant
from esper.kasmina.optimizers import OPTIMIZERS, Optimizer, Rates, clip_rows, decays, find_optimizer
from esper.leyline.config import ConfigError
from esper.utils import rng

F64 = torch.float64
LAYOUT = Layout((constant("weight", (3, 4), 0.0), constant("bias", (3,), 0.0), constant("kernel", (2, 1, 1, 1), 0.0)))
DECAYS = decays(LAYOUT)
NAMES = sorted(OPTIMIZERS)
RANGES = Rates((0.001, 0.3), (0.0, 0.2), (0.1, 9.0), (0.0, 0.99), (0.0, 0.99), (0.0, 0.9999), (1e-10, 1e-2))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(1)


@st.composite
def rates_of(draw: st.DrawFn, rows: int) -> Rates:
    """Numbers of every row; some rows are not clipped."""
    drawn = Rates(*(draw(st.lists(st.floats(*bounds), min_size=rows, max_size=rows)) for bounds in RANGES))
    off = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    return Rates(*(column(*values) for values in drawn))._replace(
        clip=column(*(math.inf if none else limit for none, limit in zip(off, drawn.clip, strict=True)))
    )


def train(optimizer: Optimizer, params: Tensor, grads: Tensor, rates: Rates) -> tuple[Tensor, Tensor, Tensor]:
    moments, steps = optimizer.init(params), torch.zeros(len(params), dtype=torch.int64)
    for grad_ in grads:
        params, moments, steps = optimizer.update(
            clip_rows(grad_, rates.clip)[0], params, moments, steps, rates, DECAYS
        )
    return params, moments, steps


def stock(
    name: str, decaying: list[Tensor], others: list[Tensor], mine: Rates, **options: bool
) -> torch.optim.Optimizer:
    """torch's optimizer with one row's numbers; AdamW's users exempt norms and biases by a second group."""
    if name == "sgd":
        return torch.optim.SGD([*decaying, *others], mine.lr, mine.momentum, weight_decay=mine.decay, **options)
    betas = (mine.beta1, mine.beta2)
    if name == "adam":
        return torch.optim.Adam([*decaying, *others], mine.lr, betas, mine.epsilon, mine.decay, **options)
    groups = [{"params": decaying, "weight_decay": mine.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, mine.lr, betas, mine.epsilon, **options)


def by_torch(name: str, params: Tensor, grads: Tensor, rates: Rates) -> Tensor:
    rows = []
    for row, start in enumerate(params):
        pieces = start.split([12, 3, 2])
        leaves = [nn.Parameter(piece.clone()) for piece in pieces]
        optimizer = stock(name, leaves[::2], leaves[1:2], Rates(*(float(rate[row]) for rate in rates)))
        for grad_ in grads[:, row]:
            for leaf, piece in zip(leaves, grad_.split([12, 3, 2]), strict=True):
                leaf.grad = piece.clone()
            clip_grad_norm_(leaves, float(rates.clip[row]))
            optimizer.step()
        rows.append(torch.cat([leaf.detach() for leaf in leaves]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(rates_of(3), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]))
def test_every_row_is_torchs_step_with_its_own_numbers(name: str, rates: Rates, seed: int, size: float) -> None:
    keys = rng.split(rng.key(seed))
    params, grads = rng.normal(keys[0], (3, 17), F64), size * rng.normal(keys[1], (20, 3, 17), F64)
    optimizer = find_optimizer(name)
    found, moments, steps = train(optimizer, params, grads, rates)
    torch.testing.assert_close(found, by_torch(name, params, grads, rates), rtol=1e-12, atol=1e-12)
    assert moments.shape == (3, optimizer.num_moments, 17) and steps.tolist() == [20] * 3


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_writes_into_nothing(name: str) -> None:
    optimizer, keys = find_optimizer(name), rng.split(rng.key(7))
    grads = rng.normal(keys[0], (3, 2, 17), F64)
    params, moments, steps = train(optimizer, START, grads, RATES)
    inputs = (rng.normal(keys[1], (2, 17), F64), params, moments, steps)
    before = [leaf.clone() for leaf in inputs]
    optimizer.update(*inputs, RATES, DECAYS)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


def test_norms_and_biases_do_not_decay_where_decay_is_decoupled() -> None:
    assert DECAYS.tolist() == [True] * 12 + [False] * 3 + [True] * 2
    assert decays(Layout(())).shape == (0,)
    params, still = torch.ones(2, 17, dtype=F64), torch.zeros(1, 2, 17, dtype=F64)
    left = torch.where(DECAYS, 1 - RATES.lr * RATES.decay, 1.0)
    torch.testing.assert_close(train(find_optimizer("adamw"), params, still, RATES)[0], left)
    everywhere = find_optimizer("adamw").update(still[0], params, torch.zeros(2, 2, 17, dtype=F64), STEPS, RATES, None)
    torch.testing.assert_close(everywhere[0], (1 - RATES.lr * RATES.decay).expand(2, 17))
    for name in ("sgd", "adam"):  # L2: every column
        assert bool((train(find_optimizer(name), params, still, RATES)[0] < 1).all())


def test_optimizers_are_found_by_name() -> None:
    assert list(OPTIMIZERS) == NAMES and {"sgd", "adam", "adamw"} <= set(NAMES)
    assert all(find_optimizer(name).name == name for name in NAMES)
    with pytest.raises(ConfigError, match=r"^optimizer = 'lion': expected adam or adamw or .*sgd$"):
        find_optimizer("lion")


# Derivatives. Two rows; the second is not clipped, the first is at every step.
STEPS = torch.zeros(2, dtype=torch.int64)
RATES = Rates(
    column(0.05, 0.02), column(0.1, 0.03), column(0.4, math.inf), column(0.8, 0.5), column(0.7, 0.9), column(0.8, 0.99),
    column(1e-3, 1e-8),
)  # fmt: skip
KEYS = rng.split(rng.key(11), 4)
START = rng.normal(KEYS[0], (2, 17), F64)
SLOPES, AIMS = 1 + rng.uniform(KEYS[1], (2, 17), dtype=F64), rng.normal(KEYS[2], (2, 17), F64)


def inner_loss(params: Tensor, row: int | slice = slice(None)) -> Tensor:
    return (torch.sin(SLOPES[row] * params) + 0.5 * (params - AIMS[row]) ** 2).sum()


def unroll(optimizer: Optimizer, params: Tensor, rates: Rates, loss: Callable[[Tensor], Tensor] = inner_loss) -> Tensor:
    """Five steps of descent, then a number that weighs every parameter differently."""
    moments, steps = optimizer.init(params), STEPS
    for _ in range(5):
        clipped = clip_rows(grad(loss)(params), rates.clip)[0]
        params, moments, steps = optimizer.update(clipped, params, moments, steps, rates, DECAYS)
    return (params**2 * AIMS).sum() + params.sum()


def outer(name: str, loss: Callable[[Tensor], Tensor] = inner_loss) -> Callable[[Tensor, Rates], Tensor]:
    return lambda params, rates: unroll(find_optimizer(name), params, rates, loss)


def central(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Derivative with respect to every entry of x by central differences."""
    pushes = step * torch.eye(x.numel(), dtype=F64).reshape(-1, *x.shape)
    return torch.stack([(function(x + push) - function(x - push)) / (2 * step) for push in pushes])


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_through_steps_are_central_differences(name: str) -> None:
    """Of the start and of every number, backward and forward; infinite clipping has the derivative 0."""
    function = outer(name)
    start, numbers = grad(function, argnums=(0, 1))(START, RATES)
    torch.testing.assert_close(start.flatten(), central(lambda x: function(x, RATES), START), rtol=1e-6, atol=1e-8)
    assert numbers.clip[1] == 0
    for field in Rates._fields:
        value, slope = getattr(RATES, field), getattr(numbers, field)
        along = central(lambda x, field=field: function(START, RATES._replace(**{field: x})), value, 1e-7)
        known = torch.isfinite(value.squeeze(1))
        torch.testing.assert_close(slope.squeeze(1)[known], along[known], rtol=1e-5, atol=1e-7)
    ones = Rates(*(torch.ones_like(value) for value in RATES))
    forward = jvp(function, (START, RATES), (torch.ones_like(START), ones))[1]
    torch.testing.assert_close(forward, start.sum() + sum(slope.sum() for slope in numbers))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_differences_of_first_ones(name: str) -> None:
    function = outer(name)

    def slope(lr: Tensor) -> Tensor:
        return grad(lambda lr: function(START, RATES._replace(lr=lr)))(lr)

    def bend(params: Tensor) -> Tensor:
        return grad(lambda params: function(params, RATES))(params)

    wanted = central(slope, RATES.lr).flatten()
    torch.testing.assert_close(jacrev(slope)(RATES.lr).flatten(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(hessian(lambda lr: function(START, RATES._replace(lr=lr)))(RATES.lr).flatten(), wanted)
    way = torch.ones_like(START)
    differences = (bend(START + 1e-6 * way) - bend(START - 1e-6 * way)) / 2e-6
    torch.testing.assert_close(jvp(bend, (START,), (way,))[1], differences, rtol=1e-5, atol=1e-6)


@pytest.fixture
def default_float64() -> Iterator[None]:
    """torch.optim counts its steps, and so corrects Adam's bias, in the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_torchs_own_unrolled_steps(name: str, default_float64: None) -> None:
    """torch.optim with ``differentiable=True``, clipping written with its vector_norm."""
    start, slopes = START.clone().requires_grad_(), [lr.clone().requires_grad_() for lr in RATES.lr.squeeze(1)]
    ends = []
    for row, lr in enumerate(slopes):
        params = [piece.clone() for piece in start[row].split([12, 3, 2])]
        mine = Rates(*(float(rate[row]) for rate in RATES))._replace(lr=lr)
        optimizer = stock(name, params[::2], params[1:2], mine, differentiable=True, foreach=False)
        for param in params:  # torch starts with a detached gradient, which loses the first step's derivative
            optimizer.state[param] = {"momentum_buffer": torch.zeros_like(param)} if name == "sgd" else {}
        for _ in range(5):
            copies = [param.clone() for param in params]
            grads = torch.autograd.grad(inner_loss(torch.cat(copies), row), copies, create_graph=True)
            factor = (mine.clip / (torch.linalg.vector_norm(torch.cat(grads)) + 1e-6)).clamp(max=1)
            for param, grad_ in zip(params, grads, strict=True):
                param.grad = grad_ * factor if math.isfinite(mine.clip) else grad_
            optimizer.step()
            for state in optimizer.state.values():  # it writes into what its own graph saved
                state.update({key: value.clone() for key, value in state.items() if key == "momentum_buffer"})
        ends.append(torch.cat(params))
    end = torch.stack(ends)
    wanted = torch.autograd.grad((end**2 * AIMS).sum() + end.sum(), [start, *slopes])
    found = grad(outer(name), argnums=(0, 1))(START, RATES)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1].lr.squeeze(1), torch.stack(wanted[1:]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", NAMES)
def test_dead_parameters_leave_derivatives_finite(name: str, dtype: torch.dtype) -> None:
    """A row whose gradient is exactly 0, dead columns in the other, no decay: all orders, both modes."""
    alive = torch.zeros(2, 17, dtype=torch.bool)
    alive[0, :9] = True
    rates = Rates(*(rate.to(dtype) for rate in RATES._replace(decay=torch.zeros(2, 1), clip=column(0.4, 0.4))))

    def loss(params: Tensor) -> Tensor:
        return torch.where(alive, torch.sin(params), 0.0).sum()

    start, still = START.to(dtype), torch.zeros(2, 1)  # of a decay of 0 there is a derivative
    for numbers in (rates, rates._replace(clip=torch.full_like(rates.clip, math.inf))):
        function = outer(name, loss)
        slope, by_rates = grad(function, argnums=(0, 1))(start, numbers)
        untouched = (2 * start * AIMS + 1).to(dtype)
        torch.testing.assert_close(slope[~alive], untouched[~alive])
        assert all(rate[1] == 0 for rate in by_rates._replace(decay=still))
        tangents = Rates(*(torch.ones_like(rate) for rate in numbers))
        once = jvp(function, (start, numbers), (torch.ones_like(start), tangents))
        twice = jvp(grad(function, argnums=(0, 1)), (start, numbers), (torch.ones_like(start), tangents))
        back = grad(lambda params: grad(outer(name, loss))(params, numbers).sum())(start)  # noqa: B023
        leaves = [*once, *twice[0][1], twice[0][0], *twice[1][1], twice[1][0], back, *by_rates]
        assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_second_moment_that_faded_away_leaves_derivatives_finite(dtype: torch.dtype) -> None:
    """It halts at the smallest numbers there are, where a root's curvature is infinite."""
    rates, adam = Rates(*(rate.to(dtype) for rate in RATES)), find_optimizer("adam")
    least = 2.0 ** (-149 if dtype is torch.float32 else -1074)
    faded = torch.tensor([1e-3, 3 * least], dtype=dtype).reshape(1, 2, 1).expand(2, 2, 17)

    def step(grads: Tensor) -> Tensor:
        return adam.update(grads, torch.zeros_like(grads), faded, STEPS + 9, rates, None)[0].sum()

    still = torch.zeros(2, 17, dtype=dtype)
    for order in (grad(step), grad(lambda grads: grad(step)(grads).sum())):
        assert bool(torch.isfinite(order(still)).all())
    assert bool(torch.isfinite(jvp(grad(step), (still,), (torch.ones_like(still),))[1]).all())


@pytest.mark.parametrize("limit", [0.0, 0.5, 100.0, math.inf])
def test_clipping_is_torchs_and_smooth_at_zero(limit: float) -> None:
    grads = torch.cat([START, torch.zeros(1, 17, dtype=F64)])
    limits = torch.full((1, 1), limit, dtype=F64)
    clipped, norms = clip_rows(grads, limits)
    for row, norm, wanted in zip(clipped, norms, grads, strict=True):
        leaf = nn.Parameter(torch.zeros(17, dtype=F64))
        leaf.grad = wanted.clone()
        torch.testing.assert_close(norm, clip_grad_norm_([leaf], limit), rtol=1e-15, atol=0)
        torch.testing.assert_close(row, leaf.grad, rtol=1e-15, atol=0)

    def total(grads: Tensor, limits: Tensor) -> Tensor:
        return (clip_rows(grads, limits)[0] ** 2 * (1 + SLOPES[0])).sum() + clip_rows(grads, limits)[1].sum()

    first = grad(total, argnums=(0, 1))(grads, limits)
    torch.testing.assert_close(first[0][:2], central(lambda x: total(x, limits), grads).reshape(3, 17)[:2])
    second = jvp(grad(total, argnums=(0, 1)), (grads, limits), (torch.ones_like(grads), torch.ones_like(limits)))[1]
    assert all(bool(torch.isfinite(leaf).all()) for leaf in (*first, *second))


def test_what_is_not_finite_stays_visible() -> None:
    """A NaN reaches the parameters of its row and of no other."""
    grads = torch.stack([torch.full((17,), math.nan, dtype=F64), START[1]])
    for name in NAMES:
        params, moments, _ = train(find_optimizer(name), START, grads.unsqueeze(0), RATES)
        assert bool(params[0].isnan().all() & moments[0].isnan().all() & params[1].isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_populations_is_each_alone(name: str) -> None:
    starts = torch.stack([START, 2 * START, -START])
    together = vmap(grad(outer(name)), in_dims=(0, None))(starts, RATES)
    alone = torch.stack([grad(outer(name))(start, RATES) for start in starts])
    torch.testing.assert_close(together, alone)
