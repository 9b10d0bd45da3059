"""Settings of a command: one dataclass gives its flags, its file format, its checks and its help.

Every field is a flag (``--num-envs 64``) and a key of the file named by ``--config`` (TOML or JSON). A flag beats the
file, the file beats the default. A field whose default is a dict is a table of names: a table of the file, and
``--rewards name=value,name=value`` on the command line, which beats the file name by name. Whatever is wrong is one
line: where, what was found, what is allowed.
"""

import argparse
import json
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")

Value = int | float | bool | str
"""An entry of a table: what the programs that read the table check further."""


class SettingsError(ValueError):
    """A setting that is not allowed; one line with place, value and what is allowed."""


def setting(
    default: Any, text: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field with help, and a closed range or choices.

    Args:
      default: int, float, str, bool or dict of ``Value``s; its type is the setting's.
      text: one line of help.
      low, high: range of a number.
      choices: allowed strings; empty = any.
    """
    metadata = {"help": text, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


RENAMED = {"compile": "backend"}
"""Settings that there were under other names; asking for one names its heir."""


def read_settings(kind: type[Settings], arguments: Sequence[str], program: str) -> Settings:
    """Read settings from flags and, if ``--config`` names one, from a file.

    Args:
      kind: the dataclass.
      arguments: words after the command.
      program: the command, for help and errors.

    Raises:
      SettingsError: unknown key, wrong type, out of range, unreadable file.
      SystemExit: ``--help``.
    """
    for word in arguments:
        old = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and old in RENAMED:
            raise SettingsError(f"{program}: {word}: unknown setting; --{RENAMED[old]} is meant")
    parser = Parser(prog=program, description=(kind.__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="TOML or JSON file with any of these settings")
    for entry in fields(kind):  # type: ignore[arg-type]
        text = f"{entry.metadata['help']} ({_allowed(entry)}; default {_default(entry)!r})".replace("%", "%%")
        parser.add_argument("--" + entry.name.replace("_", "-"), dest=entry.name, metavar="VALUE", help=text)
    given = vars(parser.parse_args(list(arguments)))
    path = given.pop("config")
    values = {} if path is None else _read_file(kind, Path(path))
    for entry in fields(kind):  # type: ignore[arg-type]
        word = given[entry.name]
        if word is not None:
            flag = "--" + entry.name.replace("_", "-")
            value = _check(entry, _from_word(entry, word, flag), flag)
            values[entry.name] = values.get(entry.name, {}) | value if _kind(entry) is dict else value
    return kind(**values)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, instead of the usage and the end of the process."""

    def error(self, message: str) -> Any:
        """Raise ``SettingsError``."""
        raise SettingsError(" ".join(f"{self.prog}: {message}".split()))


def _default(entry: "Field[Any]") -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    assert entry.default is not MISSING
    return entry.default


def _kind(entry: "Field[Any]") -> type:
    return type(_default(entry))


def _allowed(entry: "Field[Any]") -> str:
    low, high, choices = (entry.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        return " or ".join(choices)
    bounds = "" if low is None and high is None else f" from {low:g}" if high is None else f" from {low:g} to {high:g}"
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "name=value,name=value"}
    return kinds[_kind(entry)] + bounds


def _from_word(entry: "Field[Any]", word: str, place: str) -> Any:
    kind = _kind(entry)
    if kind is bool:
        value: Any = {"true": True, "false": False}.get(word.lower())
    elif kind is dict:
        value = _table(word)
    else:
        try:
            value = kind(word)
        except ValueError:
            value = None
    if value is None:
        raise SettingsError(f"{place} = {word!r}: expected {_allowed(entry)}")
    return value


def _table(word: str) -> dict[str, Value] | None:
    """``name=value,name=value``; None where it is something else, or names anything twice."""
    pairs = [part.split("=") for part in word.split(",")] if word else []
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        return None
    table = {name.strip(): _value(text.strip()) for name, text in pairs}
    return table if len(table) == len(pairs) else None


def _value(word: str) -> Value:
    """An integer, a number, true or false, else the word itself."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def _check(entry: "Field[Any]", value: Any, place: str) -> Any:
    kind = _kind(entry)
    if kind is float and type(value) is int:
        value = float(value)
    low, high, choices = (entry.metadata[name] for name in ("low", "high", "choices"))
    if kind is dict and type(value) is dict:
        for name, found in value.items():
            if not isinstance(found, Value):
                raise SettingsError(f"{place}.{name} = {found!r}: expected a number, true or false, or a word")
    good = type(value) is kind and (not choices or value in choices)
    good = good and (low is None or value >= low) and (high is None or value <= high)
    if not good:
        raise SettingsError(f"{place} = {value!r}: expected {_allowed(entry)}")
    return value


def _read_file(kind: type, path: Path) -> dict[str, Any]:
    if path.suffix not in (".toml", ".json"):
        raise SettingsError(f"--config {path}: expected a .toml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--config {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(table, dict):
        raise SettingsError(f"--config {path}: found a {type(table).__name__}; expected a table of settings")
    entries = {entry.name: entry for entry in fields(kind)}
    for name in table:
        if name not in entries:
            near = [RENAMED[name]] if name in RENAMED else get_close_matches(name, entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(entries)}"
            raise SettingsError(f"{path}: {name}: unknown setting; {hint}")
    return {name: _check(entries[name], value, f"{path}: {name}") for name, value in table.items()}
