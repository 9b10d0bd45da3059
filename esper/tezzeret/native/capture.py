"""From a module's Python function to a program: the function is called once with stand-ins that write down its layers.

Whatever is written with ``esper.kasmina.layers``, sums, relu, sigmoid and products by channel can be written down;
anything else raises ``NotCaptured`` and takes the plain form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from esper.kasmina.layout import Layout
from esper.tezzeret.native.programs import Code, Instruction, Op, float_bits

Shape = tuple[int, ...]
NORMS = (Op.GROUP_NORM, Op.BATCH_NORM, Op.AFFINE)


class NotCaptured(TypeError):
    """A function does what no instruction can say."""


class Unknown:
    """Stands for a number of networks or samples: known only when the program runs."""


class Row:
    """Stands for a named tensor of a flat row, of parameters or of buffers."""

    def __init__(self, offset: int, shape: Shape, of_buffers: bool) -> None:
        self.offset, self.shape, self.of_buffers = offset, shape, of_buffers

    def layer(self, name: str, *args: Any) -> "Tracked":
        """The one layer that begins with a row: a running average."""
        if name != "track" or len(args) != 1 or not isinstance(args[0], Statistic):
            raise NotCaptured(f"layer {name} of a named tensor")
        return Tracked(self, args[0])


class Statistic(NamedTuple):
    """Stands for a mean or variance that a batch norm gives: its place in ``aux``."""

    offset: int


class Tracked(NamedTuple):
    """Stands for a running average: which buffer follows which statistic."""

    buffer: Row
    statistic: Statistic


class Recorder:
    """Instructions written so far."""

    def __init__(self, shape: Shape) -> None:
        self.registers = [_map_shape(shape)]
        self.instructions: list[Instruction] = []
        self.num_aux = 0

    def write(self, op: Op, shape: Shape, source: "Value", **fields: Any) -> "Value":
        """Add an instruction; returns what it gives."""
        if source.recorder is not self:
            raise NotCaptured("a value of another module")
        self.instructions.append(Instruction(op, len(self.registers), source.register, **fields))
        self.registers.append(_map_shape(shape))
        return Value(self, len(self.registers) - 1, shape)


def _map_shape(shape: Shape) -> tuple[int, int, int]:
    if len(shape) not in (0, 1, 3):
        raise NotCaptured(f"features of shape {shape}")
    channels, height, width = shape if len(shape) == 3 else (*(shape or (1,)), 1, 1)
    return channels, height, width


class Value:
    """Stands for features [n, B, *shape]."""

    def __init__(self, recorder: Recorder, register: int, shape: Shape, spread: bool = False) -> None:
        self.recorder, self.register, self.spread = recorder, register, spread
        self.shape: tuple[Any, ...] = (Unknown(), Unknown(), *shape)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> "Value":
        elementwise = {torch.relu: Op.RELU, torch.sigmoid: Op.SIGMOID}
        if function not in elementwise or kwargs:
            raise NotCaptured(f"operation {getattr(function, '__name__', function)}")
        (value,) = args
        return value.give(elementwise[function], value.shape[2:])

    def give(self, op: Op, shape: Shape, **fields: Any) -> "Value":
        """What an instruction makes of this value."""
        return self.recorder.write(op, shape, self, **fields)

    def __getattr__(self, name: str) -> Any:
        raise NotCaptured(f"features.{name}")

    def __getitem__(self, index: Any) -> "Value":
        if index != (..., None, None) or len(self.shape) != 3:
            raise NotCaptured(f"features[{index}]")
        return Value(self.recorder, self.register, (self.shape[2], 1, 1), spread=True)

    def __bool__(self) -> bool:
        raise NotCaptured("a decision by value")

    def __eq__(self, other: object) -> bool:
        raise NotCaptured("a comparison")

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Any) -> "Value":
        if not isinstance(other, Value) or other.shape[2:] != self.shape[2:]:
            raise NotCaptured("a sum of different shapes")
        return self.give(Op.ADD, self.shape[2:], other=other.register)

    def __mul__(self, other: Any) -> "Value":
        if isinstance(other, (int, float)):
            return self.give(Op.TIMES, self.shape[2:], constant=float_bits(float(other)))
        if not isinstance(other, Value) or not other.spread or len(self.shape) != 5 or other.shape[2] != self.shape[2]:
            raise NotCaptured("a product other than by channel")
        return self.give(Op.SCALE, self.shape[2:], other=other.register)

    __rmul__ = __mul__

    def mean(self, dims: Any) -> "Value":
        """Over all positions."""
        if len(self.shape) != 5 or {dim % 5 for dim in dims} != {3, 4}:
            raise NotCaptured(f"a mean over {dims}")
        return self.give(Op.MEAN, (self.shape[2],))

    def squeeze(self, dim: int) -> "Value":
        """Without the last axis, which is of length 1."""
        if dim != -1 or self.shape[2:] != (1,):
            raise NotCaptured(f"a squeeze of axis {dim}")
        return Value(self.recorder, self.register, ())

    def layer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Write down a layer of ``esper.kasmina.layers``."""
        if name not in LAYERS:
            raise NotCaptured(f"layer {name}")
        return LAYERS[name](self, *args, **kwargs)


