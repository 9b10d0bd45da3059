"""The loss around a point against dense Hessians and losses that are computed one after the other."""

import numpy as np
import torch
from torch import nn

from esper.nissa.loss_landscape import curvature, hessian_product, sharpness
from esper.utils import rng

SIZES = ((6, 5), (6,), (3, 6), (3,))
"""Tensors of a network of 5 inputs, 6 hidden units and 3 outputs."""

NUMBERS = sum(int(np.prod(shape)) for shape in SIZES)


def problem(count, dtype=torch.float64):
    """A small classifier for every row of parameters: loss [n, P] -> [n], parameters, samples."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 5, generator=generator, dtype=dtype)
    targets = torch.randint(3, (20,), generator=generator)
    params = 0.7 * torch.randn(count, NUMBERS, generator=generator, dtype=dtype)

    def loss(rows):
        parts = rows.split([int(np.prod(shape)) for shape in SIZES], dim=1)
        first, bias, second, shift = (part.unflatten(1, shape) for part, shape in zip(parts, SIZES, strict=True))
        hidden = torch.tanh(torch.einsum("bi,nhi->nbh", inputs, first) + bias.unsqueeze(1))
        logits = torch.einsum("nbh,noh->nbo", hidden, second) + shift.unsqueeze(1)
        return -logits.log_softmax(2)[:, torch.arange(20), targets].mean(1)

    return loss, params, (inputs, targets)


def network_of(row):
    """The same network by torch.nn, of one row."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    nn.utils.vector_to_parameters(row, network.parameters())
    return network


def dense_hessian(row, samples):
    """By torch.autograd over torch.nn, column by column: no part of it is shared with what is tested."""
    network = network_of(row)
    params = list(network.parameters())
    found = nn.functional.cross_entropy(network(samples[0]), samples[1])
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(found, params, create_graph=True)])
    rows = [torch.autograd.grad(number, params, retain_graph=True) for number in flat]
    return torch.stack([torch.cat([part.flatten() for part in each]) for each in rows]).detach()


def test_products_are_those_of_dense_hessians():
    loss, params, samples = problem(4)
    vectors = torch.randn(4, NUMBERS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = hessian_product(loss, params, vectors)
    for env in range(4):
        expected = dense_hessian(params[env], samples) @ vectors[env]
        assert torch.allclose(found[env], expected, rtol=1e-9, atol=1e-12)


def test_the_top_eigenvalue_is_that_of_the_dense_hessian():
    loss, params, samples = problem(4)
    found = curvature(loss, params, rng.key(3), 400)
    for env in range(4):
        values = np.linalg.eigvalsh(dense_hessian(params[env], samples).numpy())
        largest = values[np.abs(values).argmax()]
        assert abs(float(found.eigenvalue[env]) - largest) < 1e-6 * abs(largest)
        assert float(found.residual[env]) < 1e-3


def test_a_residual_bounds_the_error():
    """Of a symmetric matrix some eigenvalue lies within |H v - e v| of the Rayleigh quotient e."""
    loss, params, samples = problem(4)
    for steps in (1, 2, 5, 20):
        found = curvature(loss, params, rng.key(3), steps)
        for env in range(4):
            values = np.linalg.eigvalsh(dense_hessian(params[env], samples).numpy())
            value = float(found.eigenvalue[env])
            assert np.abs(values - value).min() <= float(found.residual[env]) * abs(value) * (1 + 1e-9)


def test_a_negative_curvature_and_none_at_all():
    signs = torch.tensor([[1.0, -3.0, 2.0]], dtype=torch.float64)
    found = curvature(lambda rows: (signs * rows.square()).sum(1) / 2, torch.zeros_like(signs), rng.key(0), 200)
    assert abs(found.eigenvalue.item() + 3) < 1e-9
    flat = curvature(lambda rows: rows.sum(1), torch.zeros(2, 3), rng.key(0), 3)
    assert flat.eigenvalue.tolist() == [0, 0] and flat.residual.tolist() == [0, 0]


def test_sharpness_is_the_mean_over_directions_taken_one_by_one():
    loss, params, samples = problem(3)
    key, directions, scale = rng.key(5), 7, 0.01
    found = sharpness(loss, params, key, directions, scale)
    noise = rng.normal(rng.fold_in(key, torch.arange(directions)), tuple(params.shape), params.dtype)
    for env in range(3):
        here = nn.functional.cross_entropy(network_of(params[env])(samples[0]), samples[1])
        changes = []
        for step in noise[:, env]:
            there = nn.functional.cross_entropy(network_of(params[env] + scale * step)(samples[0]), samples[1])
            changes.append(abs((there - here).item()))
        assert np.isclose(float(found[env]), sum(changes) / len(changes) / scale, rtol=1e-9)


def test_sharpness_is_that_of_the_dense_hessian_at_a_minimum():
    """At a point without gradient, |loss(w + s z) - loss(w)| / s is s z' H z / 2 but for terms of higher order."""
    matrix = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    hessian = matrix @ matrix.mT
    point, key, scale = torch.zeros(2, 6, dtype=torch.float64), rng.key(8), 0.01

    def loss(rows):
        return torch.einsum("ni,nij,nj->n", rows, hessian, rows) / 2

    found = sharpness(loss, point, key, 10, scale)
    noise = rng.normal(rng.fold_in(key, torch.arange(10)), (2, 6), torch.float64).numpy()
    for env in range(2):
        values, vectors = np.linalg.eigh(hessian[env].numpy())
        forms = [float((values * (vectors.T @ step) ** 2).sum()) for step in noise[:, env]]
        assert np.isclose(float(found[env]), scale * sum(forms) / 20, rtol=1e-9)


def test_networks_do_not_influence_each_other():
    loss, params, _ = problem(4)
    whole, changed = sharpness(loss, params, rng.key(1), 4, 0.01), params.clone()
    changed[1:] *= 3
    assert sharpness(loss, changed, rng.key(1), 4, 0.01)[0] == whole[0]
