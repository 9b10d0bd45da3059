"""A network that was exported, as an engine and a state of one environment: it is a host again."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from esper.engine import Engine
from esper.leyline.config import ConfigError
from esper.leyline.state import State
from esper.runtime.build import find_device, make
from esper.runtime.carriers import read_network
from esper.runtime.own import recorded
from esper.runtime.own_flags import flags_of
from esper.runtime.scene import RUNS, Rules
from esper.runtime.tasks import named
from esper.tezzeret.backend import BackendError
from esper.tezzeret.modules import host
from esper.utils.documents import cause
from esper.utils.settings import SettingsError

EXAMPLES = 4
"""Samples that a network is traced with."""


class Brought(NamedTuple):
    """A network to go on with.

    Attributes:
      engine: of one environment; its host has no slots.
      state: [1].
      card: what lay with the network.
    """

    engine: Engine
    state: State
    card: dict[str, Any]


def bring(path: Path, rules: Rules, seed: int, backend: str, device: str) -> Brought:
    """Read a network's weights, and run the source beside them.

    Args:
      path: a ``*.safetensors`` that ``esper export`` wrote.
      rules: the task, "auto" for that of the card; numbers of the engine.
      seed: of the environment.
      backend, device: how it is run.

    Raises:
      SettingsError: no such network; one line.
      ConfigError: it cannot be a host, or its card names a task that imports a module.
    """
    if path.suffix != ".safetensors":
        raise SettingsError(f"--network {path}: expected a *.safetensors of esper export, its *.py beside it")
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get("card", "{}"))
        network = read_network(path)
    except Exception as error:  # whatever a file holds, and whatever its source does
        raise SettingsError(
            f"--network {path}: {cause(error)}; expected a *.safetensors of esper export, its *.py beside it"
        ) from None
    name = rules.task
    if name == RUNS:
        name = recorded("--task", str(card.get("task", "digits")), "the network's card")
    task = named(name)
    place = find_device(device, "--device")
    own = host(network, task.data.train.inputs[:EXAMPLES])
    overrides: dict[str, Any] = {"slots": (), **rules.engine}
    overrides |= {"horizon": rules.horizon} if rules.horizon else {}
    try:
        engine = make(task._replace(host=own), 1, place, backend, **overrides)
    except BackendError as error:
        asked = {"backend": backend, "device": place}
        raise SettingsError(f"{flags_of(error, rules.engine, asked)}: {error}") from None
    except ConfigError as error:
        raise SettingsError(f"--engine: {error}") from None if rules.engine else error
    return Brought(engine, engine.init(seed), {**card, "task": name})
