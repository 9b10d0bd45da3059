"""Fields of a document's objects, read with their types and bounds; whatever is wrong is one line."""

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from esper.tezzeret.blueprints.document import Real
from esper.tezzeret.blueprints.refusals import PARSE, DocumentError, DocumentLimits
from esper.tezzeret.blueprints.sizes import Size, SizeError, expression
from esper.utils.documents import shown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*(?:\.[A-Za-z0-9][A-Za-z0-9_]*)*")
"""Of nodes, parameters and buffers: ASCII letters, digits, single underscores, and dots between parts."""

LOWER = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
"""Of blueprints and sizes."""

Read = TypeVar("Read")


class ObjectFields:
    """One object of a document, and where it stands."""

    def __init__(self, table: Any, place: str, node: str, limits: DocumentLimits) -> None:
        self.place, self.node, self.limits = place, node, limits
        if not isinstance(table, dict):
            self.refuse(shown(table), "an object")
        self.table: Mapping[str, Any] = table

    def refuse(self, found: str, expected: str, node: str = "") -> NoReturn:
        """Raise ``DocumentError``."""
        raise DocumentError(self.place, PARSE, node or self.node, found, expected)

    def only(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Refuse fields that are unknown, or that are missing."""
        known = (*required, *optional)
        for name in self.table:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                self.refuse(f"unknown field {shown(name)}", f"{near[0]!r}" if near else ", ".join(known))
        for name in required:
            if name not in self.table:
                self.refuse(f"no field {name!r}", ", ".join(required))

    def text(self, name: str, longest: int, choices: Collection[str] = ()) -> str:
        """A text."""
        value = self.table[name]
        if not isinstance(value, str) or (choices and value not in choices):
            near = get_close_matches(value, choices, n=1) if isinstance(value, str) else ()
            allowed = ", ".join(choices)
            self.refuse(f"{name} {shown(value)}", f"{near[0]!r}" if near else allowed if choices else "a text")
        if len(value) > longest or not value.isprintable():
            self.refuse(f"{name} {shown(value)}", f"at most {longest} letters that can be printed")
        return str(value)

    def name(self, field: str = "name", form: re.Pattern[str] = NAME) -> str:
        """A name."""
        return self.as_name(self.table[field], field, form)

    def as_name(self, value: Any, what: str, form: re.Pattern[str] = NAME) -> str:
        """A name, given."""
        good = isinstance(value, str) and len(value) <= self.limits.text and form.fullmatch(value) and "__" not in value
        if not good:
            letters = "lower-case letters" if form is LOWER else "letters"
            self.refuse(
                f"{what} {shown(value)}", f"a name of ASCII {letters}, digits and _, at most {self.limits.text}"
            )
        return str(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.table[name]
        if not isinstance(value, bool):
            self.refuse(f"{name} {shown(value)}", "true or false")
        return value

    def items(self, name: str, most: int, read: Callable[[Any], Read], least: int = 0) -> tuple[Read, ...]:
        """A list, item by item; without the field, nothing."""
        values = self.table.get(name, [])
        if not isinstance(values, list) or not least <= len(values) <= most:
            count = f"a list of {len(values)}" if isinstance(values, list) else shown(values)
            self.refuse(f"{name}: {count}", f"a list of {least} to {most}")
        return tuple(read(value) for value in values)

    def number(self, value: Any, what: str) -> float:
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"{what} {shown(value)}", "a number")
        return float(value)

    def size(self, value: Any, what: str) -> Size:
        """A whole number, or an expression."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            self.refuse(f"{what} {shown(value)}", "a whole number, or an expression in quotes")
        if isinstance(value, int):
            if value.bit_length() > self.limits.bits:
                self.refuse(f"{what} {shown(value)}", f"at most {self.limits.bits} bits")
            return value
        try:
            expression(value)
        except SizeError as error:
            found, _, expected = str(error).partition("; expected ")
            self.refuse(f"{what} {shown(value)}: {found}", expected or "an expression")
        return value

    def shape(self, value: Any, what: str) -> tuple[Size, ...]:
        """Sizes of axes."""
        if not isinstance(value, list) or len(value) > self.limits.rank:
            self.refuse(f"{what} {shown(value)}", f"a list of at most {self.limits.rank} sizes")
        return tuple(self.size(side, what) for side in value)

    def real(self, value: Any, what: str) -> Real:
        """A number, or one over a size or its root."""
        if not isinstance(value, dict):
            return self.number(value, what)
        if len(value) != 1 or not set(value) <= {"over_root", "over"}:
            self.refuse(f"{what} {shown(value)}", "a number, {'over_root': size} or {'over': size}")
        ((kind, size),) = value.items()
        return kind, self.size(size, what)
