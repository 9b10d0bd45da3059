"""Parameter layouts: named tensors side by side in one flat row per network."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from esper.utils import rng

Params = dict[str, Tensor]
"""Named parameters of n networks, each [n, *shape]."""


class Given:
    """The numbers of a tensor that exists already. Two are equal if they are one object.

    Attributes:
      values: of any floating type, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Param(NamedTuple):
    """One named tensor and its initial distribution.

    ``constant``: every entry is ``scale``; ``uniform``: U(-scale, scale); ``positive``: U(0, scale); ``normal``:
    N(0, scale**2); ``given``: the given numbers; ``shuffled``: the given numbers in a random order.
    """

    name: str
    shape: tuple[int, ...]
    init: Literal["constant", "uniform", "positive", "normal", "given", "shuffled"]
    scale: float
    given: Given | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(torch.Size(self.shape).numel())


def fan_in_uniform(name: str, shape: tuple[int, ...], fan_in: int) -> Param:
    """PyTorch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return Param(name, shape, "uniform", fan_in**-0.5)


def zero_affine(name: str, out: int, into: int) -> tuple[Param, Param]:
    """Weight [out, into] and bias [out] of a linear layer, 0."""
    return constant(f"{name}.weight", (out, into), 0.0), constant(f"{name}.bias", (out,), 0.0)


def constant(name: str, shape: tuple[int, ...], value: float) -> Param:
    """A tensor that starts at one value."""
    return Param(name, shape, "constant", value)


class Layout(NamedTuple):
    """Named tensors tiling a flat row without gaps, in order."""

    params: tuple[Param, ...]

    @property
    def size(self) -> int:
        """Length of the flat row."""
        return sum(param.size for param in self.params)

    def views(self, flat: Tensor) -> Params:
        """Named views of flat rows.

        Args:
          flat: [n, size].

        Returns:
          name -> [n, *shape]. One ``split``, so that the gradient with respect to ``flat`` is one ``cat``.
        """
        pieces = flat.split([param.size for param in self.params], dim=1)
        return {p.name: piece.unflatten(1, p.shape or (1,)) for p, piece in zip(self.params, pieces, strict=True)}

    def columns(self, name: str) -> slice:
        """Where a named tensor lies in the row."""
        index = [param.name for param in self.params].index(name)
        start = sum(param.size for param in self.params[:index])
        return slice(start, start + self.params[index].size)

    def init(self, key: Tensor, dtype: torch.dtype) -> Tensor:
        """Draw n rows.

        Args:
          key: int64 [n, 2]; one key per row. Tensor i draws from ``fold_in(key, i)``.
          dtype: floating type of the rows.

        Returns:
          [n, size].
        """
        rows = [key.new_zeros((key.shape[0], 0), dtype=dtype)]
        for index, param in enumerate(self.params):
            shape = (param.size,)
            if param.given is not None:
                rows.append(_start(param.given, param.init == "shuffled", rng.fold_in(key, index), dtype))
            elif param.init == "constant":
                rows.append(key.new_full((key.shape[0], *shape), param.scale, dtype=dtype))
            elif param.init in ("uniform", "positive"):
                low = 0.0 if param.init == "positive" else -param.scale
                rows.append(rng.uniform(rng.fold_in(key, index), shape, low, param.scale, dtype))
            else:
                rows.append(rng.normal(rng.fold_in(key, index), shape, dtype) * param.scale)
        return torch.cat(rows, dim=1)


def _start(given: Given, is_shuffled: bool, key: Tensor, dtype: torch.dtype) -> Tensor:
    """The given numbers as n rows; key [n, 2]."""
    values = given.values.to(key.device, dtype).flatten()
    return values[rng.permutation(key, len(values))] if is_shuffled else values.repeat(key.shape[0], 1)
