"""What surrounds the networks in a step is traced by torch.compile as one graph each, and gives the same bits."""

import pytest
import torch

import esper
from esper.kasmina import lifecycle, metrics
from esper.runtime import debug
from esper.simic.environment import EsperEnv
from esper.simic.rewards import reward
from esper.tolaria.governor import govern
from esper.tolaria.signals import update_signals
from esper.utils.tree import leaves_of

ENVS = 6


@pytest.fixture(scope="module")
def parts(small_task, walk):
    """Name -> a function of tensors, and its arguments in the middle of an episode."""
    env = EsperEnv(esper.make(small_task, ENVS, backend="eager", snapshot_epochs=1))
    engine = env.engine
    states, actions = walk(engine, 3, 6)
    structure, config, hypers = engine.structure, engine.config, engine.hypers
    state, action = states[-2], actions[-1]
    after, event = engine.step(state, action)
    slots, _ = lifecycle.apply_action(structure, hypers, state.slots, action, state.signals.val_accuracy)
    epoch, evaluation, rolled_back = event.epoch, event.evaluation, event.judgement.rolled_back
    accuracy, known = state.signals.val_accuracy, state.replace(slots=slots)
    return {
        "mask": (engine.mask, (state,)),
        "decide": (lambda *given: lifecycle.apply_action(structure, hypers, *given), (state.slots, action, accuracy)),
        "record": (lambda *given: metrics.record(hypers, *given), (slots, epoch, evaluation)),
        "tick": (lambda *given: lifecycle.tick(config, hypers, *given), (slots, evaluation.accuracy)),
        "govern": (lambda s, *given: govern(structure, hypers, s, True, *given), (known, epoch, evaluation)),
        "signals": (lambda *given: update_signals(hypers, *given), (state.signals, epoch, evaluation, rolled_back)),
        "observe": (engine.observe, (after,)),
        "reward": (lambda *given: reward(env.mode, env.params, structure, *given), (state, after, event)),
    }


def tensors(tree):
    """All tensors of nested tuples and TensorDicts, in order."""
    for leaf in leaves_of(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        else:
            yield from dict(sorted(leaf.flatten_keys(".").items())).values()


NAMES = ("mask", "decide", "record", "tick", "govern", "signals", "observe", "reward")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_graph(parts, name):
    """``fullgraph`` raises where tracing would have to stop: at a value that is looked at, for one."""
    function, given = parts[name]
    with debug.watching(False):
        traced = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)(*given)
        plain = function(*given)
    both = list(zip(tensors(traced), tensors(plain), strict=True))
    assert both and all(torch.equal(found, wanted) or _same_floats(found, wanted) for found, wanted in both)


def _same_floats(found, wanted):
    return found.is_floating_point() and torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))
