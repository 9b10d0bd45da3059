"""Measures of gradients and of classes against NumPy and plain Python."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from esper.nissa.class_measures import measure_classes
from esper.nissa.gradient_measures import host_health, measure_gradients, percentiles, seed_health

WANTED = (0.0, 1.0, 5.0, 10.0, 25.0, 33.3, 50.0, 75.0, 90.0, 95.0, 99.0, 100.0)


def draw(seed, *shape):
    """Gradients of many orders of magnitude, some exactly 0."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape) * 10.0 ** generator.integers(-9, 5, shape)
    return np.where(generator.random(shape) < 0.05, 0.0, values)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 101, 4096])
def test_percentiles_are_numpys(length):
    values = draw(length, 5, length)
    found = percentiles(torch.from_numpy(values), WANTED)
    assert np.array_equal(found.numpy(), np.percentile(values, WANTED, axis=1).T)
    single = values.astype(np.float32)
    expected = np.percentile(single, WANTED, axis=1).T
    assert np.allclose(percentiles(torch.from_numpy(single), WANTED).numpy(), expected, rtol=1e-6)


def test_percentiles_of_rows_that_are_not_finite():
    nan, inf = math.nan, math.inf
    values = np.array([[1.0, nan, 3.0], [1.0, inf, 2.0], [inf, inf, 0.0], [4.0, 4.0, 4.0]])
    expected = [[nan] * 4, [1.0, 1.8, 2.0, inf], [0.0, inf, inf, inf], [4.0] * 4]
    found = percentiles(torch.from_numpy(values), (0, 40, 50, 100)).numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    assert percentiles(torch.zeros(3, 2), ()).shape == (3, 0)


def by_hand(grads, sizes, wanted):
    """One network's gradients [k, P], in plain Python, element by element."""
    flat = [float(x) for row in grads for x in row]
    mean = math.fsum(flat) / len(flat)
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    tensors = [[[float(x) for x in row[a:b]] for row in grads] for a, b in pairwise(bounds)]

    def norm(rows):
        return math.fsum(math.sqrt(math.fsum(x * x for x in row)) for row in rows) / len(rows)

    def share(rows, test):
        elements = [x for row in rows for x in row]
        return sum(test(abs(x)) for x in elements) / len(elements)

    def small(x):
        return x < 1e-7

    def large(x):
        return x > 1e3

    return {
        "norm": norm(grads.tolist()),
        "mean": mean,
        "std": math.sqrt(math.fsum((x - mean) ** 2 for x in flat) / len(flat)),
        "vanishing": share([flat], small),
        "exploding": share([flat], large),
        "percentiles": list(np.percentile(np.abs(grads), wanted)),
        "tensor_norm": [norm(rows) for rows in tensors],
        "tensor_vanishing": [share(rows, small) for rows in tensors],
        "tensor_exploding": [share(rows, large) for rows in tensors],
    }


def test_every_measure_is_that_of_a_plain_reading():
    sizes, wanted = (3, 1, 7, 4), (1.0, 50.0, 99.0)
    grads = draw(7, 4, 6, sum(sizes))
    owners = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    found = measure_gradients(torch.from_numpy(grads), owners, len(sizes), wanted)
    for env in range(6):
        for name, value in by_hand(grads[:, env], sizes, wanted).items():
            assert np.allclose(getattr(found, name)[env].numpy(), value, rtol=1e-12), name


def test_environments_do_not_influence_each_other_and_half_types_are_widened():
    grads = torch.from_numpy(draw(3, 2, 5, 9)).float()
    owners = torch.arange(9) // 3
    whole = measure_gradients(grads, owners, 3, (50.0,))
    for env in range(5):
        alone = measure_gradients(grads[:, env : env + 1], owners, 3, (50.0,))
        for one, other in zip(alone, whole, strict=True):
            assert torch.allclose(one[0], other[env], rtol=1e-6)
    halves = grads.clamp(-1, 1).bfloat16()
    assert measure_gradients(halves, owners, 3).norm.dtype == torch.float32
    assert torch.equal(measure_gradients(halves, owners, 3).norm, measure_gradients(halves.float(), owners, 3).norm)


def test_without_parameters_nothing_is_wrong():
    found = measure_gradients(torch.zeros(2, 3, 0), torch.zeros(0, dtype=torch.int64), 0, (1.0, 2.0))
    assert found.percentiles.shape == (3, 2) and not any(bool(column.any()) for column in found)
    assert seed_health(found).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((1.0, 1.0, 1.0), 1.0),
        ((1e-9, 1.0, 1.0), 0.8),  # a tensor vanishes
        ((1e-9, 1e-9, 1e-9), 1 - 3 * 0.2 - 0.3),  # all do, and the mean norm is below 1e-5
        ((1e-6, 1e-6, 1e-6), 0.7),  # none vanishes, the mean norm does
        ((9.0, 1.0, 1.0), 0.9),  # norms 18, 2, 2: their variance is above 10
        ((2e3, 1.0, 1.0), 1 - 0.3 - 0.1 - 0.2),  # one explodes
        ((2e3, 2e3, 2e3), 0.0),
        ((math.nan, 1.0, 1.0), 0.0),
        ((math.inf, 1.0, 1.0), 0.0),
    ],
)
def test_health_of_hosts_by_its_rules(scales, expected):
    grads = torch.tensor([scale for scale in scales for _ in range(4)], dtype=torch.float64).reshape(1, 1, 12)
    found = measure_gradients(grads, torch.arange(12) // 4, 3)
    assert host_health(found).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [((1.0, 1.0), 1.0), ((0.0, 1.0), 0.75), ((60.0, 1.0), 0.6), ((0.0, 60.0), 0.35), ((math.nan, 1.0), 0.0)],
)
def test_health_of_seeds_by_its_rules(scales, expected):
    grads = torch.tensor([scale for scale in scales for _ in range(4)]).reshape(1, 1, 8)
    assert seed_health(measure_gradients(grads, torch.arange(8) // 4, 2)).item() == pytest.approx(expected)


def test_classes_are_measured_as_numpy_does():
    accuracy = np.random.default_rng(0).random((7, 5)) * 100
    present = np.array([True, True, False, True, True])
    accuracy[:, 2] = 0.0
    found = measure_classes(torch.from_numpy(accuracy), torch.from_numpy(present))
    held = accuracy[:, present]
    assert np.allclose(found.accuracy.numpy()[present], held.mean(0)) and found.accuracy[2] == 0
    assert np.allclose(found.variance.numpy(), held.var(1))
    assert np.array_equal(found.worst.numpy(), held.min(1))
    assert np.allclose(found.gap.numpy(), held.max(1) - held.min(1))
