"""The blueprint document: a kind of seed as a value, and as JSON.

    {"format": 1, "name": "lora", "description": "x + up(down(x))", "bypass": false, "identity_bound": 0,
     "cases": [
       {"source": ["token", "vector"],
        "where": ["channels > 1"],
        "sizes": [{"name": "rank", "value": "min(8, channels)"}],
        "parameters": [
          {"name": "down", "shape": ["rank", "channels"], "init": "uniform", "scale": {"over_root": "channels"}},
          {"name": "up", "shape": ["channels", "rank"], "init": "constant", "scale": 0}],
        "train": {
          "nodes": [
            {"name": "narrow", "op": "linear", "inputs": ["x", "down"]},
            {"name": "wide", "op": "linear", "inputs": ["narrow", "up"]},
            {"name": "sum", "op": "add", "inputs": ["x", "wide"]}],
          "output": "sum"}}]}

A case says for which sites it is; the first whose kinds and conditions hold counts. A form is a graph: its nodes stand
in order, and read ``x``, the features of one sample (or its tokens), parameters, buffers and nodes before them, by
name. ``infer`` is there where inference differs from training. A seed that runs is told tensors, not sites: what a node
needs to know of the target stands, by its bare name, in the shape of a parameter, and of several cases the source and
the parameters say which it is.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from esper.kasmina.site import Site
from esper.tezzeret.blueprints.sizes import Size, evaluate

FORMAT = 1
"""The version of the form of documents."""

INPUT = "x"
"""What nodes call the features."""

Real = float | tuple[str, Size]
"""A number, or ("over_root", n): n ** -0.5, or ("over", n): 1 / n."""

Setting = Size | Real | bool | tuple[Size, ...] | tuple[float, ...]
"""A node's attribute."""

RANKS = {"conv": (3,), "token": (2,), "vector": (1,), "tokens": (1,), "logits": (1, 2)}
"""Kinds of sites -> how many axes their features have."""

SOURCES = ("conv", "token", "vector", "tokens")
"""Kinds that a seed reads from."""

INITS = ("constant", "uniform", "positive", "normal", "given", "shuffled")
"""Initial distributions; see ``esper.kasmina.layout.Param``."""


class TensorRow(NamedTuple):
    """A parameter or a buffer.

    Attributes:
      name: unique among all names of its case.
      shape: of one network.
      init: one of ``INITS``.
      scale: of the distribution; 0 where numbers are given.
      values: the given numbers; else ().
    """

    name: str
    shape: tuple[Size, ...]
    init: str
    scale: Real
    values: tuple[float, ...] = ()


class Call(NamedTuple):
    """A node.

    Attributes:
      name: unique among all names of its form.
      op: an operation (``esper.tezzeret.blueprints.operations``).
      inputs: names.
      attributes: name, value; in the order of names.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: tuple[tuple[str, Setting], ...] = ()


class Form(NamedTuple):
    """A graph of layers.

    Attributes:
      nodes: in order.
      output: the name of its result.
      buffers: buffer, the node of its new value; empty where they stay.
    """

    nodes: tuple[Call, ...]
    output: str
    buffers: tuple[tuple[str, str], ...] = ()


class SiteCase(NamedTuple):
    """What a seed is between sites of some kinds.

    Attributes:
      source: kinds that it reads from.
      target: kinds that it acts on; () where it acts at the point that it reads from.
      where: conditions on the sites; all must hold.
      sizes: name, expression; each may read those before it.
      parameters: what is trained.
      buffers: what is not.
      train: in training.
      infer: in inference; None: the same.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    where: tuple[str, ...]
    sizes: tuple[tuple[str, Size], ...]
    parameters: tuple[TensorRow, ...]
    buffers: tuple[TensorRow, ...]
    train: Form
    infer: Form | None = None

    def form(self, is_training: bool) -> Form:
        """Training or inference."""
        return self.train if is_training or self.infer is None else self.infer


class Document(NamedTuple):
    """A kind of seed. Two are equal if they say the same.

    Attributes:
      name: lower-case identifier.
      description: for people.
      bypass: whether it acts at another point than it reads from.
      identity_bound: largest |y - x| at initialisation, or |y| of a bypass, in units of the input's RMS; None: none.
      cases: in order.
    """

    name: str
    description: str
    bypass: bool
    identity_bound: float | None
    cases: tuple[SiteCase, ...]

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers."""
        return any(call.op == "dropout" for case in self.cases for call in case.train.nodes)


def source_sizes(kind: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes of features by name: ``channels``, ``height``, ``width``, ``length``; ``positions``, ``numbers``, ``axes``.

    Tokens have no channels; ``width`` is that of maps alone.
    """
    names = {"conv": ("channels", "height", "width"), "token": ("length", "channels"), "vector": ("channels",)}
    if kind == "logits":
        names["logits"] = ("length", "channels")[2 - len(shape) :]
    found = dict(zip(names.get(kind, ("length",)), shape, strict=True))
    numbers = 1
    for side in shape:
        numbers *= side
    positions = numbers // found.get("channels", 1) if numbers else 0
    return found | {"positions": positions, "numbers": numbers, "axes": len(shape)}


