"""Settings of a command: one dataclass gives its flags, its file format, its checks and its help.

Every field is a flag (``--num-envs 64``) and a key of the file named by ``--config`` (TOML or JSON). A flag beats the
file, the file beats the default; of two files, or of a flag given twice, the later counts. A field whose default is a
dict is a table of names: a table of the file, and ``--rewards name=value,name=value`` on the command line, which beats
the file name by name; several flags of a table add up. A boolean is ``--flag``, ``--no-flag`` or ``--flag true``.
Whatever is wrong is one line: where, what was found, what is allowed.
"""

import argparse
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from esper.utils.documents import INFINITIES, as_float, figure, is_plain, read_document, shown
from esper.utils.paths import user_path

Settings = TypeVar("Settings")

Value = int | float | bool | str
"""An entry of a table: what the programs that read the table check further."""

Entry = Value | tuple[Value, ...]
"""The same, or several with ``+`` between them on the command line, a list in a file."""

Table = Mapping[str, Entry]
"""A table of names."""

BOOLEANS = {"true": True, "false": False}


class SettingsError(ValueError):
    """A setting that is not allowed; one line with place, value and what is allowed."""


def setting(
    default: Any, text: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field with help, and a closed range or choices.

    Args:
      default: int, float, str, bool or dict of ``Entry``s; its type is the setting's.
      text: one line of help.
      low, high: range of a number; a float is finite in any case.
      choices: allowed strings; empty = any. Of an int in a range: words that may stand in its place, for 0.
    """
    metadata = {"help": text, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


RENAMED = {"compile": "backend"}
"""Settings that there were under other names; asking for one names its heir."""

Base = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Settings that were asked for -> those that stand in the place of the defaults of the others."""


Trust = Callable[[Mapping[str, Any], str], None]
"""Looks at the settings that a file, whose path is given, decides."""


def trusted(values: Mapping[str, Any], path: str) -> None:
    """Any file is."""


def read_settings(
    kind: type[Settings], arguments: Sequence[str], program: str, base: Base | None = None, trust: Trust = trusted
) -> Settings:
    """Read settings from flags and, if ``--config`` names one, from a file.

    Args:
      kind: the dataclass.
      arguments: words after the command.
      program: the command, for help.
      base: where defaults come from, if not from the dataclass.
      trust: told a file's settings that no flag beats; may raise.

    Raises:
      SettingsError: unknown key, wrong type, out of range, unreadable file.
      SystemExit: ``--help``.
    """
    for word in arguments:
        old = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and old in RENAMED:
            raise SettingsError(f"{word}: unknown setting; --{RENAMED[old]} is meant")
    entries = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    booleans = [name for name, entry in entries.items() if _kind(entry) is bool]
    given = vars(_parser(entries, (kind.__doc__ or "").split("\n")[0], program).parse_args(spell(arguments, booleans)))
    values: dict[str, Any] = {}
    for path in given.pop("config"):
        found = _read_file(entries, user_path(path))
        trust({name: value for name, value in found.items() if not given[name]}, path)
        values = over(values, found)
    for name, words in given.items():
        if words:
            values = over(values, {name: _from_words(entries[name], words)})
    return kind(**(values if base is None else over(base(values), values)))


def read_file(kind: type[Any], path: Path) -> dict[str, Any]:
    """The settings that a file holds, checked.

    Raises:
      SettingsError: unreadable, unknown name, wrong type, out of range.
    """
    return _read_file({entry.name: entry for entry in fields(kind)}, path)


def from_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were before ``json_ready``; a table's infinities and lists are numbers and tuples again."""
    return {
        name: {entry: _entry(found, name) for entry, found in value.items()} if isinstance(value, dict) else value
        for name, value in values.items()
    }


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that beat others; tables name by name."""
    merged = {name: {**below[name], **above[name]} for name in above if name in below and isinstance(above[name], dict)}
    return {**below, **above, **merged}


def spell(words: Sequence[str], booleans: Collection[str], positionals: bool = False) -> list[str]:
    """A command line in which every boolean has its value: ``--flag`` and ``--no-flag`` become ``--flag=true|false``.

    Args:
      words: the command line.
      booleans: names of settings.
      positionals: whether words may stand alone, so that only true and false after a flag belong to it.
    """
    flags, spelt, number = {_flag(name) for name in booleans}, list[str](), 0
    while number < len(words):
        word, following = words[number], (*words[number + 1 : number + 2], "-")[0]
        number += 1
        if word in flags:
            own = following.lower() in BOOLEANS or not (positionals or following.startswith("-"))
            spelt.append(f"{word}={following if own else 'true'}")
            number += own
        elif word.startswith("--no-") and "--" + word[5:] in flags:
            spelt.append(f"--{word[5:]}=false")
        else:
            spelt.append(word)
    return spelt


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names no program, instead of the usage and the end of the process."""

    def error(self, message: str) -> Any:
        """Raise ``SettingsError``."""
        raise SettingsError(" ".join(message.split()))


def boolean(word: str) -> bool:
    """A boolean's word; a type for argparse."""
    if word.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"{word!r}: expected true or false")
    return BOOLEANS[word.lower()]


