"""What an optimizer is, and the numbers it is given."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.layout import Layout


class Rates(NamedTuple):
    """The numbers of an update, each [n, 1] or [1, 1]."""

    lr: Tensor
    decay: Tensor
    clip: Tensor
    momentum: Tensor
    beta1: Tensor
    beta2: Tensor
    epsilon: Tensor

    def at(self, rows: Tensor) -> "Rates":
        """The numbers of some rows; [1, 1] stays."""
        return Rates(*(value if value.shape[0] == 1 else value.index_select(0, rows) for value in self))


Init = Callable[[Tensor], Tensor]
"""params [n, P] -> moments [n, M, P] before the first step."""

Update = Callable[[Tensor, Tensor, Tensor, Tensor, Rates, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""(grad, params, moments, steps, rates, decays) -> (params, moments, steps), all out of place.

grad and params [n, P]; moments [n, M, P]; steps int64 [n], taken before, and one more after; rates per row; decays
bool [P] or [n, P], the columns that an optimizer with decoupled decay shrinks, None = all of them. Row i depends on
row i alone. It is differentiable in every floating argument, to any order and in both modes.
"""


class Optimizer(NamedTuple):
    """A rule that turns gradients into steps."""

    name: str
    num_moments: int  # M, tensors it keeps per parameter
    init: Init
    update: Update


def zero_moments(count: int) -> Init:
    """M = ``count`` moments per parameter that start at zero."""

    def init(params: Tensor) -> Tensor:
        return params.new_zeros((params.shape[0], count, params.shape[1]))

    return init


def decays(layout: Layout) -> Tensor:
    """Which columns decay under a decoupled decay: those of tensors of two or more dimensions.

    Matrices, kernels and embeddings do; weights and biases of norms, biases and scalars do not.

    Returns:
      bool [size], on the CPU.
    """
    pieces = [torch.full((param.size,), len(param.shape) > 1) for param in layout.params]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *pieces])
