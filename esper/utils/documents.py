"""Documents: JSON that every reader takes, and files of settings (TOML, JSON) as people write them.

JSON has no infinities and no NaN. What is written says ``"inf"`` and ``"-inf"`` for the first and ``null`` for the
second; ``as_number`` reads them back.
"""

import codecs
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

SUFFIXES = (".toml", ".json")

INFINITIES = {"inf": math.inf, "-inf": -math.inf}
"""How infinities are written where numbers alone cannot be."""

LONGEST = 60
"""Characters of a value that a message shows."""


MOST_DIGITS = 4000
"""Digits of an integer in a file; Python reads 4,300."""

LONG_INTEGER = re.compile(
    r"""(?:(?<![\w-])(?P<name>[\w-]+)["']?\s*[:=]\s*)?[-+]?"""
    rf"(?<![.\w])(?P<digits>[0-9_]{{{MOST_DIGITS + 1},}})(?![.\w])"
)
"""One that is longer, with the name before it."""


def json_ready(value: Any) -> Any:
    """A value of dicts, lists, tuples, words and numbers (NumPy's and enumerations as well) as strict JSON knows it."""
    if isinstance(value, Mapping):
        return {str(name): json_ready(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(member) for member in value]
    if isinstance(value, Enum):
        return json_ready(value.value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; see ``json_ready``."""
    return json.dumps(json_ready(value), indent=indent, allow_nan=False)


def as_number(value: Any) -> Any:
    """An infinity from its word, NaN from null; anything else as it is."""
    if value is None:
        return math.nan
    return INFINITIES.get(value, value) if isinstance(value, str) else value


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no decimal integer of more than some thousand digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def one_line(text: object) -> str:
    """A text as a terminal's line: what cannot be printed, such as a line break of a name within it, is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def figure(value: float) -> str:
    """A number as a message shows it: an integer with all of its digits, another number with seven."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e16 else f"{value:.7g}"


def cause(error: BaseException, longest: int = 200) -> str:
    """An error's kind and its own words on one line, cut to so many characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def as_float(value: int) -> float:
    """The number; too large a one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_plain(text: str) -> bool:
    """Whether a text can be the name of a file: no NUL, nothing that has no bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_document(path: Path) -> Any:
    """What a file of TOML or JSON holds.

    A byte order mark is skipped (UTF-16 is read by it). A name that stands twice in one JSON object is refused, as
    TOML does.

    Args:
      path: a file whose suffix is one of ``SUFFIXES``.

    Raises:
      ValueError: one line; another suffix, unreadable, or not what the suffix says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a {' or '.join(SUFFIXES)} file")
    try:
        text = _decode(path.read_bytes())
        _expect_short_integers(text)
        return tomllib.loads(text) if suffix == ".toml" else json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply; expected a table of settings") from None
    except (OSError, ValueError) as error:
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise ValueError(one_line(text)) from None


def _decode(data: bytes) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def _expect_short_integers(text: str) -> None:
    """Name the integer that Python would not read, which it would not name."""
    found = LONG_INTEGER.search(text)
    if found is not None:
        name = found["name"] or "a number"
        raise ValueError(f"{name}: an integer of {len(found['digits'])} digits; expected at most {MOST_DIGITS}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)}: stands twice; expected once")
    return table
