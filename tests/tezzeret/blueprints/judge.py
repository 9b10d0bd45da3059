"""Documents rendered a second time, independently: as a ``torch.nn.Module`` of one network, read from the JSON table.

Nothing here is the product's: sizes are Python's own arithmetic, layers are those of ``torch.nn.functional``.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def divisor(n: int, most: int) -> int:
    return max(d for d in range(1, n + 1) if n % d == 0 and (d <= most or d == 1))


def power_divisor(n: int, most: int) -> int:
    return max(2**k for k in range(30) if n % 2**k == 0 and (2**k <= most or k == 0))


FUNCTIONS = {
    "min": min,
    "max": max,
    "divisor": divisor,
    "power_divisor": power_divisor,
    "either": lambda condition, x, y: x if condition else y,
}
NAMES = {"conv": ("channels", "height", "width"), "token": ("length", "channels"), "vector": ("channels",)}
CURVES = {
    **{op: getattr(torch, op) for op in ("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "reciprocal", "abs")},
    **{op: getattr(F, op) for op in ("gelu", "silu", "softplus")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Judge(nn.Module):
    """A document at a site: its parameters by name, in order, and a forward of one network."""

    def __init__(self, table: dict[str, Any], source: Any, target: Any) -> None:
        super().__init__()
        (self.case,) = table["cases"]
        kind, shape = source.kind, source.shape
        self.names = dict(zip(NAMES.get(kind, ("length",)), shape, strict=True))
        self.names |= {"numbers": math.prod(shape), "target_channels": target.channels}
        for size in self.case.get("sizes", []):
            self.names[size["name"]] = self.size(size["value"])
        assert all(self.size(condition) for condition in self.case.get("where", []))
        self.shapes = {row["name"]: self.shape(row["shape"]) for row in self.case["parameters"]}
        self.own = {row["name"]: nn.Parameter(torch.zeros(self.shapes[row["name"]])) for row in self.case["parameters"]}
        for number, value in enumerate(self.own.values()):
            self.register_parameter(f"tensor{number}", value)
        self.held = {
            row["name"]: torch.full(self.shape(row["shape"]), float(row["scale"]))
            for row in self.case.get("buffers", [])
        }

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.parameters())

    def size(self, text: Any) -> int:
        return text if isinstance(text, int) else int(eval(text.replace("if(", "either("), {**FUNCTIONS, **self.names}))

    def shape(self, sides: list[Any]) -> tuple[int, ...]:
        return tuple(self.size(side) for side in sides)

    def real(self, value: Any) -> float:
        if not isinstance(value, dict):
            return float(value)
        ((kind, size),) = value.items()
        return 1 / math.sqrt(self.size(size)) if kind == "over_root" else 1 / self.size(size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, *shape]; new statistics take the place of the old in training."""
        form = self.case["train"] if self.training or "infer" not in self.case else self.case["infer"]
        self.values = {"x": x, **self.own, **{name: value.clone() for name, value in self.held.items()}}
        self.features = {"x"}
        for node in form["nodes"]:
            inputs = [self.values[name] for name in node["inputs"]]
            if any(name in self.features for name in node["inputs"]):
                self.features.add(node["name"])
            self.values[node["name"]] = getattr(self, f"do_{node['op']}", self.do_curve)(node, *inputs)
        for buffer, new in form.get("buffers", {}).items():
            self.held[buffer] = self.values[new].detach()
        return self.values[form["output"]]

    def do_curve(self, node: Any, x: Tensor) -> Tensor:
        return CURVES[node["op"]](x)

    def do_times(self, node: Any, x: Tensor) -> Tensor:
        return x * self.real(node["value"])

    def do_plus(self, node: Any, x: Tensor) -> Tensor:
        return x + self.real(node["value"])

    def do_add(self, node: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + self.along(node, x, y)

    def do_multiply(self, node: Any, x: Tensor, y: Tensor) -> Tensor:
        return x * self.along(node, x, y)

    def along(self, node: Any, x: Tensor, y: Tensor) -> Tensor:
        """y, each number for its neighbours, in each of equal parts."""
        lead = 1 if node["inputs"][1] in self.features else 0
        flat, size = y.reshape(*y.shape[:lead], -1), x[0].numel()
        repeats = self.size(node.get("repeats", 1))
        spread = flat.repeat_interleave(size // (flat.shape[-1] * repeats), -1)
        return torch.cat([spread] * repeats, -1).reshape(*y.shape[:lead], *x.shape[1:])

    def do_mean(self, node: Any, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.size(node["each"])).mean(-1).reshape(len(x), *self.shape(node["shape"]))

    def do_largest(self, node: Any, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.size(node["each"])).max(-1).values.reshape(len(x), *self.shape(node["shape"]))

    def do_linear(self, node: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def do_convolve(self, node: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        assert weight.shape[-1] == self.size(node.get("kernel", 1))
        return F.conv2d(x, weight, bias, padding="same", groups=self.size(node.get("groups", 1)))

    def do_group_norm(self, node: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, self.size(node["groups"]), weight, bias)

    def do_batch_norm(self, node: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.batch = x
        return F.batch_norm(x, None, None, weight, bias, training=True)

    def do_batch_mean(self, node: Any, y: Tensor) -> Tensor:
        return self.batch.mean((0, 2, 3))

    def do_batch_variance(self, node: Any, y: Tensor) -> Tensor:
        return self.batch.transpose(0, 1).flatten(1).var(1)

    def do_running(self, node: Any, held: Tensor, new: Tensor) -> Tensor:
        return 0.9 * held + 0.1 * new

    def do_affine_norm(self, node: Any, x: Tensor, *rows: Tensor) -> Tensor:
        weight, bias, mean, variance = rows
        return F.batch_norm(x, mean, variance, weight, bias)

    def do_normalise(self, node: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, [self.size(node["each"])], eps=node["eps"])

    def do_layer_norm(self, node: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias)

    def do_softmax(self, node: Any, x: Tensor) -> Tensor:
        return F.softmax(x.reshape(len(x), -1, self.size(node["each"])), -1).reshape(x.shape)

    def do_attention(self, node: Any, x: Tensor) -> Tensor:
        heads = self.size(node["heads"])
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, -1))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ value).transpose(1, 2).flatten(2)

    def do_pool(self, node: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def do_fade(self, node: Any, x: Tensor, y: Tensor, openness: Tensor) -> Tensor:
        return torch.lerp(x, y, torch.tanh(openness))

    def do_embed(self, node: Any, x: Tensor, table: Tensor) -> Tensor:
        return F.embedding(x, table)

    def do_take(self, node: Any, x: Tensor) -> Tensor:
        flat = F.pad(x.flatten(1), (0, 1))
        return flat[:, node["index"]].reshape(len(x), *self.shape(node["shape"]))

    def do_transpose(self, node: Any, x: Tensor) -> Tensor:
        return x.transpose(-2, -1)

    def do_reshape(self, node: Any, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape(node["shape"]))

    def do_matmul(self, node: Any, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y).unsqueeze(1)
