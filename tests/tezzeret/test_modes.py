"""Modes of torch around a step: inference mode, autograd off, and another default dtype change no bit of it."""

from contextlib import contextmanager

import pytest
import torch

import esper
from esper.leyline.config import Precision
from esper.simic.rewards import RewardMode, build_reward_params, reward

E, LENGTH = 4, 7
BACKENDS = ("eager", "native", "oracle")


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors(value, path=""):
    if torch.is_tensor(value):
        yield path, value
    elif isinstance(value, tuple):
        for name, part in zip(value._fields, value, strict=True):
            yield from tensors(part, f"{path}.{name}")


def everything(engine, states, actions):
    """All that an engine says of a walk's last step."""
    state = states[-2]
    after, event = engine.step(state, actions[-1])
    found = {str(path): leaf for path, leaf in after.items(include_nested=True, leaves_only=True)}
    found |= {f"event{path}": leaf for path, leaf in tensors(event)}
    found |= {"observation": engine.observe(after), "mask": engine.mask(after)}
    renewed = engine.reset(after, torch.arange(E) % 2 == 0, 5)
    found |= {f"reset {path}": leaf for path, leaf in renewed.items(include_nested=True, leaves_only=True)}
    numbers = build_reward_params({}, engine.config)
    for mode in RewardMode:
        earned = reward(mode, numbers, engine.structure, state, after, event)
        found |= {f"{mode.value} {name}": value for name, value in earned.terms.items()}
    return found


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name].nan_to_num(), value.nan_to_num()), name


@pytest.fixture(scope="module", params=BACKENDS)
def build(request, small_task):
    return lambda: esper.make(small_task, E, backend=request.param, crop_padding=1, mirror=True)


@pytest.fixture(scope="module")
def usual(build, walk):
    engine = build()
    states, actions = walk(engine, 3, LENGTH)
    assert len(states[-2].slots.stage.unique()) >= 4
    return engine, states, everything(engine, states, actions)


@pytest.mark.parametrize(("mode", "made_inside"), [(torch.inference_mode, True), (torch.no_grad, False)])
def test_a_run_without_autograd(build, walk, usual, mode, made_inside):
    engine = usual[0]
    with mode():
        engine = build() if made_inside else engine
        assert_same(everything(engine, *walk(engine, 3, LENGTH)), usual[2])
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


def test_states_cross_the_border_of_inference_mode(walk, usual):
    engine, states, _ = usual
    with torch.inference_mode():
        inside, _ = walk(engine, 3, 3)
    outside, _ = walk(engine, 3, 2, inside[-1])
    with torch.inference_mode():
        again, _ = walk(engine, 3, 2, outside[-1])
    assert inside[-1].host.params.is_inference()
    for path, leaf in again[-1].items(include_nested=True, leaves_only=True):
        assert torch.equal(leaf, states[LENGTH].get(path)), path


def test_another_default_dtype(build, walk, usual):
    with default_dtype(torch.float64):
        engine = build()
        assert_same(everything(engine, *walk(engine, 3, LENGTH)), usual[2])
        states, actions = usual[1], [torch.zeros(E, dtype=torch.int64)]
        inside = everything(usual[0], states, actions)
    assert_same(inside, everything(usual[0], states, actions))


def test_another_default_dtype_and_float64(small_task, walk):
    def run():
        engine = esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64)
        return everything(engine, *walk(engine, 3, LENGTH))

    plain = run()
    with default_dtype(torch.float64):
        assert_same(run(), plain)
