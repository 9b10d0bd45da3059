"""Which layers can be captured, of torch.nn.functional and of esper.kasmina.layers, and what nodes each becomes.

Those of torch know one network: they are captured within ``torch.func.vmap``, which hides the networks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.layers import EPSILON
from esper.tezzeret.native import algebra as a
from esper.tezzeret.native.observe import NotCaptured, Observer, Rule, Seen, Value
from esper.tezzeret.native.rules import only, swapped, tell

Pair = tuple[int, int]


def settings(defaults: dict[str, Any], args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """What a function was given behind its tensors: name -> value, in the order in which they may be given unnamed."""
    return defaults | dict(zip(defaults, args, strict=False)) | named


def maps(o: Observer, x: Tensor, rank: int) -> Value:
    """A tensor that torch takes to be [B, C, ...] of this rank, or one sample of it; its shape then is [C, ...]."""
    value = o.value(x)
    shape = o.node(value).shape
    if len(value.lead) == 1 and o.node(value).by_sample and x.dim() == rank:
        return value
    if value.lead or (x.dim() == rank and shape[0] != 1):
        raise NotCaptured("a layer of torch.nn.functional outside of torch.func.vmap over networks")
    return Value(o.draft.reshape(value.node, shape[-(rank - 1) :]), ())


def _given(o: Observer, tensor: Tensor | None) -> Value | None:
    return None if tensor is None else o.value(tensor)


def _affine(o: Observer, x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else a.multiplied(o, x, weight)
    return x if bias is None else a.added(o, x, bias)


NORM = {"weight": None, "bias": None, "eps": EPSILON}


def layer_norm(o: Observer, seen: Seen, x: Tensor, normalized_shape: Sequence[int], *rest: Any, **named: Any) -> None:
    """Over the last dimensions."""
    given, value, count = settings(NORM, rest, named), o.value(x), len(normalized_shape)
    shape = o.node(value).shape
    if count > len(shape):
        raise NotCaptured("operation layer_norm over networks or samples")
    found = a.over(o, "normalise", value, range(len(shape) - count, len(shape)), eps=float(given["eps"]))
    tell(o, seen.result, _affine(o, found, _given(o, given["weight"]), _given(o, given["bias"])))


def rms_norm(o: Observer, seen: Seen, x: Tensor, normalized_shape: Sequence[int], *rest: Any, **named: Any) -> None:
    """Over the last dimensions, by their root mean square."""
    given, value = settings({"weight": None, "eps": None}, rest, named), o.value(x)
    rank = len(o.node(value).shape)
    mean = a.over(o, "mean", a.multiplied(o, value, value), range(rank - len(normalized_shape), rank), True)
    root = a.mapped(o, "sqrt", a.added(o, mean, torch.finfo(x.dtype).eps if given["eps"] is None else given["eps"]))
    tell(o, seen.result, _affine(o, a.multiplied(o, value, a.inverse(o, root)), _given(o, given["weight"]), None))


def group_norm(o: Observer, seen: Seen, x: Tensor, num_groups: int, *rest: Any, **named: Any) -> None:
    """Groups of channels of every sample."""
    given, value = settings(NORM, rest, named), maps(o, x, max(x.dim(), 3))
    weight, bias, shape = _given(o, given["weight"]), _given(o, given["bias"]), o.node(value).shape
    if weight is not None and bias is not None and given["eps"] == EPSILON:
        node = o.draft.add("group_norm", (value.node, weight.node, bias.node), shape, groups=num_groups)
        return tell(o, seen.result, Value(node, value.lead))
    groups = Value(o.draft.reshape(value.node, (num_groups, o.node(value).size // num_groups)), value.lead)
    found = a.over(o, "normalise", groups, [1], eps=float(given["eps"]))
    found = Value(o.draft.reshape(found.node, shape), value.lead)
    ones = (1,) * (len(shape) - 1)
    by_channel = [part and Value(o.draft.reshape(part.node, (shape[0], *ones)), ()) for part in (weight, bias)]
    tell(o, seen.result, _affine(o, found, *by_channel))


def _two(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _padding(padding: Any, kernel: Pair, dilation: Pair) -> Pair:
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return _two(padding)
    only("conv2d with padding 'same'", kernel=(tuple(side % 2 for side in kernel), (1, 1)))
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2


def conv2d(o: Observer, seen: Seen, x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> None:
    """Of any kernel, stride, padding, dilation and groups: where the library has none like it, of windows."""
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given, value = settings(defaults, rest, named), maps(o, x, 4)
    kernel, stride, dilation = _two(weight.shape[-2:]), _two(given["stride"]), _two(given["dilation"])
    padding, own, shift = _padding(given["padding"], kernel, dilation), o.value(weight), _given(o, given["bias"])
    bias, groups = None if shift is None else shift.node, given["groups"]
    if stride == dilation == (1, 1) and kernel == (2 * padding[0] + 1,) * 2 and padding[0] == padding[1]:
        node = a.convolved(o, value.node, own.node, bias, kernel[0], groups)
    else:
        index = a.windows(o.node(value).shape, kernel, stride, padding, dilation).flatten(0, 1)
        cut = o.draft.take((value.node,), tuple(index.flatten().tolist()), tuple(index.shape))
        node = a.convolved(o, cut, own.node, bias, 1, groups)
    tell(o, seen.result, Value(node, value.lead))


def linear(o: Observer, seen: Seen, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """An affine map of the last dimension."""
    value, own, shift = o.value(x), o.value(weight), _given(o, bias)
    if o.node(value).by_sample and not o.node(own).by_sample:
        return tell(o, seen.result, a.linear(o, value, own.node, None if shift is None else shift.node))
    found = a.product(o, value, a.moved(o, lambda index: index.mT, own))
    tell(o, seen.result, found if shift is None else a.added(o, found, shift))


def embedding(o: Observer, seen: Seen, x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> None:
    """Rows of a table, without any that is held at 0, or gradients by how often a token occurs."""
    defaults = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}
    given = settings(defaults, rest, named)
    only("embedding", **{name: (given[name], defaults[name]) for name in defaults if name != "norm_type"})
    if o.knows(x):
        return tell(o, seen.result, a.embedded(o, o.value(x), o.value(weight)))
    tell(o, seen.result, a.moved(o, lambda index: index[..., x, :], o.value(weight)))


def matmul(o: Observer, seen: Seen, x: Tensor, y: Tensor) -> None:
    """Products of matrices."""
    tell(o, seen.result, a.product(o, o.value(x), o.value(y)))


def _pool(o: Observer, seen: Seen, x: Tensor, windows: tuple[Pair, Pair, Pair], op: str) -> None:
    value, (kernel, stride, padding) = maps(o, x, 4), windows
    index = a.windows(o.node(value).shape, kernel, stride, padding, (1, 1)).permute(0, 2, 3, 1)
    node = o.draft.take((value.node,), tuple(index.flatten().tolist()), tuple(index.shape))
    marks = {"first": True} if op == "largest" else {}
    tell(o, seen.result, Value(o.draft.over_last(op, node, 1, **marks), value.lead))


def max_pool2d(o: Observer, seen: Seen, x: Tensor, kernel_size: Any, *rest: Any, **named: Any) -> None:
    """The largest of every window."""
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    given = settings(defaults, rest, named)
    stride = _two(given.pop("stride") or kernel_size)
    only("max_pool2d", **{name: (value, defaults[name]) for name, value in given.items()})
    _pool(o, seen, x, (_two(kernel_size), stride, (0, 0)), "largest")


def avg_pool2d(o: Observer, seen: Seen, x: Tensor, kernel_size: Any, *rest: Any, **named: Any) -> None:
    """The mean of every window, zeros around the map included."""
    defaults = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    given = settings(defaults, rest, named)
    stride, padding = _two(given.pop("stride") or kernel_size), _two(given.pop("padding"))
    given["count_include_pad"] = given["count_include_pad"] or padding == (0, 0)
    only("avg_pool2d", **{name: (value, defaults[name]) for name, value in given.items()})
    _pool(o, seen, x, (_two(kernel_size), stride, padding), "mean")


def adaptive_avg_pool2d(o: Observer, seen: Seen, x: Tensor, output_size: Any) -> None:
    """Means of equal parts of the map."""
    sides, wanted = x.shape[-2:], _two(output_size)
    if any(aim is None or side % aim for side, aim in zip(sides, wanted, strict=True)):
        raise NotCaptured(f"operation adaptive_avg_pool2d from {tuple(sides)} to {output_size}")
    kernel = (sides[0] // wanted[0], sides[1] // wanted[1])
    _pool(o, seen, x, (kernel, kernel, (0, 0)), "mean")


ATTENTION = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def attention(o: Observer, seen: Seen, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> None:
    """Scaled dot products, a mask or a bias, and softmax."""
    given = settings(ATTENTION, rest, named)
    only(seen.function.__name__, **{name: (given[name], ATTENTION[name]) for name in ("dropout_p", "enable_gqa")})
    scores = a.product(o, o.value(query), a.moved(o, lambda index: index.mT, o.value(key)))
    scores = a.multiplied(o, scores, query.shape[-1] ** -0.5 if given["scale"] is None else given["scale"])
    mask = given["attn_mask"]
    if given["is_causal"]:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    scores = scores if mask is None else a.added(o, scores, o.value(mask))
    mixing = a.over(o, "softmax", scores, [len(o.node(scores).shape) - 1])
    tell(o, seen.result, a.product(o, mixing, o.value(value)))


TORCH: dict[str, Rule] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "conv2d": conv2d,
    "linear": linear,
    "embedding": embedding,
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), matmul),
    "__rmatmul__": swapped(matmul),
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "scaled_dot_product_attention": attention,
}
"""By the name that torch gives a function."""


def own_conv2d(o: Observer, seen: Seen, x: Tensor, weight: Tensor) -> None:
    """As large as its input."""
    value, own, kernel = o.value(x), o.value(weight), _two(weight.shape[-2:])
    only("conv2d", kernel=(kernel, (kernel[0] // 2 * 2 + 1,) * 2))
    groups = x.shape[2] // weight.shape[2]
    tell(o, seen.result, Value(a.convolved(o, value.node, own.node, None, kernel[0], groups), value.lead))


def own_group_norm(o: Observer, seen: Seen, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    """Groups of channels of every sample."""
    value = o.value(x)
    given = (value.node, o.value(weight).node, o.value(bias).node)
    tell(o, seen.result, Value(o.draft.add("group_norm", given, o.node(value).shape, groups=groups), value.lead))


def batch_norm(o: Observer, seen: Seen, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The output and two statistics."""
    value, (y, mean, variance) = o.value(x), seen.result
    given = (value.node, o.value(weight).node, o.value(bias).node)
    node = o.draft.add("batch_norm", given, o.node(value).shape)
    o.tell(y, Value(node, value.lead))
    for result, op in ((mean, "batch_mean"), (variance, "batch_variance")):
        statistic = o.draft.add(op, (node,), o.node(value).shape[:1], by_sample=False)
        o.tell(result, Value(statistic, o.sizes[:1]))


