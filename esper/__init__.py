"""Esper grows neural networks while they train.

``make`` builds an engine; its ``init`` and ``step`` are pure functions from state to state over a whole batch of
environments. ``esper.engine`` tells a step in order; ``esper.leyline`` says what exists.
"""

from esper.tezzeret import toolchain
from esper.utils.starting import collecting_nothing, ending_on_interrupt, is_command, runs_networks
from esper.version import __version__ as __version__

if runs_networks():
    toolchain.begin()
with ending_on_interrupt(is_command()), collecting_nothing(is_command()):  # importing torch takes its time
    from esper.engine import Engine
    from esper.leyline.actions import Action, Blend, Op
    from esper.leyline.config import Config, ConfigError
    from esper.leyline.hypers import HyperParams
    from esper.leyline.stages import Stage
    from esper.leyline.state import State
    from esper.nissa.public_operations import public
    from esper.runtime import debug
    from esper.runtime.build import make
    from esper.runtime.task import Task
    from esper.tezzeret.modules import host
    from esper.urza.states import load_state, save_state

load, save = public("load")(load_state), public("save")(save_state)

__all__ = [
    "Action",
    "Blend",
    "Config",
    "ConfigError",
    "Engine",
    "HyperParams",
    "Op",
    "Stage",
    "State",
    "Task",
    "host",
    "load",
    "make",
    "save",
]

debug.switch_as_asked()
