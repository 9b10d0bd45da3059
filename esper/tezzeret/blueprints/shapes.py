"""Shapes of what operations give, from those of what they read; and what they cost.

A rule takes the nodes that an operation reads, and its attributes; it gives the shape of one sample or network.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from esper.tezzeret.native.graph import Node, Shape

Inputs = tuple[Node, ...]
Attributes = Mapping[str, Any]
ShapeRule = Callable[[Inputs, Attributes], Shape]
FlopsRule = Callable[[Inputs, Shape, Attributes], int]


class ShapeError(ValueError):
    """What an operation was given; ``expected``: what it takes."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found, self.expected = found, expected


def expect(holds: bool, found: str, expected: str) -> None:
    """Raise ``ShapeError`` unless something holds."""
    if not holds:
        raise ShapeError(found, expected)


def words(*nodes: Node) -> str:
    """Shapes in words."""
    return " and ".join(f"shape {list(node.shape)}" for node in nodes)


def same(inputs: Inputs, given: Attributes) -> Shape:
    """As the first."""
    return inputs[0].shape


def reshaped(inputs: Inputs, given: Attributes) -> Shape:
    """The shape that is asked for."""
    shape: Shape = given["shape"]
    expect(math.prod(shape) == inputs[0].size, f"{words(inputs[0])} to {list(shape)}", "as many numbers")
    return shape


def constant(inputs: Inputs, given: Attributes) -> Shape:
    """The shape that is asked for."""
    shape: Shape = given["shape"]
    expect(
        math.prod(shape) == len(given["values"]), f"{len(given['values'])} values for {list(shape)}", "one per place"
    )
    return shape


def taken(inputs: Inputs, given: Attributes) -> Shape:
    """The shape that is asked for."""
    shape, index, size = given["shape"], given["index"], sum(node.size for node in inputs)
    expect(math.prod(shape) == len(index), f"an index of {len(index)} places for {list(shape)}", "one per place")
    expect(not index or max(index) < size, f"index {max(index, default=0)} of {size} numbers", f"-1 to {size - 1}")
    return tuple(shape)


def paired(inputs: Inputs, given: Attributes) -> Shape:
    """As x; y has the same shape, or fewer numbers, each for as many neighbours of x in each of equal parts."""
    x, y = inputs
    covered = y.size * given.get("repeats", 1)
    fits = x.shape == y.shape or (y.size <= x.size and covered > 0 and x.size % covered == 0)
    expect(fits, words(x, y), "equal shapes, or a second whose numbers times repeats divide those of the first")
    return x.shape


def _trailing(node: Node, each: int) -> int | None:
    """How many last axes have so many numbers."""
    sides = [math.prod(node.shape[-count:]) for count in range(1, len(node.shape) + 1)]
    return sides.index(each) + 1 if each in sides else None


def reduced(inputs: Inputs, given: Attributes) -> Shape:
    """Without the axes over which it goes, or the shape that is asked for."""
    (x,), each = inputs, given["each"]
    if "shape" in given:
        shape: Shape = given["shape"]
        expect(math.prod(shape) * each == x.size, f"{words(x)} in parts of {each} to {list(shape)}", "one per part")
        return shape
    count = _trailing(x, each)
    expect(count is not None, f"{words(x)} in parts of {each}", "the product of its last axes")
    return x.shape[: len(x.shape) - (count or 0)]


def grouped(inputs: Inputs, given: Attributes) -> Shape:
    """As x, in parts of ``each``."""
    expect(inputs[0].size % given["each"] == 0, f"{words(inputs[0])} in parts of {given['each']}", "equal parts")
    return inputs[0].shape


