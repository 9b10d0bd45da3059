"""Sizes: whole numbers that depend on the sites, written as expressions such as ``max(8, channels // 4)``.

    condition  sum, or two sums with ``== != < <= > >=`` between them: 1 or 0
    sum        products with ``+`` and ``-`` between them
    product    atoms with ``*``, ``//`` and ``%`` between them
    atom       a number, a name, ``( condition )``, or a function of conditions

| function | gives |
|---|---|
| ``min(a, b, ...)``, ``max(a, b, ...)`` | the least, the largest |
| ``if(condition, a, b)`` | a where the condition is not 0, else b |
| ``divisor(n, most)`` | the largest number that divides n and is not above ``most``; at the least 1 |
| ``power_divisor(n, most)`` | the same of powers of two |

Nothing else can be written: no powers, no attributes, no texts. Every intermediate value has a bound on its bits.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from esper.tezzeret.blueprints.refusals import LIMITS
from esper.utils.documents import shown

Size = int | str
"""A number, or an expression."""

TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+)|(?P<name>[a-z][a-z0-9_]*)|(?P<sign>//|[=!<>]=|[-+*%()<>,]))")

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Of a named size."""

MOST_DIVIDED = 1 << 24
"""The largest number whose divisors are looked for."""


class SizeError(ValueError):
    """An expression that cannot be read or has no value; one line."""


class Expression(NamedTuple):
    """An expression.

    Attributes:
      op: a sign, a function, "number" or "name".
      parts: expressions; of a number itself, of a name its word.
    """

    op: str
    parts: tuple["Expression | int | str", ...]


def _divide(x: int, y: int) -> int:
    if y == 0:
        raise SizeError("a division by 0")
    return x // y


def _rest(x: int, y: int) -> int:
    if y == 0:
        raise SizeError("a division by 0")
    return x % y


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to ``most``, at the least 1."""
    if not 0 < n <= MOST_DIVIDED:
        raise SizeError(f"a divisor of {shown(n)}; expected a number from 1 to {MOST_DIVIDED}")
    small = [each for each in range(1, int(n**0.5) + 1) if n % each == 0]
    return max((each for each in (*small, *(n // each for each in small)) if each <= most), default=1)


def _power_divisor(n: int, most: int) -> int:
    found = 1
    while n > 0 and n % (2 * found) == 0 and 2 * found <= most:
        found *= 2
    return found


SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "//": _divide,
    "%": _rest,
    "==": lambda x, y: int(x == y),
    "!=": lambda x, y: int(x != y),
    "<": lambda x, y: int(x < y),
    "<=": lambda x, y: int(x <= y),
    ">": lambda x, y: int(x > y),
    ">=": lambda x, y: int(x >= y),
}
LEVELS = (("==", "!=", "<", "<=", ">", ">="), ("+", "-"), ("*", "//", "%"))
"""Signs by how loosely they bind."""

FUNCTIONS: dict[str, tuple[range, Callable[..., int]]] = {
    "min": (range(2, 9), min),
    "max": (range(2, 9), max),
    "if": (range(3, 4), lambda condition, x, y: x if condition else y),
    "divisor": (range(2, 3), _divisor),
    "power_divisor": (range(2, 3), _power_divisor),
}
"""Name -> how many arguments, and what it computes."""


class _SizeReader:
    """An expression on its way from text."""

    def __init__(self, text: str) -> None:
        self.words, self.place = _words(text), 0

    def peek(self) -> str:
        return self.words[self.place] if self.place < len(self.words) else ""

    def next(self) -> str:
        word = self.peek()
        self.place += 1
        return word

    def expect(self, word: str) -> None:
        if (found := self.next()) != word:
            raise SizeError(f"{shown(found)} in an expression; expected {word!r}")

    def level(self, number: int, depth: int) -> Expression:
        """Operations of one level, from the left."""
        if number == len(LEVELS):
            return self.atom(depth)
        found = self.level(number + 1, depth)
        while self.peek() in LEVELS[number]:
            sign = self.next()
            found = Expression(sign, (found, self.level(number + 1, depth)))
            if number == 0:
                break
        return found

    def atom(self, depth: int) -> Expression:
        """A number, a name, a function or parentheses."""
        if depth > LIMITS.depth:
            raise SizeError(f"an expression nested more than {LIMITS.depth} deep; expected less")
        word = self.next()
        if word.isdigit():
            return Expression("number", (int(word),))
        if word == "(":
            found = self.level(0, depth + 1)
            self.expect(")")
            return found
        if word in FUNCTIONS:
            return self.call(word, depth)
        if NAME.fullmatch(word):
            return Expression("name", (word,))
        raise SizeError(f"{shown(word) if word else 'nothing'} in an expression; expected a number or a name")

    def call(self, name: str, depth: int) -> Expression:
        """A function's arguments."""
        self.expect("(")
        parts = [self.level(0, depth + 1)]
        while self.peek() == ",":
            self.next()
            parts.append(self.level(0, depth + 1))
        self.expect(")")
        counts = FUNCTIONS[name][0]
        if len(parts) not in counts:
            raise SizeError(f"{name} of {len(parts)} numbers; expected {counts[0]} to {counts[-1]}")
        return Expression(name, tuple(parts))


