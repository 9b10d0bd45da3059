"""What a document may not exceed, and how it is told what is wrong with it."""

from typing import NamedTuple

from esper.leyline.config import ConfigError
from esper.utils.documents import one_line

PARSE, GRAPH = "parse", "graph"
"""Stages: reading a document, and finding shapes and costs at a site."""


class DocumentLimits(NamedTuple):
    """The most of everything.

    Attributes:
      bytes: of a document.
      depth: of its nesting, and of an expression's.
      digits: of one number.
      bits: of every intermediate value of an expression.
      text: letters of a name; ten times as many of an expression, a hundred times of the description.
      nodes: of one form.
      rank: axes of a shape.
      activations: numbers per sample of one node.
      parameters: trained numbers of one network.
      buffers: numbers that are not trained.
      flops: multiply-adds per sample of one forward pass.
    """

    bytes: int = 4_000_000
    depth: int = 32
    digits: int = 32
    bits: int = 48
    text: int = 80
    nodes: int = 2000
    rank: int = 8
    activations: int = 10_000_000
    parameters: int = 10_000_000
    buffers: int = 10_000_000
    flops: int = 10_000_000_000


LIMITS = DocumentLimits()
"""The limits if none are given."""


class DocumentError(ConfigError):
    """A document that is refused; one line with place, stage, node, what was found and what is expected.

    Attributes:
      stage: "parse" or "graph".
      node: what the refusal is about: a node, a parameter, a field; "" for the whole.
      expected: what is allowed.
    """

    def __init__(self, place: str, stage: str, node: str, found: str, expected: str) -> None:
        self.place, self.stage, self.node, self.found, self.expected = place, stage, node, found, expected
        where = f"{stage}: {node}: " if node else f"{stage}: "
        super().__init__(one_line(f"{place}: {where}{found}; expected {expected}"))

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return DocumentError, (self.place, self.stage, self.node, self.found, self.expected)
