"""The debug switch: while it is on, every step function checks that it writes into none of its arguments.

``ESPER_DEBUG=1`` in the environment turns it on for a process, ``watching()`` for a block. Off, it costs nothing: the
functions are those that their modules define. On, the modules of Esper hold checked ones in their place, found by
whoever looks them up there; what was taken out before (``from esper.kasmina.lifecycle import tick``) stays as it was.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from esper import engine
from esper.kasmina import arena, counterfactuals, lifecycle, metrics
from esper.leyline import environments
from esper.simic import rewards
from esper.tamiyo import observation
from esper.tolaria import evaluation, governor, signals, training, variations
from esper.utils.purity import pure

WATCHED: tuple[Callable[..., Any], ...] = (
    *(engine.init, engine.step, engine.reset),
    *(lifecycle.refusals, lifecycle.apply_action, lifecycle.tick),
    *(arena.list_seeds, arena.write_seeds, counterfactuals.list_effects),
    *(arena.init_seeds, training.train_epoch, evaluation.evaluate, evaluation.measure, evaluation.shapley_values),
    *(metrics.record, governor.govern, signals.update_signals, signals.remember_decision, variations.own_hypers),
    *(observation.observe, rewards.reward),
    *(environments.select, environments.concatenate, environments.replace),
)
"""The functions that are watched."""

CHECKED = {function: pure(function) for function in WATCHED}
"""Function -> the same, checked."""


def is_on() -> bool:
    """Whether step functions check themselves."""
    return engine.step in CHECKED.values()


def switch(on: bool) -> None:
    """Put the checked functions into the place of the plain ones, or the other way round, in every module of Esper."""
    exchange: dict[Any, Any] = dict(CHECKED) if on else {checked: plain for plain, checked in CHECKED.items()}
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "esper"]:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in exchange:
                setattr(module, name, exchange[value])


@contextmanager
def watching(on: bool = True) -> Iterator[None]:
    """A context in which the switch is on, or off."""
    before = is_on()
    switch(on)
    try:
        yield
    finally:
        switch(before)


def switch_as_asked() -> None:
    """Turn the switch on where ``ESPER_DEBUG=1`` is in the environment."""
    if os.environ.get("ESPER_DEBUG") == "1":
        switch(True)