def _parser(entries: Mapping[str, "Field[Any]"], description: str, program: str) -> Parser:
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    text = "TOML or JSON file with any of these settings; may be given more than once"
    parser.add_argument("--config", metavar="FILE", action="append", default=[], help=text)
    for name, entry in entries.items():
        text = f"{entry.metadata['help']} ({_allowed(entry)}; default {_default(entry)!r})".replace("%", "%%")
        metavar = "true|false" if _kind(entry) is bool else "VALUE"
        parser.add_argument(_flag(name), dest=name, metavar=metavar, action="append", default=[], help=text)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(entry: "Field[Any]") -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    assert entry.default is not MISSING
    return entry.default


def _kind(entry: "Field[Any]") -> type:
    return type(_default(entry))


def _allowed(entry: "Field[Any]") -> str:
    low, high, choices = (entry.metadata[name] for name in ("low", "high", "choices"))
    if choices and _kind(entry) is not int:
        return " or ".join(choices)
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "name=value,name=value"}
    if low is None and high is None:
        return kinds[_kind(entry)]
    if high is None or math.isinf(high):
        return ("a finite number" if _kind(entry) is float else kinds[_kind(entry)]) + f" from {figure(low)}"
    return ", or ".join((f"{kinds[_kind(entry)]} from {figure(low)} to {figure(high)}", *choices))


def _from_words(entry: "Field[Any]", words: Sequence[str]) -> Any:
    """The value of a flag that was given once or more."""
    place = _flag(entry.name)
    values = [_check(entry, _from_word(entry, word, place), place) for word in words]
    if _kind(entry) is not dict:
        return values[-1]
    whole: dict[str, Entry] = {}
    for table in values:
        for name in table:
            if name in whole:
                raise SettingsError(f"{place}: {name}: given twice, {whole[name]!r} and {table[name]!r}; expected once")
        whole |= table
    return whole


def _from_word(entry: "Field[Any]", word: str, place: str) -> Any:
    kind = _kind(entry)
    if kind is int and word in entry.metadata["choices"]:
        return word
    if kind is bool:
        value: Any = BOOLEANS.get(word.lower())
    elif kind is dict:
        value = _table(word)
    else:
        try:
            value = kind(word)
        except ValueError:
            value = None
    if value is None:
        raise SettingsError(f"{place} = {shown(word)}: expected {_allowed(entry)}")
    return value


def _table(word: str) -> dict[str, Entry] | None:
    """``name=value,name=value``; ``name=`` is none of several. None if it is another, or names anything twice."""
    pairs = [part.split("=") for part in word.split(",")] if word else []
    if any(len(pair) != 2 or not pair[0].strip() for pair in pairs):
        return None
    table: dict[str, Entry] = {name.strip(): _value(text.strip()) if text.strip() else () for name, text in pairs}
    return table if len(table) == len(pairs) else None


def _value(word: str) -> Value:
    """An integer, a number, true or false, else the word itself."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return BOOLEANS.get(word.lower(), word)


def _check(entry: "Field[Any]", value: Any, place: str) -> Any:
    kind = _kind(entry)
    if kind is dict and type(value) is dict:
        return {name: _entry(found, f"{place}.{name}") for name, found in value.items()}
    given = value
    if kind is float and type(value) is int:
        value = as_float(value)
    low, high, choices = (entry.metadata[name] for name in ("low", "high", "choices"))
    if kind is int and choices and value in choices:
        return 0
    good = type(value) is kind and (kind is int or not choices or value in choices)
    good = good and (low is None or value >= low) and (high is None or value <= high)
    if not good or (kind is float and not math.isfinite(value)) or (kind is str and not is_plain(value)):
        raise SettingsError(f"{place} = {shown(given)}: expected {_allowed(entry)}")
    return value


def _entry(found: Any, place: str) -> Entry:
    """An entry of a table that a file holds, or a flag."""
    if isinstance(found, list | tuple) and all(isinstance(each, Value) for each in found):
        return tuple(found)
    if not isinstance(found, Value) or (isinstance(found, str) and not is_plain(found)):
        raise SettingsError(f"{place} = {shown(found)}: expected a number, true or false, a word, or a list of them")
    return INFINITIES.get(found, found) if isinstance(found, str) else found


def _read_file(entries: Mapping[str, "Field[Any]"], path: Path) -> dict[str, Any]:
    try:
        table = read_document(path)
    except ValueError as error:
        raise SettingsError(f"--config {path}: {error}") from None
    if not isinstance(table, dict):
        raise SettingsError(f"--config {path}: found a {type(table).__name__}; expected a table of settings")
    for name in table:
        if name not in entries:
            near = [RENAMED[name]] if name in RENAMED else get_close_matches(name, entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(entries)}"
            raise SettingsError(f"{path}: {shown(name)[1:-1]}: unknown setting; {hint}")
    return {name: _check(entries[name], value, f"{path}: {name}") for name, value in table.items()}
