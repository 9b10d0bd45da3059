"""Minibatches in parts: the oracle's step of the whole minibatch, where no part has statistics of its own."""

import importlib.util
from pathlib import Path

import pytest
import torch

import esper
from esper.leyline.config import ConfigError, Precision
from esper.tezzeret.backend import BackendError
from esper.utils import rng

E, STEPS = 3, 4
SPEC = importlib.util.spec_from_file_location("mlp_host", Path(__file__).parents[1] / "kasmina" / "mlp_host.py")
assert SPEC is not None and SPEC.loader is not None
mlp = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mlp)


def walked(backend, accumulate, seed, dtype=Precision.FLOAT64):
    """The state after some legal steps at random; of every step, what was seen."""
    engine = esper.make(mlp.mlp_task(), E, backend=backend, precision=dtype, accumulate=accumulate)
    state, seen = engine.init(seed), []
    for step in range(STEPS):
        keys = rng.fold_in(rng.key(seed), torch.arange(E), step)
        action = rng.categorical(keys, torch.where(engine.mask(state), 0.0, -torch.inf))
        state, event = engine.step(state, action)
        seen.append(event.epoch.loss)
    return state, torch.stack(seen)


@pytest.mark.parametrize("accumulate", [2, 16])
@pytest.mark.parametrize("seed", [3])
def test_parts_of_a_minibatch_make_the_step_of_the_whole(accumulate, seed):
    whole, expected = walked("oracle", 1, seed)
    parts, found = walked("eager", accumulate, seed)
    assert (whole.slots.stage == parts.slots.stage).all() and (whole.slots.stage > 1).any()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for name in ("host", "seeds"):
        for field in ("params", "moments"):
            one, other = (getattr(getattr(state, name), field) for state in (parts, whole))
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_batch_statistics_are_those_of_a_part(small_task):
    """So there the step is another one, and running statistics move once for every part."""
    found = []
    for accumulate in (1, 2):
        engine = esper.make(small_task, 2, backend="eager", precision=Precision.FLOAT64, accumulate=accumulate)
        found.append(engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))[0])
    one, two = found
    assert not torch.allclose(one.buffers, two.buffers) and not torch.allclose(one.host.params, two.host.params)


def test_what_cannot_be_cut_or_is_not_done_in_parts_says_so():
    with pytest.raises(ConfigError, match=r"config.accumulate = 3: expected a divisor of batch_size 16"):
        walked("eager", 3, 0)
    for backend in ("native", "oracle"):
        with pytest.raises(BackendError, match=f"backend '{backend}': .*accumulate = 2; expected 1"):
            walked(backend, 2, 0, Precision.FLOAT32)
