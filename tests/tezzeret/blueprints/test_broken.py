"""Broken documents: each is refused for its own reason, in one line that names stage and node, before anything runs."""

import copy
import random

import pytest
from blueprint_broken import BREAKS
from blueprint_generate import Made, documents

from esper.tezzeret.blueprints import DocumentError, infer, parse


def refused(name: str, made: Made, draw: random.Random) -> None:
    """Break a document and look at what is said."""
    broken = BREAKS[name](copy.deepcopy(made.table), draw)
    infer(parse(made.data, "whole"), made.source, made.target)  # it is the break that is refused
    with pytest.raises(DocumentError) as caught:
        infer(parse(broken.data, "drawn.json"), made.source, made.target)
    error, line = caught.value, str(caught.value)
    assert error.stage == broken.stage, line
    assert broken.words in line, (line, broken.words)
    assert broken.node in (None, error.node), (line, broken.node)
    assert "\n" not in line and "; expected " in line and len(line) < 1000 and error.expected in line


@pytest.mark.parametrize("name", BREAKS)
def test_each_class_is_refused_for_its_own_reason(name: str) -> None:
    for number, made in enumerate(documents(11, 3)):
        refused(name, made, random.Random(f"{name}/{number}"))


@pytest.mark.large
def test_five_hundred_broken_documents_are_refused() -> None:
    made = list(documents(12, 15))
    count = 0
    for name in BREAKS:
        for number, each in enumerate(made):
            refused(name, each, random.Random(f"{name}/{number}"))
            count += 1
    print(f"{count} broken documents of {len(BREAKS)} classes refused")  # noqa: T201
    assert count >= 500


def test_a_refusal_travels_between_processes() -> None:
    error = DocumentError("a.json", "graph", "node", "found", "wanted")
    rebuilt = error.__reduce__()[0](*error.__reduce__()[1])
    assert str(rebuilt) == str(error) == "a.json: graph: node: found; expected wanted"
    assert (rebuilt.stage, rebuilt.node, rebuilt.expected) == ("graph", "node", "wanted")
