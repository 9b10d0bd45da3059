"""JSON read strictly: what other readers round, drop, or fall over is refused, and said in one line."""

import json
import math
import re
from typing import Any, NoReturn

from esper.tezzeret.blueprints.refusals import PARSE, DocumentError, DocumentLimits
from esper.utils.documents import shown

STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


class _Numbers:
    """What becomes of JSON's parts, within limits."""

    def __init__(self, place: str, limits: DocumentLimits) -> None:
        self.place, self.limits = place, limits

    def refuse(self, found: str, expected: str, node: str = "") -> NoReturn:
        raise DocumentError(self.place, PARSE, node, found, expected)

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            owner = next((value for name, value in pairs if name == "name" and isinstance(value, str)), "")
            self.refuse(f"{shown(twice)} stands twice in one object", "once", owner)
        return table

    def whole(self, word: str) -> int:
        if len(word.lstrip("-")) > self.limits.digits:
            self.refuse(f"a number of {len(word.lstrip('-'))} digits", f"at most {self.limits.digits}")
        return int(word)

    def real(self, word: str) -> float:
        if len(word) > self.limits.digits:
            self.refuse(f"a number of {len(word)} digits", f"at most {self.limits.digits}")
        return value if math.isfinite(value := float(word)) else self.constant(word)

    def constant(self, word: str) -> NoReturn:
        self.refuse(word, "a finite number")


def read_json(data: bytes, place: str, limits: DocumentLimits) -> Any:
    """The value of a text.

    Args:
      data: UTF-8.
      place: what messages call it.
      limits: of bytes, depth and digits.

    Raises:
      DocumentError: too large, too deep, no JSON, a name that stands twice in one object, NaN or an infinity, a number
        with too many digits.
    """
    own = _Numbers(place, limits)
    if len(data) > limits.bytes:
        own.refuse(f"{len(data)} bytes", f"at most {limits.bytes}")
    try:
        text = data.decode("utf-8")
        if (depth := _depth(text)) > limits.depth:
            own.refuse(f"objects and lists nested {depth} deep", f"at most {limits.depth}")
        hooks: dict[str, Any] = {"parse_int": own.whole, "parse_float": own.real, "parse_constant": own.constant}
        return json.loads(text, object_pairs_hook=own.once, **hooks)
    except UnicodeDecodeError as error:
        own.refuse(f"byte {error.start}, which is no UTF-8", "JSON in UTF-8")
    except json.JSONDecodeError as error:
        own.refuse(f"line {error.lineno}, column {error.colno}: {error.msg}", "JSON")


def _depth(text: str) -> int:
    """How deep objects and lists are nested; brackets within strings do not count."""
    depth = most = 0
    for letter in STRING.sub("", text):
        if letter in "[{":
            depth += 1
            most = max(most, depth)
        elif letter in "]}":
            depth -= 1
    return most
