"""Timing and counting, against numpy, known counts and known sizes."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.bench.measure import SHORTEST, interleave, loops_for, percentile
from esper.bench.meter import compilations, count_waits, count_work
from esper.utils import resident

CPU = torch.device("cpu")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_percentiles_are_numpys(values, share):
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), rel=1e-12, abs=1e-9)


def test_repeats_of_all_runs_are_interleaved_and_the_long_ones_stop_early():
    """Turn by turn, in alternating order; a capped run takes part in the first turns only, once per turn."""
    calls, turns = [], []

    def run(name):
        def call():
            calls.append(name)
            end = time.perf_counter() + (0.0 if name == "c" else SHORTEST)
            while time.perf_counter() < end:
                pass

        return call

    seconds = interleave([(run("a"), 0), (run("b"), 0), (run("c"), 2)], 3, CPU, turns.append)
    assert turns == [0, 1, 2, 3]
    assert calls == ["a", "b", *"abc", *"cba", *"ab"]
    assert [len(column) for column in seconds] == [3, 3, 2]
    assert all(value >= SHORTEST for column in seconds[:2] for value in column)


@given(st.floats(1e-7, 10))
def test_short_runs_are_repeated_until_a_timing_is_long_enough(seconds):
    loops = loops_for(seconds)
    assert loops * seconds >= SHORTEST * (1 - 1e-9) and (loops == 1 or (loops - 1) * seconds < SHORTEST)


READS = {
    "item": (lambda x: x[0].item(), 1),
    "bool": (lambda x: bool(x[0] > 0), 1),
    "float": (lambda x: float(x[1]), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "numpy": (lambda x: x.numpy(), 1),
    "asarray": (lambda x: np.asarray(x), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "cpu, then read": (lambda x: (x.cpu().numpy(), x.cpu().tolist()), 2),
    "boolean index": (lambda x: x[x > 2], 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "unique": (lambda x: torch.unique(x), 1),
    "arithmetic": (lambda x: (x.sum(), x.argmax(), torch.where(x > 1, x, 0.0), x.var(), x[torch.tensor([1])]), 0),
    "gradient": (lambda x: x.clone().requires_grad_().square().sum().backward(), 0),
}


@pytest.mark.parametrize("name", READS)
def test_every_value_that_leaves_a_tensor_is_counted_once(name):
    run, expected = READS[name]
    assert count_waits(lambda: run(torch.arange(6.0)), CPU) == expected


def test_counting_leaves_tensors_as_they_were():
    with pytest.raises(ZeroDivisionError):
        count_waits(lambda: 1 // 0, CPU)
    assert not {"cpu", "numpy", "tolist"} & set(vars(torch.Tensor))


def test_operators_and_bytes_are_counted_by_hand():
    """Three additions of 1,000 float32 each, kept or not; an operator that calls another counts for both."""
    x, kept = torch.ones(1000), []
    add = count_work(lambda: x + x, CPU)
    three = count_work(lambda: [kept.append(x + x) for _ in range(3)], CPU)
    assert (add.waits, add.launches, add.bytes) == (0, 1, 4000)
    assert (three.waits, three.launches, three.bytes) == (0, 3, 3 * 4000)
    assert count_work(lambda: torch.zeros(8), CPU).launches == 3  # zeros, and within it empty and zero_
    assert count_work(lambda: None, CPU) == (0, 0, 0)


def test_compilations_are_counted():
    """A first size, a second one, and one that was seen before."""
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", dynamic=False, fullgraph=True)
    counts = []
    for size in (3, 4, 3):
        with compilations() as found:
            compiled(torch.ones(size))
        counts.append(found[0])
    assert counts == [1, 1, 0]


def test_the_peak_starts_anew_and_sees_what_was_freed():
    size = 1 << 26
    resident.restart_peak(CPU)
    before = resident.held(CPU)
    torch.ones(size // 4).sum()
    assert 0.9 * size <= resident.peak(CPU) - before <= 1.2 * size
    resident.restart_peak(CPU)
    assert resident.peak(CPU) - before <= 0.2 * size