def _words(text: str) -> list[str]:
    if len(text) > 10 * LIMITS.text:
        raise SizeError(f"an expression of {len(text)} letters; expected at most {10 * LIMITS.text}")
    found, place, end = list[str](), 0, len(text.rstrip(" "))
    while place < end:
        match = TOKEN.match(text, place)
        if match is None:
            left = text[place:].lstrip()
            raise SizeError(f"{shown(left)} in an expression; expected numbers, names, + - * // %, comparisons or ( )")
        found.append(match.group().strip())
        if len(found[-1]) > LIMITS.text or (found[-1].isdigit() and len(found[-1]) > LIMITS.digits):
            raise SizeError(f"{shown(found[-1])} in an expression; expected shorter numbers and names")
        place = match.end()
    return found


@lru_cache(maxsize=4096)
def expression(text: Size) -> Expression:
    """Read an expression.

    Raises:
      SizeError: it is none.
    """
    if isinstance(text, int):
        return Expression("number", (text,))
    reader = _SizeReader(text)
    found = reader.level(0, 0)
    if reader.peek():
        raise SizeError(f"{shown(reader.peek())} in an expression; expected an operation or its end")
    return found


def names_in(text: Size) -> frozenset[str]:
    """The names that an expression reads."""
    waiting, found = [expression(text)], set[str]()
    while waiting:
        each = waiting.pop()
        if each.op == "name":
            found.add(str(each.parts[0]))
        waiting += [part for part in each.parts if isinstance(part, Expression)]
    return frozenset(found)


def evaluate(text: Size, names: Mapping[str, int]) -> int:
    """The value of an expression.

    Args:
      text: the expression.
      names: known sizes.

    Raises:
      SizeError: an unknown name, a division by 0, or an intermediate value of too many bits.
    """
    return text if isinstance(text, int) else _value(expression(text), names)


def _value(each: Expression, names: Mapping[str, int]) -> int:
    if each.op == "name":
        if each.parts[0] not in names:
            raise SizeError(f"size {each.parts[0]!r}; expected one of {', '.join(names)}")
        return names[str(each.parts[0])]
    parts = [_value(part, names) if isinstance(part, Expression) else int(part) for part in each.parts]
    if each.op == "number":
        found = parts[0]
    else:
        found = SIGNS[each.op](*parts) if each.op in SIGNS else FUNCTIONS[each.op][1](*parts)
    if found.bit_length() > LIMITS.bits:
        raise SizeError(f"a size of {found.bit_length()} bits; expected at most {LIMITS.bits}")
    return found
