"""Operations as words: ``modify_layer(block0.conv, width=16)``, read without running anything, and written again."""

import re
from difflib import get_close_matches
from inspect import signature
from typing import Any, get_type_hints

from esper.leyline.config import ConfigError
from esper.tezzeret.surgery.operations import OPERATIONS
from esper.tezzeret.surgery.orders import Operation
from esper.utils.documents import shown

FORMS: dict[str, type[Any]] = {kind.name: form for form, kind in OPERATIONS.items()}
"""Operation by its name."""


def spelled(op: Operation) -> str:
    """The words of an operation. Law: ``read_operation`` gives it again."""
    defaults = _defaults(type(op))
    words = [str(value) for name, value in op._asdict().items() if name not in defaults]
    words += [f"{name}={value}" for name, value in op._asdict().items() if value != defaults.get(name, value)]
    return f"{OPERATIONS[type(op)].name}({', '.join(words)})"


def _defaults(form: type[Any]) -> dict[str, Any]:
    fields = signature(form).parameters.values()
    return {field.name: field.default for field in fields if field.default is not field.empty}


def read_operations(text: str) -> list[Operation]:
    """Operations with ``;`` between them; none of no text.

    Raises:
      ConfigError: see ``read_operation``.
    """
    return [read_operation(part) for part in text.split(";") if part.strip()]


def read_operation(text: str) -> Operation:
    """An operation from its words: its name, then values in order or by name, as the classes of ``orders`` have them.

    Raises:
      ConfigError: no such operation or value; one line.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    place = f"operation {shown(text.strip())}"
    if found is None:
        raise ConfigError(f"{place}: expected name(value, name=value), such as modify_layer(conv, width=8)")
    name, words = found[1], [word.strip() for word in found[2].split(",") if word.strip()]
    if name not in FORMS:
        near = get_close_matches(name, FORMS, n=1)
        raise ConfigError(
            f"{place}: " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(FORMS)}")
        )
    return _filled(place, FORMS[name], words)


def _filled(place: str, form: type[Any], words: list[str]) -> Operation:
    fields, values = list(form._fields), dict[str, Any]()
    hints = get_type_hints(form)
    for number, word in enumerate(words):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            name, value = (fields[number] if number < len(fields) else ""), name
        is_late = not equals and any("=" in before for before in words[:number])
        if name not in fields or name in values or is_late:
            raise ConfigError(f"{place}: {shown(word)}; expected {', '.join(fields)}, each once")
        values[name] = _value(place, name, value, hints[name])
    missing = [name for name in fields if name not in values and name not in _defaults(form)]
    if missing:
        raise ConfigError(f"{place}: no {missing[0]}; expected {', '.join(fields)}")
    op: Operation = form(**values)
    return op


def _value(place: str, name: str, word: str, hint: Any) -> str | int:
    if hint is str:
        return word
    if not re.fullmatch(r"\d{1,9}", word):
        raise ConfigError(f"{place}: {name} = {shown(word)}; expected a whole number")
    return int(word)
