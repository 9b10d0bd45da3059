"""Watching a module's Python function while it runs: every operation on features or parameters becomes a node.

The function runs on zeros of a few networks and samples. What it calls is seen as torch sees it, by name, also within
``torch.func.vmap``; what it asks of sizes is answered truly. A decision by value, a place written to, or an operation
without a rule ends the watch.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from esper.tezzeret.native.graph import Draft, Node, Shape
from esper.utils.torch_private import below_maps


class NotCaptured(Exception):
    """A function does what no operation of a graph can say. No TypeError: torch takes an operator's for an answer."""


Rule = Callable[..., Any]
"""(observer, what was seen, the arguments of the function) -> nothing; it says what the results are."""


class Seen(NamedTuple):
    """A function that was called, and what it gave."""

    function: Callable[..., Any]
    result: Any


METADATA = (
    "shape size dim ndim ndimension dtype device numel nelement __len__ layout is_floating_point is_complex "
    "requires_grad is_cuda is_meta stride is_contiguous"
)
"""What tells nothing of values."""


class Value(NamedTuple):
    """A tensor that is known.

    Attributes:
      node: what it is.
      lead: sizes of its first dimensions that count networks and samples; those that vmap hides are not among them.
    """

    node: int
    lead: Shape


class Observer(TorchFunctionMode):
    """Writes a graph down while a function runs."""

    def __init__(
        self, sizes: tuple[int, int], rules: Mapping[str, Rule], layers: Mapping[str, Rule], vocabulary: int
    ) -> None:
        super().__init__()
        self.sizes, self.rules, self.layers, self.vocabulary = sizes, rules, layers, vocabulary
        self.draft = Draft()
        self.refusal: NotCaptured | None = None  # the first, whatever the function makes of it
        self._known: dict[tuple[Any, ...], tuple[int, Shape]] = {}
        self._moving: dict[tuple[Any, ...], tuple[Value, Tensor]] = {}
        self._held: list[Tensor] = []  # memory that is not given back is not used for another tensor

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, and write it down if it reads what is known."""
        kwargs, name = kwargs or {}, name_of(function)
        if name in METADATA.split() or not any(self.knows(tensor) for tensor in tensors_in((args, kwargs))):
            return function(*args, **kwargs)
        try:
            rule = self._rule(function, name)
            result = function(*args, **kwargs)
            rule(self, Seen(function, result), *args, **kwargs)
        except NotCaptured as reason:
            self.refusal = self.refusal or reason
            raise
        return result

    def _rule(self, function: Any, name: str) -> Rule:
        if getattr(function, "__module__", None) == "esper.kasmina.layers":
            if name not in self.layers:
                raise NotCaptured(f"layer {name}")
            return self.layers[name]
        rule = self.rules.get(name)
        if rule is None:
            raise NotCaptured(f"operation {name}")
        return rule

    def node(self, value: Value) -> Node:
        """What a tensor is."""
        return self.draft.nodes[value.node]

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor follows from features, parameters or buffers."""
        key, _, hidden = _key(tensor)
        return key in self._known or (*key, hidden) in self._moving

    def tell(self, tensor: Tensor, value: Value) -> None:
        """Say what a tensor is."""
        key, below, hidden = _key(tensor)
        if tuple(below.shape) != (*self.sizes[:hidden], *value.lead, *self.node(value).shape):
            raise NotCaptured(f"a tensor of shape {tuple(below.shape)} that mixes networks or samples")
        self._known[key] = value.node, self.sizes[:hidden] + value.lead
        self._held.append(below)

    def tell_moving(self, tensor: Tensor, value: Value, index: Tensor) -> None:
        """Say where a tensor's numbers come from, of whose axes those of networks and samples are not the first."""
        key, below, hidden = _key(tensor)
        self._moving[*key, hidden] = value, index
        self._held.append(below)

    def value(self, tensor: Any) -> Value:
        """What an argument is: known, or a constant."""
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.get_default_dtype())
        key, below, hidden = _key(tensor)
        if key in self._known:
            node, lead = self._known[key]
            return Value(node, lead[hidden:])
        if (*key, hidden) in self._moving:
            raise NotCaptured("networks and samples on other axes than the first")
        if hidden:
            raise NotCaptured("numbers that are no parameters of the module, mapped over networks")
        values = tuple(below.detach().double().flatten().tolist())
        return Value(self.draft.add("constant", (), tuple(below.shape), False, values=values), ())

    def origin(self, tensor: Tensor) -> tuple[Value, Tensor]:
        """The value that a tensor's numbers come from, and its ``indices`` where they are now."""
        key, _, hidden = _key(tensor)
        found = self._moving.get((*key, hidden))
        if found is not None:
            return found
        value = self.value(tensor)
        return value, self.indices(value)

    def leads(self, value: Value) -> list[Shape]:
        """How the axes of networks and samples may stand in front: as they are, apart, or as one."""
        whole = math.prod(self.sizes)
        others = [self.sizes, (whole,)] if math.prod(value.lead) == whole else []
        return list(dict.fromkeys([value.lead, *others]))

    def indices(self, value: Value) -> Tensor:
        """A tensor shaped like a known one: every number is its own number, from 1."""
        shape = value.lead + self.node(value).shape
        return torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)

    def places(self, index: Tensor, values: list[Value], lead: Shape) -> list[tuple[int, ...]]:
        """Where each number of a result comes from: read off from what became of ``indices``, one behind the other.

        Returns:
          per value, for every number of the result per sample, its place in that value; -1: not from there.

        Raises:
          NotCaptured: something comes from another network or sample.
        """
        if tuple(index.shape[: len(lead)]) != lead:
            raise NotCaptured("a change of the axes of networks or samples")
        rows = index.reshape(math.prod(lead), -1).long() - 1
        found, first = [], 0
        for value in values:
            size, apart = self.node(value).size, math.prod(value.lead)
            if apart != math.prod(lead) and value.lead != lead[: len(value.lead)]:
                raise NotCaptured("a change of the axes of networks or samples")
            own = torch.arange(apart).repeat_interleave(math.prod(lead) // apart)
            place = rows - first - own.reshape(-1, 1) * size
            inside = (rows >= first) & (rows < first + apart * size)
            place = torch.where(inside, place, -1)
            if ((place < 0) & inside).any() or (place >= size).any() or (place != place[:1]).any():
                raise NotCaptured("numbers of other networks or samples")
            found.append(tuple(place[0].tolist()))
            first += apart * size
        return found


def name_of(function: Any) -> str:
    """What a function is called; of a property, its name."""
    name = str(getattr(function, "__name__", function))
    return str(function.__self__.__name__) if name == "__get__" else name


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """All tensors among nested arguments."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        yield from itertools.chain.from_iterable(map(tensors_in, arguments))
    elif isinstance(arguments, dict):
        yield from tensors_in(list(arguments.values()))


def _key(tensor: Tensor) -> tuple[tuple[Any, ...], Tensor, int]:
    """What tells tensors apart that nobody writes to; the memory below vmap; how many dimensions vmap hides."""
    below, hidden = below_maps(tensor)
    return (below.data_ptr(), below.shape, below.stride(), below.dtype), below, hidden
