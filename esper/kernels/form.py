"""One way of computing the convolution, as differentiable operators that torch.compile does not look into.

Each form has operators of its own name. What an operator's result looks like in memory must follow from its arguments
alone: compiled graphs, and their caches on disk, are keyed on names and shapes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """Forward and both halves of backward, of tensors [n, B, C, H, W] and weights [n, C', C/g, k, k].

    The halves are operators of their own, so that a compiled backward drops the one nobody needs (the first layer
    needs no input gradient).

    Attributes:
      name: of the operators; renamed when the memory layout of a result changes.
      forward: (x, weight) -> y.
      grad_input: (gradient of y, x, weight) -> gradient of x.
      grad_weight: (gradient of y, x, weight) -> gradient of weight, contiguous.
      empty: (x, weight, channels) -> a result [n, B, channels, H, W] without its values, strides as the real one.
    """

    name: str
    forward: Callable[[Tensor, Tensor], Tensor]
    grad_input: Callable[[Tensor, Tensor, Tensor], Tensor]
    grad_weight: Callable[[Tensor, Tensor, Tensor], Tensor]
    empty: Callable[[Tensor, Tensor, int], Tensor]


def register(form: Form) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the operators ``esper::<name>``, ``..._grad_input`` and ``..._grad_weight``.

    Returns:
      the differentiable operator (x, weight) -> y.
    """
    operator = torch.library.custom_op(f"esper::{form.name}", form.forward, mutates_args=())
    grad_input = torch.library.custom_op(f"esper::{form.name}_grad_input", form.grad_input, mutates_args=())
    grad_weight = torch.library.custom_op(f"esper::{form.name}_grad_weight", form.grad_weight, mutates_args=())
    operator.register_fake(lambda x, weight: form.empty(x, weight, weight.shape[1]))
    grad_input.register_fake(lambda grad, x, weight: form.empty(x, weight, x.shape[2]))
    grad_weight.register_fake(lambda grad, x, weight: weight.new_empty(weight.shape))

    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_input, wants_weight = ctx.needs_input_grad
        return (
            grad_input(grad, x, weight) if wants_input else None,
            grad_weight(grad, x, weight) if wants_weight else None,
        )

    operator.register_autograd(backward, setup_context=setup_context)
    return operator
