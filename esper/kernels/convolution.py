"""Convolution of many networks at once: every network of the batch has its own weights.

Opaque to torch.compile, because Inductor specialises a grouped convolution on its number of groups: as an operator,
one compiled graph serves every number of networks. The two backward halves are operators of their own, so that a
compiled backward drops the one nobody needs (the first layer needs no input gradient).

A minibatch that all networks share (expanded along n, not copied) is one dense convolution with n*C' outputs.

Layout: tensors are [n, B, C, H, W] to the caller and [B, n, C, H, W] in memory, which is what a grouped convolution
wants; element-wise operations keep that layout, so a chain of layers copies nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _grouped(x: Tensor) -> Tensor:
    """[n, B, C, H, W] -> [B, n*C, H, W]; a view if x is laid out batch-major."""
    return x.transpose(0, 1).flatten(1, 2)


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """Input [B, channels, H, W] and number of groups of the one convolution that does the work of all."""
    per_network = x.shape[2] // weight.shape[2]
    if x.stride(0) == 0 and per_network == 1:
        return x[0], 1
    return _grouped(x), x.shape[0] * per_network


def _backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    k = weight.shape[-1]
    source, groups = _operands(x.contiguous() if wanted[0] else x, weight)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        _grouped(grad),
        source,
        weight.flatten(0, 1),
        None,
        [1, 1],
        [k // 2, k // 2],
        [1, 1],
        False,
        [0, 0],
        groups,
        [*wanted, False],
    )
    return grad_x, grad_weight


@torch.library.custom_op("esper::conv2d", mutates_args=())
def _conv2d(x: Tensor, weight: Tensor) -> Tensor:
    source, groups = _operands(x, weight)
    out = F.conv2d(source, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=groups)
    return out.unflatten(1, (x.shape[0], -1))


@_conv2d.register_fake
def _conv2d_fake(x: Tensor, weight: Tensor) -> Tensor:
    n, batch, _, height, width = x.shape
    return x.new_empty(batch, n, weight.shape[1], height, width)


@torch.library.custom_op("esper::conv2d_grad_input", mutates_args=())
def _conv2d_grad_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _backward(grad, x, weight, (True, False))[0].unflatten(1, (x.shape[0], -1)).contiguous()


@_conv2d_grad_input.register_fake
def _conv2d_grad_input_fake(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    n, batch, channels, height, width = x.shape
    return x.new_empty(batch, n, channels, height, width)


@torch.library.custom_op("esper::conv2d_grad_weight", mutates_args=())
def _conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _backward(grad, x, weight, (False, True))[1].reshape(weight.shape).contiguous()


@_conv2d_grad_weight.register_fake
def _conv2d_grad_weight_fake(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad = grad.transpose(0, 1)
    grad_x = _conv2d_grad_input(grad, x, weight).transpose(0, 1) if ctx.needs_input_grad[0] else None
    grad_weight = _conv2d_grad_weight(grad, x, weight) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight


_conv2d.register_autograd(_autograd, setup_context=_setup_context)


def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """2-D convolution, stride 1, "same" zero padding, no bias, one weight per network.

    Args:
      x: [n, B, C, H, W].
      weight: [n, C', C/g, k, k], k odd. g = C / (C/g) channel groups follow from the shapes: g = 1 is a full
        convolution, C/g = 1 with C' = C a depthwise one.

    Returns:
      [n, B, C', H, W]. Law: row i equals ``F.conv2d(x[i], weight[i], padding=k // 2, groups=g)``.
    """
    return _conv2d(x, weight).transpose(0, 1)
