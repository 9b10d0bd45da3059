"""Documents that are valid by construction, drawn from a seed: plain JSON tables, written without the product's code.

A document is grown layer by layer at one pair of sites; sizes are written as numbers or as expressions that have their
value there. What is drawn stays tame: norms stand where zeros stay zeros, and no operation meets numbers at which it
has no value.
"""

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from esper.kasmina.site import Site, conv_site, token_site, vector_site

Shape = tuple[int, ...]
CURVES = ("relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus", "abs")
ZERO_AT_ZERO = ("relu", "tanh", "gelu", "gelu_tanh", "silu", "abs")


class Made(NamedTuple):
    """A document that was drawn, and the sites at which it was."""

    data: bytes
    table: dict[str, Any]
    source: Site
    target: Site


class Value(NamedTuple):
    """A node that was written: its name, its shape, and whether it is 0 where the features are."""

    name: str
    shape: Shape
    still: bool


def documents(seed: int, count: int) -> Iterator[Made]:
    """So many documents; equal seeds give equal ones, and a larger count continues a smaller."""
    for number in range(count):
        yield _Writer(random.Random(f"{seed}/{number}"), f"drawn_{seed}_{number}").document()


class _Writer:
    """A document on its way."""

    def __init__(self, draw: random.Random, name: str) -> None:
        self.draw, self.name = draw, name
        self.kind = draw.choice(("conv", "conv", "token", "vector", "tokens"))
        self.bypass = self.kind == "tokens" or draw.random() < 0.4
        self.source, self.target = self.sites()
        self.sizes: list[dict[str, Any]] = []
        self.parameters: list[dict[str, Any]] = []
        self.buffers: list[dict[str, Any]] = []
        self.new: dict[str, str] = {}
        self.train: list[dict[str, Any]] = []
        self.infer: list[dict[str, Any]] = []
        self.values = [Value("x", self.source.shape, True)]

    def sites(self) -> tuple[Site, Site]:
        low = self.draw.randint
        if self.kind == "conv":
            source = conv_site(low(2, 6), low(2, 5), low(2, 5))
            return source, Site("logits", (low(2, 5),), 0) if self.bypass else source
        if self.kind == "vector":
            source = vector_site(low(3, 9))
            return source, Site("logits", (low(2, 5),), 0) if self.bypass else source
        length, width = low(2, 5), low(3, 8)
        source = Site("tokens", (length,), 0) if self.kind == "tokens" else token_site(length, width)
        return source, Site("logits", (length, low(2, 6)), 1, 0) if self.bypass else source

    # names and sizes

    def fresh(self, stem: str) -> str:
        return f"{stem}{len(self.train) + len(self.parameters) + len(self.buffers)}"

    def size(self, value: int) -> Any:
        """A number, or an expression that has its value at these sites."""
        known = {"conv": ("channels", "height", "width"), "token": ("length", "channels"), "vector": ("channels",)}
        names = dict(zip(known.get(self.kind, ("length",)), self.source.shape, strict=True))
        names |= {size["name"]: size["at"] for size in self.sizes}
        if self.bypass:
            names["target_channels"] = self.target.channels
        name, own = self.draw.choice(sorted(names.items()))
        if name == "target_channels":  # which a running seed knows as the axis of a parameter alone
            return name if own == value else value
        ways = [value, f"{name} + {value - own}" if value >= own else f"{name} - {own - value}"]
        ways.append(f"max({value}, {name} - {own})")
        ways.append(f"min({value}, {name} * {value})" if own else value)
        ways += [f"{name} * {value // own}"] if value % own == 0 else []
        ways += [f"{name} // {own // value}"] if own // value * value == own and own % value == 0 else []
        ways += [f"divisor({name}, {value})"] if own % value == 0 else []
        ways += [f"power_divisor({name} * 0 + {8 * value}, 8) * {value} // {power(8 * value)}"]
        ways += [f"if({name} == {own}, {value}, 1)", f"({name} % {own} + {value})"]
        text = self.draw.choice(ways)
        if isinstance(text, str) and self.draw.random() < 0.2 and len(self.sizes) < 4:
            named = f"size_{len(self.sizes)}"
            self.sizes.append({"name": named, "value": text, "at": value})
            return named
        return text

    # tensors and nodes

    def parameter(self, stem: str, shape: Shape, zero: bool = False, target: int | None = None) -> str:
        """A parameter; ``target``: the axis that is the target's channels."""
        name = self.fresh(stem) + self.draw.choice(("", ".weight", "_w"))
        sides = ["target_channels" if axis == target else self.size(side) for axis, side in enumerate(shape)]
        into = 1
        for side in shape[1:]:
            into *= side
        scale: Any = self.draw.choice(({"over_root": self.size(into)}, {"over": self.size(into + 1)}, into**-0.5))
        init = "constant" if zero else self.draw.choice(("uniform", "uniform", "normal", "positive"))
        row = {"name": name, "shape": sides, "init": init, "scale": 0 if zero else scale}
        count = into * shape[0]
        if not zero and self.draw.random() < 0.1 and all(isinstance(side, int) for side in sides) and count < 60:
            values = [round(self.draw.uniform(-1, 1), 3) for _ in range(count)]
            row = {"name": name, "shape": sides, "init": self.draw.choice(("given", "shuffled")), "values": values}
        self.parameters.append(row)
        return name

    def row(self, stem: str, count: int, value: float) -> str:
        name = self.fresh(stem)
        self.parameters.append({"name": name, "shape": [self.size(count)], "init": "constant", "scale": value})
        return name

    def node(self, op: str, inputs: list[str], gives: Shape, still: bool, **attributes: Any) -> Value:
        name = self.fresh(op + "_")
        written = {"name": name, "op": op, "inputs": inputs, **attributes}
        self.train.append(written)
        self.infer.append(written)
        self.values.append(Value(name, gives, still))
        return self.values[-1]

    # layers: from the last value to another

    def layers(self, last: Value) -> list[Any]:
        rank = len(last.shape)
        found = [self.curve, self.curve, self.scaled, self.joined, self.gated, self.safe]
        found += [self.mixed, self.mixed, self.mixed, self.moved]
        if last.still:
            found += [self.channel_norm, self.batch_norm] if self.kind == "conv" else [self.normalised, self.layer_norm]
        if rank == 3 and self.bypass and min(last.shape[1:]) >= 2:
            found.append(self.pooled)
        if rank == 2 and self.kind in ("token", "tokens"):
            found += [self.attention, self.softmax]
        if self.kind == "vector":
            found += [self.matrices, self.softmax, self.halves]
        return found

    def curve(self, last: Value) -> Value:
        op = self.draw.choice(CURVES)
        return self.node(op, [last.name], last.shape, last.still and op in ZERO_AT_ZERO)

    def scaled(self, last: Value) -> Value:
        if self.draw.random() < 0.5:
            value = self.draw.choice((0.5, -1.5, {"over_root": self.size(self.draw.randint(2, 9))}))
            return self.node("times", [last.name], last.shape, last.still, value=value)
        return self.node("plus", [last.name], last.shape, False, value=self.draw.choice((0.25, -1, 2.0)))

    def safe(self, last: Value) -> Value:
        """An operation that has no value, or a huge one, at some numbers; not at these."""
        op = self.draw.choice(("sqrt", "log", "reciprocal", "exp"))
        if op == "exp":
            bent = self.node("tanh", [last.name], last.shape, last.still)
            return self.node("exp", [bent.name], last.shape, False)
        size = self.node("abs", [last.name], last.shape, last.still)
        above = self.node("plus", [size.name], last.shape, False, value=1)
        return self.node(op, [above.name], last.shape, False)

    def joined(self, last: Value) -> Value:
        """With another of the same shape, or with parameters along an axis."""
        others = [value for value in self.values[:-1] if value.shape == last.shape and self.is_features(value)]
        op = self.draw.choice(("add", "multiply"))
        if others and self.draw.random() < 0.7:
            other = self.draw.choice(others)
            still = (last.still and other.still) if op == "add" else (last.still or other.still)
            return self.node(op, [last.name, other.name], last.shape, still)
        first = self.kind == "conv"
        row = self.parameter("gain", (last.shape[0 if first else -1],))
        repeats = 1
        for side in () if first else last.shape[:-1]:
            repeats *= side
        marks = {} if repeats == 1 else {"repeats": self.size(repeats)}
        return self.node(op, [last.name, row], last.shape, last.still and op == "multiply", **marks)

    def is_features(self, value: Value) -> bool:
        return value.name != "x" or self.kind != "tokens"

    def gated(self, last: Value) -> Value:
        if self.kind == "conv":
            channels, positions = last.shape[0], last.shape[1] * last.shape[2]
            op = self.draw.choice(("mean", "largest"))
            marks = {"first": True} if op == "largest" else {}
            means = self.node(
                op, [last.name], (channels,), last.still, each=positions, shape=[self.size(channels)], **marks
            )
            gate = self.affine(means, channels)
            opened = self.node("sigmoid", [gate.name], (channels,), False)
            return self.node("multiply", [last.name, opened.name], last.shape, last.still)
        other = self.affine(last, last.shape[-1])
        openness = self.row("openness", 1, 0.1)
        return self.node("fade", [last.name, other.name, openness], last.shape, last.still and other.still)

    def affine(self, last: Value, out: int, zero: bool = False, target: bool = False) -> Value:
        """A linear layer of the last axis."""
        weight = self.parameter("matrix", (out, last.shape[-1]), zero, 0 if target else None)
        inputs, still = [last.name, weight], last.still
        if target or self.draw.random() < 0.5:
            inputs.append(self.parameter("bias", (out,), True, 0 if target else None))
        return self.node("linear", inputs, (*last.shape[:-1], out), still and len(inputs) == 2)

    def mixed(self, last: Value) -> Value:
        out = self.draw.randint(2, 6)
        return self.convolved(last, out) if self.kind == "conv" else self.affine(last, out)

    def convolved(self, last: Value, out: int, zero: bool = False) -> Value:
        into, kernel = last.shape[0], self.draw.choice((1, 3, 3, 5))
        groups = self.draw.choice([g for g in range(1, into + 1) if into % g == 0 and out % g == 0])
        weight = self.parameter("kernel", (out, into // groups, kernel, kernel), zero)
        inputs = [last.name, weight]
        if not zero and self.draw.random() < 0.4:
            inputs.append(self.parameter("bias", (out,), self.draw.random() < 0.5))
        marks = {"kernel": kernel} if kernel > 1 else {}
        marks |= {"groups": self.size(groups)} if groups > 1 else {}
        return self.node("convolve", inputs, (out, *last.shape[1:]), last.still and len(inputs) == 2, **marks)

    def channel_norm(self, last: Value) -> Value:
        channels = last.shape[0]
        groups = self.draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
        rows = [self.row("norm", channels, 1), self.row("shift", channels, 0)]
        return self.node("group_norm", [last.name, *rows], last.shape, True, groups=self.size(groups))

    def batch_norm(self, last: Value) -> Value:
        """By the batch's statistics in training, by their running averages in inference."""
        channels, name = last.shape[0], self.fresh("batch_norm_")
        rows = [self.row("norm", channels, 1), self.row("shift", channels, 0)]
        held = [self.fresh("mean"), self.fresh("variance")]
        for buffer, value in zip(held, (0, 1), strict=True):
            self.buffers.append({"name": buffer, "shape": [channels], "init": "constant", "scale": value})
        self.train.append({"name": name, "op": "batch_norm", "inputs": [last.name, *rows]})
        for buffer, op in zip(held, ("batch_mean", "batch_variance"), strict=True):
            self.train.append({"name": f"{op}_of_{name}", "op": op, "inputs": [name]})
            self.train.append({"name": f"new_{buffer}", "op": "running", "inputs": [buffer, f"{op}_of_{name}"]})
            self.new[buffer] = f"new_{buffer}"
        self.infer.append({"name": name, "op": "affine_norm", "inputs": [last.name, *rows, *held]})
        self.values.append(Value(name, last.shape, True))
        return self.values[-1]

    def normalised(self, last: Value) -> Value:
        return self.node("normalise", [last.name], last.shape, True, each=self.size(last.shape[-1]), eps=1e-5)

    def layer_norm(self, last: Value) -> Value:
        rows = [self.row("norm", last.shape[-1], 1), self.row("shift", last.shape[-1], 0)]
        return self.node("layer_norm", [last.name, *rows], last.shape, True)

    def softmax(self, last: Value) -> Value:
        return self.node("softmax", [last.name], last.shape, False, each=self.size(last.shape[-1]))

    def attention(self, last: Value) -> Value:
        width = self.draw.choice((2, 4))
        asked = self.affine(last, 3 * width)
        heads = self.size(self.draw.choice((1, 2)))
        return self.node("attention", [asked.name], (last.shape[0], width), asked.still, heads=heads)

    def pooled(self, last: Value) -> Value:
        channels, height, width = last.shape
        return self.node("pool", [last.name], (channels, height // 2, width // 2), last.still)

    def moved(self, last: Value) -> Value:
        """Channels in another order."""
        channels, each = last.shape[0 if self.kind == "conv" else -1], 1
        order = self.draw.sample(range(channels), channels)
        for side in last.shape[1:] if self.kind == "conv" else ():
            each *= side
        if self.kind == "conv":
            index = [channel * each + place for channel in order for place in range(each)]
        else:
            rows = [row * channels for row in range(last.shape[0] if len(last.shape) > 1 else 1)]
            index = [row + channel for row in rows for channel in order]
        return self.node("take", [last.name], last.shape, last.still, index=index, shape=list(last.shape))

    def halves(self, last: Value) -> Value:
        """The vector's ends put together, with zeros between."""
        width = last.shape[0]
        index = [0, -1, width - 1]
        return self.node("take", [last.name], (3,), last.still, index=index, shape=[3])

    def matrices(self, last: Value) -> Value:
        """A vector as a row of a matrix product with the transposed product of parameters."""
        width, out = last.shape[0], self.draw.randint(2, 5)
        left = self.parameter("left", (out, width))
        turned = self.node("transpose", [left], (width, out), False)
        self.values.pop()  # no features
        rows = self.node("reshape", [last.name], (1, width), last.still, shape=[1, self.size(width)])
        self.values.pop()
        found = self.node("matmul", [rows.name, turned.name], (1, 1, out), last.still, groups=1, inner=width)
        self.values.pop()
        return self.node("reshape", [found.name], (out,), last.still, shape=[out])

    # the whole

    def document(self) -> Made:
        last = self.values[0]
        if self.kind == "tokens":
            last = self.embedded()
        for _ in range(self.draw.randint(1, 5)):
            last = self.draw.choice(self.layers(last))(last)
        last = self.to_target(last) if self.bypass else self.to_source(last)
        case: dict[str, Any] = {"source": [self.kind]}
        if self.bypass:
            case["target"] = ["logits"]
        if self.draw.random() < 0.5:
            case["where"] = ["numbers > 1"] + ([f"target_channels > {self.target.channels - 1}"] if self.bypass else [])
        if self.sizes:
            case["sizes"] = [{"name": size["name"], "value": size["value"]} for size in self.sizes]
        case["parameters"] = self.parameters
        train: dict[str, Any] = {"nodes": self.train, "output": last.name}
        if self.buffers:
            case["buffers"], train["buffers"] = self.buffers, self.new
            case["infer"] = {"nodes": self.infer, "output": last.name}
        case["train"] = train
        table = {"format": 1, "name": self.name, "bypass": self.bypass, "cases": [case]}
        if self.draw.random() < 0.5:
            table["description"] = f"drawn: {len(self.train)} nodes"
        return Made(json.dumps(table).encode(), table, self.source, self.target)

    def embedded(self) -> Value:
        width = self.draw.randint(2, 6)
        table = self.parameter("table", (self.target.channels, width), target=0)
        found = self.node("embed", ["x", table], (*self.source.shape, width), False)
        if self.draw.random() < 0.5:
            return found
        places = self.parameter("position", (self.source.shape[0], width))
        return self.node("add", [found.name, places], found.shape, False)

    def to_target(self, last: Value) -> Value:
        zero = self.draw.random() < 0.5
        if self.kind == "conv":
            positions = last.shape[1] * last.shape[2]
            last = self.node("mean", [last.name], last.shape[:1], last.still, each=positions, shape=[last.shape[0]])
        return self.affine(last, self.target.channels, zero, target=True)

    def to_source(self, last: Value) -> Value:
        """Back to the features' shape, and added to them."""
        axis = 0 if self.kind == "conv" else -1
        zero = self.draw.random() < 0.5
        if last.shape != self.source.shape or zero or not self.parameters:
            channels = self.source.shape[axis]
            last = self.convolved(last, channels, zero) if self.kind == "conv" else self.affine(last, channels, zero)
        if self.draw.random() < 0.8 and last.name != "x":
            last = self.node("add", ["x", last.name], self.source.shape, last.still)
        return last


def power(n: int) -> int:
    """The largest power of two up to 8 that divides n."""
    return max(two for two in (1, 2, 4, 8) if n % two == 0)