def apply_batch_norm(o: Observer, seen: Seen, x: Tensor, *rows: Tensor, **named: Tensor) -> None:
    """By running statistics."""
    given = settings(dict.fromkeys(("weight", "bias", "mean", "variance")), rows, named)
    value, nodes = o.value(x), tuple(o.value(row).node for row in given.values())
    tell(o, seen.result, Value(o.draft.add("affine_norm", (value.node, *nodes), o.node(value).shape), value.lead))


def track(o: Observer, seen: Seen, running: Tensor, statistic: Tensor) -> None:
    """A running average."""
    given = (o.value(running).node, o.value(statistic).node)
    o.tell(seen.result, Value(o.draft.add("running", given, o.draft.nodes[given[0]].shape), o.sizes[:1]))


def max_pool2(o: Observer, seen: Seen, x: Tensor) -> None:
    """2x2."""
    value = o.value(x)
    channels, height, width = o.node(value).shape
    tell(o, seen.result, Value(o.draft.add("pool", (value.node,), (channels, height // 2, width // 2)), value.lead))


def largest(o: Observer, seen: Seen, x: Tensor) -> None:
    """Over the last dimension."""
    value = o.value(x)
    tell(o, seen.result, a.over(o, "largest", value, [len(o.node(value).shape) - 1], first=True))


def tanh_mix(o: Observer, seen: Seen, x: Tensor, y: Tensor, openness: Tensor) -> None:
    """A way between equal shapes."""
    value, other = o.value(x), o.value(y)
    only("tanh_mix", shape=(o.node(other).shape, o.node(value).shape))
    given = (value.node, other.node, o.value(openness).node)
    tell(o, seen.result, Value(o.draft.add("fade", given, o.node(value).shape), value.lead))


OWN: dict[str, Rule] = {
    "conv2d": own_conv2d,
    "embed": embedding,
    "linear": linear,
    "group_norm": own_group_norm,
    "batch_norm": batch_norm,
    "apply_batch_norm": apply_batch_norm,
    "track": track,
    "max_pool2": max_pool2,
    "largest": largest,
    "tanh_mix": tanh_mix,
}
"""By the name of a function of ``esper.kasmina.layers``."""
