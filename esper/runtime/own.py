"""What users wrote themselves, by its place: ``py:module:name`` wherever a task, a reward or a policy is named.

A module is imported because the command names it. A name that a run or a file of settings recorded is not reason
enough, since they may be a stranger's: see ``recorded``.
"""

import importlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from difflib import get_close_matches
from typing import Any

from esper.leyline.config import ConfigError
from esper.utils.documents import cause

PREFIX = "py:"


NAMES = ("task", "room_for", "reward", "policy")
"""Settings that may name something of the user's own."""


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
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        raise ConfigError(f"{place} = {name!r}: {cause(error)}; expected a module that can be imported") from None
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{place} = {name!r}: {module} has no {attribute!r}; expected a name that it has{hint}")
    return getattr(found, attribute)


def called(place: str, name: str, function: Callable[..., Any], *arguments: Any, doing: str = "") -> Any:
    """What a user's own function gives.

    Args:
      place, name: as in ``load``.
      function: what was loaded.
      arguments: what it is called with.
      doing: what a message says of the call, if not how many arguments it had.

    Raises:
      ConfigError: it cannot be called so, fails, or would have to be awaited; one line, with its own words. Esper's
        errors pass.
    """
    doing = doing or f"called with {len(arguments)} argument{'s' * (len(arguments) != 1)}"
    try:
        gave = function(*arguments)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a function does
        raise ConfigError(f"{place} = {name!r}: {doing}: {cause(error)}") from error
    if isinstance(gave, Coroutine | AsyncGenerator):
        if isinstance(gave, Coroutine):
            gave.close()  # or Python warns that nobody awaited it
        raise ConfigError(f"{place} = {name!r}: {doing}: gave a {type(gave).__name__}; expected def, not async def")
    return gave


def recorded(place: str, name: str, source: str = "the run") -> str:
    """A name, or names with commas between, that a run or a file recorded, if it asks for nothing to be imported.

    Raises:
      ConfigError: it does; the line says how the command names it.
    """
    if any(is_own(part) for part in name.split(",")):
        raise ConfigError(f"{place}: {source} recorded {name!r}, which imports a module; expected {place} {name}")
    return name


def expect_nothing_imported(values: Mapping[str, Any], path: str) -> None:
    """Raise ``ConfigError`` if a file of settings, which may be a stranger's, asks for a module."""
    if values.get("network"):
        raise ConfigError(f"--network: {path} names {values['network']!r}, whose source is run; expected it as a flag")
    for name in NAMES:
        recorded(f"--{name.replace('_', '-')}", str(values.get(name, "")), path)
