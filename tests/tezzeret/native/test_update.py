"""The optimizer kernel against torch.optim and clip_grad_norm_ in float64, row by row; and what a row may depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from esper.tezzeret.native.library import library
from esper.tezzeret.native.update import Update, update_rows
from esper.utils import rng

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

LR, DECAY, CLIP, MOMENTUM, BETA1, BETA2, EPSILON = range(7)


def rates_of(key: Tensor, owners: int) -> list[Tensor]:
    """Numbers of every owner: [m, 1]; clipping bites for some."""
    low_high = [(0.01, 0.2), (0.0, 0.1), (0.5, 9.0), (0.0, 0.95), (0.5, 0.95), (0.9, 0.999), (1e-8, 1e-3)]
    keys = rng.split(key, 7)
    return [rng.uniform(k, (owners, 1), low, high) for k, (low, high) in zip(keys, low_high, strict=True)]


def stock(rule: str, leaf: list[nn.Parameter], mine: list[float]) -> torch.optim.Optimizer:
    """The optimizer of torch; the second leaf does not decay."""
    groups = [{"params": [part], "weight_decay": decay} for part, decay in zip(leaf, (mine[DECAY], 0.0), strict=False)]
    if rule == "sgd":
        return torch.optim.SGD(groups, mine[LR], mine[MOMENTUM])
    made = torch.optim.Adam if rule == "adam" else torch.optim.AdamW
    return made(groups, mine[LR], (mine[BETA1], mine[BETA2]), mine[EPSILON])


def by_torch(params: Tensor, grads: Tensor, rates: list[Tensor], owners: Tensor, rule: str, decays: int) -> Tensor:
    """Some steps of every row by its own stock optimizer, float64; grads [steps, n, P]; the first columns decay."""
    rows = []
    for row, owner in enumerate(owners.tolist()):
        mine = [float(rate[owner % rate.shape[0]].double()) for rate in rates]
        leaves = [nn.Parameter(part.clone()) for part in (params[row, :decays].double(), params[row, decays:].double())]
        step = stock(rule, leaves, mine)
        for grad in grads[:, row].double():
            leaves[0].grad, leaves[1].grad = grad[:decays].clone(), grad[decays:].clone()
            clip_grad_norm_(leaves, mine[CLIP])
            step.step()
        rows.append(torch.cat([leaf.detach() for leaf in leaves]))
    return torch.stack(rows)


def by_kernel(
    params: Tensor,
    grads: Tensor,
    rates: list[Tensor],
    owners: Tensor | None,
    rule: str,
    decays: Tensor | None = None,
) -> Tensor:
    moments = params.new_zeros(params.shape[0], 1 if rule == "sgd" else 2, params.shape[1])
    steps = torch.zeros(params.shape[0], dtype=torch.int64)
    for grad in grads:
        steps = steps + 1
        params, moments = update_rows(Update(rule, params, moments, steps, rates, owners, decays), grad)
    return params


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 6),
    st.sampled_from(["sgd", "adam", "adamw"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_equals_torch(n: int, width: int, steps: int, rule: str, shared: bool, seed: int) -> None:
    """AdamW with columns that do not decay."""
    keys = rng.split(rng.key(seed), 4)
    params, grads = rng.normal(keys[0], (n, width)), rng.normal(keys[1], (steps, n, width))
    owners = (rng.uniform(keys[2], (n,)) * 5).long()
    rates, decays = rates_of(keys[3], 1 if shared else 5), seed % (width + 1) if rule == "adamw" else width
    mask = torch.arange(width) < decays
    mask = mask.expand(n, -1).contiguous() if seed % 2 else mask
    found = by_kernel(params, grads, rates, owners, rule, mask if decays < width else None)
    wanted = by_torch(params, grads, rates, owners, rule, decays)
    # float32 rounding of numbers near 1, and of Adam's division by small roots
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=5e-6 if rule == "sgd" else 2e-5)


def test_without_owners_every_row_has_its_own_numbers() -> None:
    keys = rng.split(rng.key(1), 3)
    params, grads, rates = rng.normal(keys[0], (5, 33)), rng.normal(keys[1], (3, 5, 33)), rates_of(keys[2], 5)
    assert torch.equal(
        by_kernel(params, grads, rates, None, "adam"), by_kernel(params, grads, rates, torch.arange(5), "adam")
    )


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_a_row_depends_on_nothing_else(rule: str) -> None:
    """Not on others, their number, threads, the distance of rows, nor a neighbour that is not finite: to the bit."""
    keys = rng.split(rng.key(2), 3)
    wide, grads, rates = rng.normal(keys[0], (700, 90)), rng.normal(keys[1], (2, 700, 80)), rates_of(keys[2], 1)
    params = wide[:, 5:85]
    together = by_kernel(params, grads, rates, None, rule)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(by_kernel(params.contiguous(), grads, rates, None, rule), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(by_kernel(params[7:8], grads[:, 7:8], rates, None, rule), together[7:8])
    grads[0, 3, 4], grads[0, 9, 4] = torch.nan, torch.inf
    poisoned = by_kernel(params, grads, rates, None, rule)
    assert poisoned[3].isnan().all() and poisoned[9, 4].isnan()  # a norm of inf clips the others to 0, as in torch
    others = [row for row in range(700) if row not in (3, 9)]
    assert torch.equal(poisoned[others], together[others])


def test_no_clipping_at_infinity_and_zeros_stay_zero() -> None:
    keys = rng.split(rng.key(3), 2)
    params, grads = rng.normal(keys[0], (4, 20)), 1e6 * rng.normal(keys[1], (1, 4, 20))
    params[:, 12:], grads[..., 12:] = 0, 0
    rates = [torch.full((1, 1), v) for v in (0.1, 0.01, torch.inf, 0.9, 0.9, 0.999, 1e-8)]
    found = by_kernel(params, grads, rates, None, "sgd")
    torch.testing.assert_close(found, params - 0.1 * (grads[0] + 0.01 * params), rtol=1e-6, atol=1e-6)
    for rule in ("sgd", "adam"):
        assert not by_kernel(params, grads, rates, None, rule)[:, 12:].any()


def test_inputs_keep_their_bits() -> None:
    keys = rng.split(rng.key(4), 3)
    params, grad, rates = rng.normal(keys[0], (3, 8)), rng.normal(keys[1], (3, 8)), rates_of(keys[2], 3)
    moments, steps = torch.ones(3, 2, 8), torch.ones(3, dtype=torch.int64)
    before = [t.clone() for t in (params, moments, grad, steps, *rates)]
    update_rows(Update("adam", params, moments, steps, rates, None, None), grad)
    for old, new in zip(before, (params, moments, grad, steps, *rates), strict=True):
        assert torch.equal(old, new)
