"""Compiled end to end: the same numbers as eager, and no recompilation whatever the plan."""

import logging
from dataclasses import replace

import pytest
import torch

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import ATTENTION, CONV_LIGHT
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError, Precision
from esper.leyline.stages import ACTIVE
from esper.runtime.compilation import resolve_compile, warm_up
from esper.tolaria import data
from esper.utils import rng

CPU = torch.device("cpu")


def any_legal(engine, state, seed):
    """A uniformly random legal action per environment."""
    mask = engine.mask(state)
    keys = rng.fold_in(rng.key(seed), torch.arange(mask.shape[0]), state.rounds)
    return rng.categorical(keys, torch.where(mask, 0.0, -torch.inf))


@pytest.fixture(scope="module")
def pair():
    """The same task eager and compiled, every unit compiled beforehand."""
    dataset = data.synthetic((1, 6, 6), num_classes=3, num_train=40, num_val=20, noise=0.5)
    task = esper.Task(
        "tiny",
        cnn_host((1, 6, 6), 3, num_blocks=1, base_channels=4),
        (CONV_LIGHT, ATTENTION),
        dataset,
        {
            "slots": (0, 0),
            "blends": (Blend.SIGMOID, Blend.GATED),
            "batch_size": 5,
            "steps_per_epoch": 2,
            "precision": Precision.FLOAT64,
            "min_training_epochs": 1,
            "min_improvement": -100.0,
            "min_gradient_ratio": 0.0,
            "embargo_epochs": 0,
        },
    )
    eager, compiled = (esper.make(task, 4, compile=mode) for mode in (False, True))
    warm_up(compiled.network, compiled.data)
    return eager, compiled


@pytest.mark.compiled
def test_compiled_equals_eager_and_never_recompiles(pair):
    """Over a random walk: relative error 1e-9 in float64; other plans, hyperparameters and data compile nothing."""
    eager, compiled = pair
    state, groups = compiled.init(1), set()
    other = compiled.data._replace(train_inputs=compiled.data.train_inputs.flip(0) * 0.5)
    sweep = torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64)
    with torch.compiler.set_stance("fail_on_recompile"):
        for turn in range(14):
            if turn == 7:
                hypers = compiled.hypers.replace(host_lr=sweep, blend_epochs=sweep * 0 + 3)
                eager, compiled = (replace(engine, data=other, hypers=hypers) for engine in (eager, compiled))
            action = any_legal(eager, state, 9)
            ours, event = compiled.step(state, action)
            theirs, expected = eager.step(state, action)
            for key, leaf in ours.items(True, True):
                torch.testing.assert_close(
                    leaf, theirs.get(key), rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
                )
            torch.testing.assert_close(event.evaluation.effect, expected.evaluation.effect, rtol=1e-9, atol=1e-9)
            active = torch.isin(ours.slots.stage, torch.tensor([int(s) for s in ACTIVE]))
            groups.add(tuple(((ours.slots.blueprint == k) & active).sum().item() for k in range(2)))
            state = ours
    assert len(groups) >= 5, "the walk must pass through different plans"
    assert any(1 in sizes for sizes in groups), "a group of one row must occur"


def test_without_a_compiler_auto_is_eager_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING, logger="esper"):
        assert resolve_compile("auto", CPU) is False
    assert len(caplog.records) == 1 and "\n" not in caplog.text.strip()
    with pytest.raises(ConfigError, match=r"compile = True: .*C\+\+ compiler"):
        resolve_compile(True, CPU)
    with pytest.raises(ConfigError, match="compile = 'yes': expected"):
        resolve_compile("yes", CPU)
    assert resolve_compile(False, CPU) is False