def product(inputs: Inputs, given: Attributes) -> Shape:
    """[groups, rows, columns], or the shape that is asked for."""
    (x, y), groups, inner = inputs, given["groups"], given["inner"]
    fits = x.size % (groups * inner) == 0 and y.size % (groups * inner) == 0
    expect(fits, f"{words(x, y)} as {groups} products over {inner}", "whole matrices")
    shape = (groups, x.size // (groups * inner), y.size // (groups * inner))
    if "shape" not in given:
        return shape
    expect(math.prod(given["shape"]) == math.prod(shape), f"{list(shape)} to {given['shape']}", "as many numbers")
    return tuple(given["shape"])


def _by_network(*nodes: Node) -> None:
    for node in nodes:
        expect(not node.by_sample, "weights that differ from sample to sample", "parameters, buffers, or what follows")


def linear(inputs: Inputs, given: Attributes) -> Shape:
    """The last axis in another width."""
    x, weight, *bias = inputs
    _by_network(weight, *bias)
    expect(x.by_sample, "parameters alone", "features first")
    expect(len(x.shape) > 0 and len(weight.shape) > 0, words(x, weight), "a last axis, and a weight [out, in]")
    out = weight.shape[0]
    expect(weight.size == out * x.shape[-1], words(x, weight), f"a weight [out, {x.shape[-1]}]")
    expect(all(each.size == out for each in bias), words(weight, *bias), f"a bias [{out}]")
    return (*x.shape[:-1], out)


def embed(inputs: Inputs, given: Attributes) -> Shape:
    """Of every token its row."""
    tokens, table = inputs
    _by_network(table)
    expect(len(table.shape) > 0, words(table), "a table with a row per token")
    return (*tokens.shape, *table.shape[1:])


def convolve(inputs: Inputs, given: Attributes) -> Shape:
    """Other channels."""
    x, weight, *bias = inputs
    kernel, groups = given.get("kernel", 1), given.get("groups", 1)
    _by_network(weight, *bias)
    expect(x.by_sample, "parameters alone", "features first")
    expect(len(x.shape) > 0 and len(weight.shape) > 0, words(x, weight), "channels, and a weight [out, in, k, k]")
    into, out = x.shape[0], weight.shape[0]
    expect(
        kernel % 2 == 1 and (kernel == 1 or len(x.shape) == 3), f"kernel {kernel} on {words(x)}", "an odd one, a map"
    )
    divides = into % groups == 0 and out % groups == 0
    expect(divides, f"{groups} groups of {into} to {out} channels", "a number that divides both")
    wanted = [out, into // groups, kernel, kernel]
    expect(weight.size == math.prod(wanted), words(x, weight), f"a weight {wanted}")
    expect(all(each.size == out for each in bias), words(weight, *bias), f"a bias [{out}]")
    return (out, *x.shape[1:])


def channel_norm(inputs: Inputs, given: Attributes) -> Shape:
    """As x, with a row per channel."""
    x, *rows = inputs
    _by_network(*rows)
    expect(x.by_sample and len(x.shape) > 0, words(x), "features with channels first")
    expect(all(row.size == x.shape[0] for row in rows), words(x, *rows), f"rows [{x.shape[0]}]")
    groups = given.get("groups", 1)
    expect(x.shape[0] % groups == 0, f"{groups} groups of {x.shape[0]} channels", "a number that divides them")
    return x.shape


def layer_norm(inputs: Inputs, given: Attributes) -> Shape:
    """As x, with a row per number of the last axis."""
    x, *rows = inputs
    _by_network(*rows)
    fits = x.by_sample and len(x.shape) > 0 and all(row.shape == x.shape[-1:] for row in rows)
    expect(fits, words(x, *rows), f"features and rows {list(x.shape[-1:])}")
    return x.shape


def statistic(inputs: Inputs, given: Attributes) -> Shape:
    """Per channel."""
    expect(inputs[0].op == "batch_norm", f"a node of {inputs[0].op}", "one of batch_norm")
    return inputs[0].shape[:1]


def running(inputs: Inputs, given: Attributes) -> Shape:
    """As the buffer."""
    held, new = inputs
    expect(held.op == "buffer", f"a node of {held.op}", "a buffer first")
    expect(held.shape == new.shape and not new.by_sample, words(held, new), "a statistic of the buffer's shape")
    return held.shape


def pooled(inputs: Inputs, given: Attributes) -> Shape:
    """Half as high and wide."""
    shape = inputs[0].shape
    expect(len(shape) == 3 and min(shape[1:]) >= 2, words(inputs[0]), "a map of two rows and two columns or more")
    return shape[0], shape[1] // 2, shape[2] // 2


def fade(inputs: Inputs, given: Attributes) -> Shape:
    """As both ends."""
    x, y, openness = inputs
    _by_network(openness)
    expect(x.shape == y.shape, words(x, y), "equal shapes")
    expect(openness.size == 1, words(openness), "one number")
    return x.shape


def attention(inputs: Inputs, given: Attributes) -> Shape:
    """A third as wide."""
    (x,), heads = inputs, given["heads"]
    fits = x.by_sample and len(x.shape) == 2 and x.shape[1] % (3 * heads) == 0
    expect(fits, f"{words(x)} with {heads} heads", "[positions, 3 width], heads that divide the width")
    return x.shape[0], x.shape[1] // 3


def transposed(inputs: Inputs, given: Attributes) -> Shape:
    """The last two axes change places."""
    shape = inputs[0].shape
    expect(len(shape) >= 2, words(inputs[0]), "two axes or more")
    return (*shape[:-2], shape[-1], shape[-2])


def free(inputs: Inputs, shape: Shape, given: Attributes) -> int:
    """No products of sums."""
    return 0


def linear_flops(inputs: Inputs, shape: Shape, given: Attributes) -> int:
    """Of a matrix at every position."""
    return math.prod(inputs[0].shape[:-1]) * inputs[1].size


def convolve_flops(inputs: Inputs, shape: Shape, given: Attributes) -> int:
    """Of a window at every position."""
    return math.prod(shape[1:]) * inputs[1].size


def product_flops(inputs: Inputs, shape: Shape, given: Attributes) -> int:
    """Of matrices."""
    return math.prod(shape) * int(given["inner"])


def attention_flops(inputs: Inputs, shape: Shape, given: Attributes) -> int:
    """Scores, and what they mix."""
    return 2 * shape[0] ** 2 * shape[1]
