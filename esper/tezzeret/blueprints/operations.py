"""The operations that a document may name: those of a graph (``esper.tezzeret.native.graph``), and a few layers.

| operation | inputs | gives |
|---|---|---|
| ``layer_norm`` | x, weight, bias | normalised over the last axis |
| ``silu`` | x | a number times its sigmoid |
| ``transpose`` | x | the last two axes change places |
| ``attention`` | queries, keys and values, side by side | each position mixed with those before it, in ``heads`` |
| ``dropout`` | x | a ``share`` of the numbers, or of ``whole`` channels, is 0; the others more; in training alone |
"""

from collections.abc import Mapping
from typing import NamedTuple

from esper.tezzeret.blueprints import shapes
from esper.tezzeret.blueprints.shapes import FlopsRule, ShapeRule


class Attribute(NamedTuple):
    """What an operation can be told.

    Attributes:
      kind: "size" (a whole number from 1), "real", "share" (from 0, below 1), "flag", "shape", "index" (places, -1 for
        0), "numbers".
      required: whether it has to be.
    """

    kind: str
    required: bool = True


class Operation(NamedTuple):
    """An operation.

    Attributes:
      inputs: how many.
      shape: of what it gives.
      attributes: what it can be told, by name.
      flops: multiply-adds per sample.
      forms: in which of training (True) and inference (False) it may stand.
    """

    inputs: range
    shape: ShapeRule
    attributes: Mapping[str, Attribute] = {}
    flops: FlopsRule = shapes.free
    forms: tuple[bool, ...] = (True, False)


SIZE, SHAPE = Attribute("size"), Attribute("shape")
OPTIONAL_SIZE, OPTIONAL_SHAPE = Attribute("size", False), Attribute("shape", False)
REAL = Attribute("real")
ONE, TWO, THREE, TWO_OR_THREE = range(1, 2), range(2, 3), range(3, 4), range(2, 4)
MAPPED = "relu sigmoid tanh gelu gelu_tanh softplus exp log sqrt reciprocal abs silu"
"""Operations on every number."""

OPERATIONS: dict[str, Operation] = {
    "constant": Operation(range(0, 1), shapes.constant, {"values": Attribute("numbers"), "shape": SHAPE}),
    "reshape": Operation(ONE, shapes.reshaped, {"shape": SHAPE}),
    "take": Operation(range(1, 65), shapes.taken, {"index": Attribute("index"), "shape": SHAPE}),
    "transpose": Operation(ONE, shapes.transposed),
    **{op: Operation(ONE, shapes.same) for op in MAPPED.split()},
    **{op: Operation(ONE, shapes.same, {"value": REAL}) for op in ("plus", "times")},
    **{op: Operation(TWO, shapes.paired, {"repeats": OPTIONAL_SIZE}) for op in ("add", "multiply")},
    "mean": Operation(ONE, shapes.reduced, {"each": SIZE, "shape": OPTIONAL_SHAPE}),
    "largest": Operation(ONE, shapes.reduced, {"each": SIZE, "first": Attribute("flag"), "shape": OPTIONAL_SHAPE}),
    "softmax": Operation(ONE, shapes.grouped, {"each": SIZE}),
    "normalise": Operation(ONE, shapes.grouped, {"each": SIZE, "eps": REAL}),
    "matmul": Operation(
        TWO, shapes.product, {"groups": SIZE, "inner": SIZE, "shape": OPTIONAL_SHAPE}, shapes.product_flops
    ),
    "linear": Operation(TWO_OR_THREE, shapes.linear, {}, shapes.linear_flops),
    "embed": Operation(TWO, shapes.embed),
    "convolve": Operation(
        TWO_OR_THREE, shapes.convolve, {"kernel": OPTIONAL_SIZE, "groups": OPTIONAL_SIZE}, shapes.convolve_flops
    ),
    "group_norm": Operation(THREE, shapes.channel_norm, {"groups": SIZE}),
    "layer_norm": Operation(THREE, shapes.layer_norm),
    "batch_norm": Operation(THREE, shapes.channel_norm, forms=(True,)),
    "batch_mean": Operation(ONE, shapes.statistic, forms=(True,)),
    "batch_variance": Operation(ONE, shapes.statistic, forms=(True,)),
    "running": Operation(TWO, shapes.running, forms=(True,)),
    "affine_norm": Operation(range(5, 6), shapes.channel_norm),
    "pool": Operation(ONE, shapes.pooled),
    "fade": Operation(THREE, shapes.fade),
    "attention": Operation(ONE, shapes.attention, {"heads": SIZE}, shapes.attention_flops),
    "dropout": Operation(
        ONE, shapes.same, {"share": Attribute("share"), "whole": Attribute("flag", False)}, forms=(True,)
    ),
}
"""By name. What each computes stands in ``esper.tezzeret.blueprints.eager_rules.EAGER``, under the same name."""

BY_NETWORK = ("batch_mean", "batch_variance", "running", "constant")
"""What these give is one for all samples, whatever they read."""

CARRIES = ("reshape", "take")
"""Operations that tokens may pass through on the way to ``embed``."""