def target_sizes(site: Site) -> dict[str, int]:
    """Sizes of the target: those of a source behind ``target_``, ``target_causal`` (1 or 0), and ``classes``, another
    name of its channels.
    """
    found = {f"target_{name}": value for name, value in source_sizes(site.kind, site.shape).items()}
    found["target_causal"] = int(site.time_axis is not None)
    return found | ({"classes": found["target_channels"]} if "target_channels" in found else {})


SOURCE_NAMES = ("channels", "height", "width", "length", "positions", "numbers", "axes")
TARGET_NAMES = (*(f"target_{name}" for name in SOURCE_NAMES), "target_causal", "classes")
"""What expressions may read, where the sites have it."""


def to_table(document: Document) -> dict[str, Any]:
    """A document as JSON's values."""
    table = {"format": FORMAT, "name": document.name, "description": document.description, "bypass": document.bypass}
    cases = [_case(case) for case in document.cases]
    bound = {} if document.identity_bound is None else {"identity_bound": document.identity_bound}
    return table | bound | {"cases": cases}


def canonical(document: Document) -> bytes:
    """The one form of a document in bytes: names sorted, no white space, ASCII. ``parse`` gives the document back."""
    text = json.dumps(to_table(document), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def readable(document: Document) -> str:
    """A document as people read it: a line for every node, parameter and size."""
    return _lines(to_table(document), 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    inner, ends = ("  " * (depth + 1)), "  " * depth
    if isinstance(value, dict) and any(isinstance(each, dict | list) and _is_deep(each) for each in value.values()):
        parts = [f"{inner}{json.dumps(name)}: {_lines(each, depth + 1)}" for name, each in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{ends}}}"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "[\n" + ",\n".join(inner + _lines(each, depth + 1) for each in value) + f"\n{ends}]"
    return json.dumps(value, allow_nan=False)


def _is_deep(value: Any) -> bool:
    """Whether lists of objects are in it."""
    if isinstance(value, list):
        return any(isinstance(each, dict) for each in value)
    return isinstance(value, dict) and any(_is_deep(each) for each in value.values())


def _case(case: SiteCase) -> dict[str, Any]:
    table: dict[str, Any] = {"source": list(case.source)}
    if case.target:
        table["target"] = list(case.target)
    if case.where:
        table["where"] = list(case.where)
    if case.sizes:
        table["sizes"] = [{"name": name, "value": value} for name, value in case.sizes]
    table["parameters"] = [_row(row) for row in case.parameters]
    if case.buffers:
        table["buffers"] = [_row(row) for row in case.buffers]
    table["train"] = _form(case.train)
    return table if case.infer is None else table | {"infer": _form(case.infer)}


def _row(row: TensorRow) -> dict[str, Any]:
    table: dict[str, Any] = {"name": row.name, "shape": list(row.shape), "init": row.init}
    return table | ({"values": list(row.values)} if row.init in ("given", "shuffled") else {"scale": _real(row.scale)})


def _real(value: Real) -> Any:
    return {value[0]: value[1]} if isinstance(value, tuple) else value


def _form(form: Form) -> dict[str, Any]:
    table: dict[str, Any] = {"nodes": [_call(call) for call in form.nodes], "output": form.output}
    return table | ({"buffers": dict(form.buffers)} if form.buffers else {})


def _call(call: Call) -> dict[str, Any]:
    return {"name": call.name, "op": call.op, "inputs": list(call.inputs)} | {
        name: _setting(value) for name, value in call.attributes
    }


def _setting(value: Setting) -> Any:
    if isinstance(value, tuple):
        if value and value[0] in ("over_root", "over"):
            return _real(value)  # type: ignore[arg-type]
        return ["-inf" if each == -math.inf else each for each in value]  # of masks
    return value


def sizes_at(case: SiteCase, names: Mapping[str, int]) -> dict[str, int]:
    """The sites' sizes and those that a case names.

    Raises:
      SizeError: one has no value.
    """
    found = dict(names)
    for name, text in case.sizes:
        found[name] = evaluate(text, found)
    return found