def _place(row: Any, shape: Shape, of_buffers: bool = False) -> int:
    """Where a named tensor begins, if it is the one that a layer can take."""
    if not isinstance(row, Row) or row.shape != shape or row.of_buffers is not of_buffers:
        raise NotCaptured(f"a layer's tensor other than a named one of shape {shape}")
    return row.offset


def _conv2d(x: Value, weight: Row) -> Value:
    out, per_group, kernel, _ = weight.shape
    groups = x.shape[2] // per_group
    if kernel % 2 == 0 or groups * per_group != x.shape[2] or out % groups:
        raise NotCaptured(f"a kernel of shape {weight.shape}")
    place = _place(weight, (out, per_group, kernel, kernel))
    return x.give(Op.CONV, (out, *x.shape[3:]), weight=place, groups=groups, kernel=kernel)


def _linear(x: Value, weight: Row, bias: Row | None = None) -> Value:
    if len(x.shape) != 3:
        raise NotCaptured("a linear layer of maps")
    outputs = weight.shape[:1]
    place = _place(weight, (*outputs, x.shape[2]))
    return x.give(Op.CONV, outputs, weight=place, bias=-1 if bias is None else _place(bias, outputs))


def _group_norm(x: Value, weight: Row, bias: Row, groups: int) -> Value:
    places = {"weight": _place(weight, x.shape[2:3]), "bias": _place(bias, x.shape[2:3])}
    if groups < 1 or x.shape[2] % groups:
        raise NotCaptured(f"{groups} groups of {x.shape[2]} channels")
    return x.give(Op.GROUP_NORM, x.shape[2:], groups=groups, **places)


def _batch_norm(x: Value, weight: Row, bias: Row) -> tuple[Value, Statistic, Statistic]:
    channels, mean = x.shape[2], x.recorder.num_aux
    places = {"weight": _place(weight, (channels,)), "bias": _place(bias, (channels,))}
    x.recorder.num_aux += 2 * channels
    return x.give(Op.BATCH_NORM, x.shape[2:], **places), Statistic(mean), Statistic(mean + channels)


def _apply_batch_norm(x: Value, weight: Row, bias: Row, mean: Row, variance: Row) -> Value:
    shape = x.shape[2:3]
    places = {"weight": _place(weight, shape), "bias": _place(bias, shape), "constant": _place(mean, shape, True)}
    if _place(variance, shape, True) != places["constant"] + shape[0]:
        raise NotCaptured("a mean and a variance that do not lie side by side")
    return x.give(Op.AFFINE, x.shape[2:], **places)


