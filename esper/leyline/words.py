"""Values of ``Config`` as people write them: words for members of enumerations, NumPy's integers, lists for tuples.

One reading for ``make``, flags and files: ``isolation="objective"``, ``blends="linear+gated"`` or
``("linear", "gated")``, ``slots="0+input:logits"`` or ``[0, "input:logits"]``.
"""

from collections.abc import Callable
from enum import EnumMeta
from numbers import Integral
from typing import Any, get_type_hints

from esper.leyline.actions import Blend
from esper.leyline.config import Config, ConfigError


def as_meant(name: str, value: Any) -> Any:
    """A field of ``Config`` from what was written; what is no such writing is left to ``Config``'s own checks.

    Args:
      name: of the field.
      value: what was written.

    Raises:
      ConfigError: a word that is none of an enumeration's; one line.
    """
    kind = get_type_hints(Config)[name]
    if name == "slots":
        return _each(value, _slot)
    if name == "blends":
        return _each(value, _blend)
    if isinstance(kind, EnumMeta) and isinstance(value, str):
        words = [member.value for member in kind]  # type: ignore[var-annotated]
        if value not in words:
            raise ConfigError(f"config.{name} = {value!r}: expected {' or '.join(words)}")
        return kind(value)
    return value


def _each(value: Any, read: Callable[[Any], Any]) -> Any:
    """Several: a tuple, a list, words with + between them, or one alone."""
    if isinstance(value, str):
        return tuple(read(word) for word in value.split("+"))
    if isinstance(value, tuple | list):
        return tuple(map(read, value))
    return (read(value),) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _slot(value: Any) -> Any:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else value
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _blend(value: Any) -> Any:
    known = {blend.name.lower(): blend for blend in Blend}
    if isinstance(value, Blend):
        return value
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"config.blends: {value!r}: expected some of {', '.join(known)}, with + between")
    return known[value]
