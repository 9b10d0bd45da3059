"""Every public operation is told as an event of its own on success, and another on failure; the operations are taken
from the package's own list of public names.
"""

import threading
from types import FunctionType

import pytest
import torch
from torch import nn

import esper
from esper.nissa.event_record import KINDS, OCCURRENCES, OPERATIONS, OUTCOMES, event, occurrence
from esper.nissa.operations import OperationLog
from esper.nissa.public_operations import public, telling
from esper.nissa.sinks.fan_out import FanOut
from esper.nissa.spans import NO_SPANS


class Told(FanOut):
    """Sinks that remember."""

    def __init__(self):
        super().__init__({})
        self.events = []

    def event(self, event):
        self.events.append(event)


def public_operations():
    """Functions among the public names, and public methods of the classes among them that are engines."""
    found = {name for name in esper.__all__ if isinstance(getattr(esper, name), FunctionType)}
    methods = vars(esper.Engine).items()
    return found | {f"engine.{name}" for name, each in methods if isinstance(each, FunctionType) and name[0] != "_"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


@pytest.fixture(scope="module")
def calls(small_task, tmp_path_factory):
    """Operation -> a call that succeeds, and one that fails."""
    engine, folder = esper.make(small_task, 2, backend="eager"), tmp_path_factory.mktemp("states")
    state, wait = engine.init(0), torch.zeros(2, dtype=torch.int64)
    saved = folder / "saved"
    with torch.random.fork_rng(devices=[]):
        net = Net()
    esper.save(saved, state)
    broken = esper.Engine(None, None, engine.hypers, engine.data)
    return {
        "make": (lambda: esper.make(small_task, 2, backend="eager"), lambda: esper.make(small_task, 0)),
        "host": (lambda: esper.host(net, torch.zeros(2, 6)), lambda: esper.host(net, None)),
        "load": (lambda: esper.load(saved), lambda: esper.load(folder / "none")),
        "save": (lambda: esper.save(folder / "other", state), lambda: esper.save(saved, state)),
        "engine.init": (lambda: engine.init(1), lambda: engine.init(-1)),
        "engine.step": (lambda: engine.step(state, wait), lambda: engine.step(state, wait.float())),
        "engine.test": (lambda: engine.test(state), lambda: engine.test(None)),
        "engine.network_of": (lambda: engine.network_of(state, 0), lambda: engine.network_of(state, 9)),
        "engine.reset": (lambda: engine.reset(state, wait.bool(), 1), lambda: engine.reset(state, wait, 1)),
        "engine.observe": (lambda: engine.observe(state), lambda: engine.observe(None)),
        "engine.mask": (lambda: engine.mask(state), lambda: engine.mask(None)),
        "engine.describe": (engine.describe, broken.describe),
    }


def test_every_public_operation_is_in_the_table_and_in_this_test(calls):
    assert public_operations() == set(calls)
    assert set(calls) <= set(OPERATIONS)
    assert len(set(KINDS)) == len(KINDS) == 2 * len(OPERATIONS) + len(OCCURRENCES) <= 64


def test_success_and_failure_are_told_and_nothing_else(calls):
    for operation, (succeeds, fails) in calls.items():
        sinks = Told()
        with telling(OperationLog(sinks, NO_SPANS)):
            succeeds()
            with pytest.raises(Exception) as caught:
                fails()
        told = [each for each in sinks.events if each.kind.rpartition(".")[0] == operation]
        assert [each.kind for each in told] == [f"{operation}.{outcome}" for outcome in OUTCOMES], operation
        assert all(each.fields["took"] >= 0 for each in told)
        assert type(caught.value).__name__ in told[1].fields["error"]


def test_nobody_is_told_outside_of_a_block_or_in_another_thread(calls):
    sinks = Told()
    with telling(OperationLog(sinks, NO_SPANS)):
        other = threading.Thread(target=calls["engine.init"][0])
        other.start()
        other.join()
        with telling(None):
            calls["engine.init"][0]()
    calls["engine.init"][0]()
    assert sinks.events == []


def test_a_public_operation_keeps_its_name_and_words():
    assert esper.Engine.step.__name__ == "step" and "One decision and one epoch" in esper.Engine.step.__doc__
    assert esper.make.__name__ == "make" and esper.save.__doc__.startswith("Write a state")


def test_what_is_in_no_table_is_an_error():
    with pytest.raises(KeyError):
        public("dance")
    with pytest.raises(KeyError):
        event("dance", True)
    with pytest.raises(KeyError):
        occurrence("seed.danced", 1, 0.0)
