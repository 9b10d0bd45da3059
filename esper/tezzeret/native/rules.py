"""Which arithmetic of torch can be captured, by name, and what nodes each operation becomes."""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper.tezzeret.native import algebra as a
from esper.tezzeret.native.observe import NotCaptured, Observer, Rule, Seen, Value, tensors_in


def _operand(o: Observer, argument: Any) -> Any:
    """A number, or a value."""
    number = a.number_of(o, argument)
    return o.value(argument) if number is None else number


def tell(o: Observer, result: Tensor, value: Value) -> None:
    """Say what a result is, in its shape."""
    o.tell(result, Value(o.draft.reshape(value.node, tuple(result.shape[len(value.lead) :])), value.lead))


def only(what: str, **settings: tuple[Any, Any]) -> None:
    """Refuse settings that differ from what is understood: name -> (given, understood)."""
    for name, (given, understood) in settings.items():
        if given != understood:
            raise NotCaptured(f"operation {what} with {name} = {given}")


def move(o: Observer, seen: Seen, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Numbers carried about: what becomes of their places says where each goes."""
    name = seen.function.__name__
    if not o.knows(x) or (not name.endswith("_as") and any(o.knows(tensor) for tensor in tensors_in((args, kwargs)))):
        raise NotCaptured(f"operation {name} by values")
    value, places = o.origin(x)
    found, results = seen.function(places, *args, **kwargs), seen.result
    pairs = zip(found, results, strict=True) if isinstance(results, (tuple, list)) else [(found, results)]
    for index, result in pairs:
        _settle(o, result, value, index)


def _settle(o: Observer, result: Tensor, value: Value, index: Tensor) -> None:
    for lead in o.leads(value):
        with contextlib.suppress(NotCaptured):
            return tell(o, result, a.moved_from(o, index, value, lead))
    o.tell_moving(result, value, index)


def index(o: Observer, seen: Seen, x: Tensor, places: Any) -> None:
    """Numbers at places that are given, or rows of a table at tokens."""
    if isinstance(places, Tensor) and o.knows(places):
        return tell(o, seen.result, a.embedded(o, o.value(places), o.value(x)))
    move(o, seen, x, places)


def where(o: Observer, seen: Seen, condition: Tensor, x: Any, y: Any) -> None:
    """One or the other, by a condition that is given."""
    tell(o, seen.result, _either(o, condition, x, y))


def masked_fill(o: Observer, seen: Seen, x: Tensor, mask: Tensor, value: Any) -> None:
    """A number in the place of some."""
    tell(o, seen.result, _either(o, mask, value, x))


def _either(o: Observer, condition: Tensor, x: Any, y: Any) -> Value:
    """0 in place of what is not taken, and the sum of both."""
    if o.knows(condition):
        raise NotCaptured("a condition by values")
    parts = []
    for part, open_where in ((x, condition), (y, ~condition)):
        if isinstance(part, Tensor) and o.knows(part):
            move = partial(_opened, mask=open_where)
            parts.append(a.moved(o, move, o.value(part)))
        else:
            given = torch.as_tensor(part, dtype=torch.get_default_dtype())
            parts.append(o.value(torch.where(open_where, given, torch.zeros_like(given))))
    return a.added(o, *parts)


def _opened(index: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, index, 0.0)


def same(o: Observer, seen: Seen, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """What only changes how a tensor is held."""
    if seen.result.dtype != x.dtype or seen.result.shape != x.shape:
        raise NotCaptured(f"operation {seen.function.__name__} to {seen.result.dtype}")
    tell(o, seen.result, o.value(x))


def pad(
    o: Observer, seen: Seen, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> None:
    """Zeros around, or what the mode puts there."""
    only("pad", value=(value or 0, 0))
    tell(o, seen.result, a.moved(o, lambda index: seen.function(index, pad, mode), o.value(x)))


def interpolate(o: Observer, seen: Seen, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Nearest neighbours alone."""
    only("interpolate", mode=(kwargs.get("mode", args[2] if len(args) > 2 else "nearest"), "nearest"))
    tell(o, seen.result, a.moved(o, lambda index: seen.function(index, *args, **kwargs), o.value(x)))


def join(o: Observer, seen: Seen, tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
    """``cat`` and ``stack``."""
    tell(o, seen.result, a.joined(o, lambda parts: seen.function(parts, *args, **kwargs), [*map(o.value, tensors)]))


def add(o: Observer, seen: Seen, x: Any, y: Any, *, alpha: float = 1) -> None:
    """With a factor for y."""
    tell(o, seen.result, a.added(o, _operand(o, x), _scaled(o, _operand(o, y), alpha)))


def sub(o: Observer, seen: Seen, x: Any, y: Any, *, alpha: float = 1) -> None:
    """With a factor for y."""
    tell(o, seen.result, a.added(o, _operand(o, x), _scaled(o, _operand(o, y), -alpha)))


def _scaled(o: Observer, x: Any, factor: float) -> Any:
    return x * factor if isinstance(x, (int, float)) else a.multiplied(o, x, factor)


def mul(o: Observer, seen: Seen, x: Any, y: Any) -> None:
    """The product."""
    tell(o, seen.result, a.multiplied(o, _operand(o, x), _operand(o, y)))


def div(o: Observer, seen: Seen, x: Any, y: Any, *, rounding_mode: str | None = None) -> None:
    """The quotient."""
    only("div", rounding_mode=(rounding_mode, None))
    tell(o, seen.result, a.multiplied(o, _operand(o, x), a.inverse(o, _operand(o, y))))


def swapped(rule: Rule) -> Rule:
    """A rule of two arguments, given the other way round."""
    return lambda o, seen, x, y: rule(o, seen, y, x)


def square(o: Observer, seen: Seen, x: Tensor) -> None:
    """A number times itself."""
    tell(o, seen.result, a.multiplied(o, o.value(x), o.value(x)))


def power(o: Observer, seen: Seen, x: Any, exponent: Any) -> None:
    """Whole powers up to 4, roots, and what they divide."""
    number = a.number_of(o, exponent)
    if number is None or not isinstance(x, Tensor) or abs(number) not in (0.5, 1, 2, 3, 4):
        raise NotCaptured(f"operation pow with exponent {number if number is not None else 'of values'}")
    value = o.value(x)
    found = a.mapped(o, "sqrt", value) if abs(number) == 0.5 else value
    for _ in range(int(abs(number)) - 1):
        found = a.multiplied(o, found, value)
    tell(o, seen.result, a.inverse(o, found) if number < 0 else found)


def unary(op: str) -> Rule:
    """An operation on every number."""

    def rule(o: Observer, seen: Seen, x: Tensor, inplace: bool = False) -> None:
        only(op, inplace=(inplace, False))
        tell(o, seen.result, a.mapped(o, op, o.value(x)))

    return rule


def composed(function: Callable[[Observer, Value], Value]) -> Rule:
    """A function of one tensor, from operations that there are."""

    def rule(o: Observer, seen: Seen, x: Tensor, inplace: bool = False) -> None:
        only(seen.function.__name__, inplace=(inplace, False))
        tell(o, seen.result, function(o, o.value(x)))

    return rule


def silu(o: Observer, x: Value) -> Value:
    """A number times its sigmoid."""
    return a.multiplied(o, x, a.mapped(o, "sigmoid", x))


def rsqrt(o: Observer, x: Value) -> Value:
    """1 / sqrt(x)."""
    return a.inverse(o, a.mapped(o, "sqrt", x))


def logsigmoid(o: Observer, x: Value) -> Value:
    """Of the sigmoid."""
    return a.multiplied(o, a.mapped(o, "softplus", a.multiplied(o, x, -1)), -1)


def gelu(o: Observer, seen: Seen, x: Tensor, approximate: str = "none") -> None:
    """Exactly, or by the hyperbolic tangent."""
    tell(o, seen.result, a.mapped(o, "gelu_tanh" if approximate == "tanh" else "gelu", o.value(x)))


def softplus(o: Observer, seen: Seen, x: Tensor, beta: float = 1, threshold: float = 20) -> None:
    """log(1 + exp(x))."""
    only("softplus", beta=(beta, 1), threshold=(threshold, 20))
    tell(o, seen.result, a.mapped(o, "softplus", o.value(x)))


def leaky_relu(o: Observer, seen: Seen, x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> None:
    """The slope times x, and the rest of its positive part."""
    only("leaky_relu", inplace=(inplace, False))
    above = a.multiplied(o, a.mapped(o, "relu", o.value(x)), 1 - negative_slope)
    tell(o, seen.result, a.added(o, a.multiplied(o, o.value(x), negative_slope), above))


def glu(o: Observer, seen: Seen, x: Tensor, dim: int = -1) -> None:
    """The first half times the sigmoid of the second."""
    first, second = (a.moved(o, lambda index, n=n: index.chunk(2, dim)[n], o.value(x)) for n in (0, 1))  # type: ignore[misc]
    tell(o, seen.result, a.multiplied(o, first, a.mapped(o, "sigmoid", second)))


def reduce(op: str) -> Rule:
    """``mean``, ``sum`` or ``amax`` over dimensions."""

    def rule(o: Observer, seen: Seen, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> None:
        only(op, dtype=(dtype, None))
        value = o.value(x)
        axes = a.axes_of(o, value, dim, op)
        if op == "amax":
            found = a.over(o, "largest", value, axes, keepdim, first=False)
        else:
            count = math.prod(o.node(value).shape[axis] for axis in axes)
            found = a.multiplied(o, a.over(o, "mean", value, axes, keepdim), count if op == "sum" else 1)
        tell(o, seen.result, found)

    return rule


def softmax(
    o: Observer, seen: Seen, x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> None:
    """Over one dimension."""
    only("softmax", dtype=(dtype, None))
    if dim is None:
        raise NotCaptured("operation softmax without a dimension")
    value = o.value(x)
    tell(o, seen.result, a.over(o, "softmax", value, a.axes_of(o, value, dim, "softmax")))


_MOVES = (
    "select narrow reshape view view_as reshape_as flatten unflatten squeeze unsqueeze permute transpose t "
    "swapaxes swapdims movedim moveaxis expand expand_as broadcast_to repeat tile repeat_interleave flip roll rot90 "
    "chunk split unbind tensor_split index_select diagonal mT T unfold pixel_shuffle pixel_unshuffle tril triu"
)
"""What only carries numbers about."""

ARITHMETIC: dict[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), move),
    "__getitem__": index,
    **dict.fromkeys(("contiguous", "clone", "to", "float", "type_as"), same),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), join),
    **dict.fromkeys(("pad", "_pad"), pad),
    "interpolate": interpolate,
    "where": where,
    "masked_fill": masked_fill,
    **dict.fromkeys(("add", "__radd__"), add),
    **dict.fromkeys(("sub", "subtract"), sub),
    "__rsub__": swapped(sub),
    "rsub": swapped(sub),
    **dict.fromkeys(("mul", "multiply", "__rmul__"), mul),
    **dict.fromkeys(("div", "divide", "true_divide"), div),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), swapped(div)),
    "neg": composed(lambda o, x: a.multiplied(o, x, -1)),
    "square": square,
    **dict.fromkeys(("pow", "__pow__"), power),
    **{op: unary(op) for op in ("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "abs", "reciprocal")},
    "silu": composed(silu),
    "rsqrt": composed(rsqrt),
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), composed(logsigmoid)),
    "gelu": gelu,
    "softplus": softplus,
    "leaky_relu": leaky_relu,
    "glu": glu,
    "mean": reduce("mean"),
    "sum": reduce("sum"),
    "amax": reduce("amax"),
    "softmax": softmax,
}
"""By the name that torch gives a function."""
