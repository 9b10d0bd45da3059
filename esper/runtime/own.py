"""What users wrote themselves, by its place: ``py:module:name`` wherever a task, a reward or a policy is named.

A module is imported because the command names it. A name that a run recorded is not reason enough, since a run
directory may be a stranger's: see ``recorded``.
"""

import importlib
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, cast

from torch import Tensor

from esper.leyline.config import ConfigError
from esper.simic.reward_terms import EnvStep
from esper.simic.rewards import OwnReward

PREFIX = "py:"


def is_own(name: str) -> bool:
    """Whether a name is a module's and a thing's in it."""
    return name.startswith(PREFIX)


def load(place: str, name: str) -> Any:
    """The thing that a name means; its module is imported, from the working directory or wherever Python looks.

    Args:
      place: what messages call the setting, such as ``--task``.
      name: ``py:module:name``.

    Raises:
      ConfigError: not of that form, no such module or name, or the module cannot be imported; one line.
    """
    module, colon, attribute = name.removeprefix(PREFIX).partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise ConfigError(f"{place} = {name!r}: expected {PREFIX}module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a module does while it is imported
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{place} = {name!r}: {said[:200]}; expected a module that can be imported") from None
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{place} = {name!r}: {module} has no {attribute!r}; expected a name that it has{hint}")
    return getattr(found, attribute)


def called(place: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's own function gives.

    Args:
      place, name: as in ``load``.
      function: what was loaded.
      arguments: what it is called with.

    Raises:
      ConfigError: it cannot be called so, or fails; one line, with its own words. Esper's errors pass.
    """
    try:
        return function(*arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever a function does
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{place} = {name!r}: called with {len(arguments)} arguments: {said[:200]}") from error


def own_reward(name: str, function: Callable[..., Any]) -> OwnReward:
    """A reward of the user's own that says in one line what is wrong with what it gives."""

    def reward(step: EnvStep) -> dict[str, Tensor]:
        terms = called("--reward", name, function, step)
        shape = step.after.epoch.shape
        good = isinstance(terms, dict) and terms
        if not good or not all(isinstance(term, Tensor) and term.shape == shape for term in terms.values()):
            found = {key: _kind(term) for key, term in terms.items()} if good else _kind(terms)
            raise ConfigError(f"--reward = {name!r}: gave {found}; expected a dict of tensors {list(shape)}")
        return cast(dict[str, Tensor], terms)

    return reward


def _kind(value: Any) -> str:
    return f"tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def recorded(place: str, name: str) -> str:
    """A name, or names with commas between, that a run recorded, if it asks for nothing to be imported.

    Raises:
      ConfigError: it does; the line says how the command names it.
    """
    if any(is_own(part) for part in name.split(",")):
        raise ConfigError(f"{place}: the run recorded {name!r}, which imports a module; expected {place} {name}")
    return name
