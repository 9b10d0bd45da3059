"""Kernels counted in what Inductor writes: of functions whose kernels are known, and of a minibatch of ``digits_v1``.

The minibatch takes minutes: ``pytest -m large tests/test_bench_kernel_counts.py``.
"""

import pytest
import torch

import esper
from esper.runtime.tasks import named
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor.compiled import compiled

MOST = 260
"""Functions and library calls of a minibatch of ``digits_v1``, its optimizer included."""

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(find_compiler() is None, reason="Inductor needs a C++ compiler on a CPU"),
]


@pytest.fixture(scope="module")
def counts(bench_module):
    return bench_module("kernel_counts")


X, W = torch.arange(12.0).reshape(3, 4), torch.ones(4, 5)

KNOWN = {
    "a product, and what follows in one loop": (
        lambda: compiled(lambda x, w: torch.relu(x @ w) + 1)(X, W),
        (1, 1, 1, 0),
    ),
    "two products between three loops": (
        lambda: compiled(lambda x, w: (torch.exp(torch.sin(x) @ w).cos() @ w.T).tanh())(X, W),
        (3, 2, 3, 0),
    ),
    "loops side by side": (lambda: compiled(lambda x, w: (x + 1, w.sum(0)))(X, W), (1, 0, 2, 0)),
    "a copy": (lambda: compiled(lambda x, w: x[1:].clone())(X, W), (1, 0, 1, 1)),
}


@pytest.mark.parametrize(("run", "expected"), KNOWN.values(), ids=KNOWN)
def test_kernels_of_known_functions(counts, run, expected):
    found = counts.counted(run)
    assert found == expected and found.launched == sum(expected[:2])


def test_what_compiles_nothing_is_no_graph(counts):
    with pytest.raises(RuntimeError, match="0 graphs were written; expected 1"):
        counts.counted(lambda: X + 1)


@pytest.mark.large
def test_a_minibatch_of_digits_v1_has_few_kernels(counts):
    engine = esper.make(named("digits_v1"), 16, backend="eager")
    assert counts.counted(counts.graphs_of(engine)["minibatch"]).launched <= MOST