def _max_pool2(x: Value) -> Value:
    channels, height, width = x.shape[2:]
    return x.give(Op.POOL, (channels, height // 2, width // 2))


def _fade(x: Value, y: Value, openness: Row) -> Value:
    if x.shape[2:] != y.shape[2:]:
        raise NotCaptured("a fade between different shapes")
    return x.give(Op.FADE, x.shape[2:], other=y.register, weight=_place(openness, (1,)))


LAYERS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "apply_batch_norm": _apply_batch_norm,
    "max_pool2": _max_pool2,
    "tanh_mix": _fade,
}


class Captured(NamedTuple):
    """What capturing found.

    Attributes:
      code: the module.
      shape: of its result, per sample.
      tracked: per number of the row of buffers, the place in ``aux`` that it follows; empty without buffers.
    """

    code: Code
    shape: Shape
    tracked: tuple[int, ...]


def capture(function: Callable[..., Any], shape: Shape, layout: Layout, buffers: Layout | None = None) -> Captured:
    """Write down a module.

    Args:
      function: (params, x) -> y; with ``buffers``, (params, buffers, x) -> y or (y, new buffers).
      shape: of x, per sample.
      layout: its row of parameters.
      buffers: its row of buffers.

    Raises:
      NotCaptured: it does what no instruction can say.
    """
    recorder = Recorder(shape)
    rows = [_rows(layout, False)] + ([_rows(buffers, True)] if buffers is not None else [])
    try:
        result = function(*rows, Value(recorder, 0, shape))
    except NotCaptured:
        raise
    except Exception as error:  # who does not know stand-ins may fail in any way when given some
        raise NotCaptured(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    y, new = result if isinstance(result, tuple) else (result, {})
    if not isinstance(y, Value) or y.spread or y.register == 0:
        raise NotCaptured("no features as the result")
    _check_norms(recorder.instructions)
    code = Code(
        registers=tuple(recorder.registers),
        instructions=tuple(_fuse_relus(recorder.instructions, y.register)),
        output=y.register,
        num_params=layout.size,
        num_buffers=buffers.size if buffers is not None else 0,
    )
    return Captured(code, y.shape[2:], _followed(buffers, new))


def _check_norms(instructions: list[Instruction]) -> None:
    """A batch norm adds up what its backward needs where its weights' gradients are: they are its own."""
    places = [place for i in instructions for place in (i.weight, i.bias) if place >= 0]
    if any(places.count(place) > 1 for i in instructions if i.op is Op.BATCH_NORM for place in (i.weight, i.bias)):
        raise NotCaptured("a batch norm whose weights another layer uses, too")


def _rows(layout: Layout, of_buffers: bool) -> dict[str, Row]:
    starts = {p.name: layout.columns(p.name).start for p in layout.params}
    return {p.name: Row(starts[p.name], p.shape or (1,), of_buffers) for p in layout.params}


def _followed(buffers: Layout | None, new: dict[str, Any]) -> tuple[int, ...]:
    """Which statistic every buffer follows."""
    places: list[int] = []
    for param in buffers.params if buffers is not None and new else ():
        each = new[param.name]
        if not isinstance(each, Tracked) or not each.buffer.of_buffers or each.buffer.offset != len(places):
            raise NotCaptured("buffers that are no running averages of themselves")
        places += range(each.statistic.offset, each.statistic.offset + param.size)
    return tuple(places)


def _fuse_relus(instructions: list[Instruction], output: int) -> list[Instruction]:
    """A relu that is the only reader of a norm becomes part of it."""
    readers = [register for i in instructions for register in (i.source, i.other)]
    fused: list[Instruction] = []
    for each in instructions:
        norm = next((n for n, i in enumerate(fused) if i.to == each.source and i.op in NORMS), None)
        alone = readers.count(each.source) == 1 and each.source != output
        if each.op is Op.RELU and norm is not None and alone:
            fused[norm] = fused[norm]._replace(to=each.to, rectify=True)
        else:
            fused.append(each)
    return fused
