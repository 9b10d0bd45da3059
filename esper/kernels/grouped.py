"""Convolution of many networks as one grouped convolution of the library: the plain form, for every device and dtype.

Tensors are [n, B, C, H, W] to the caller and [B, n, C, H, W] in memory, which is what a grouped convolution wants. A
minibatch that all networks share (expanded along n, not copied) is one dense convolution with n*C' outputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kernels.form import Form, register


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


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    source, groups = _operands(x, weight)
    out = F.conv2d(source, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=groups)
    return out.unflatten(1, (x.shape[0], -1)).transpose(0, 1)


def _grad_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    out = _backward(grad, x, weight, (True, False))[0]
    return out.unflatten(1, (x.shape[0], -1)).contiguous().transpose(0, 1)


def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _backward(grad, x, weight, (False, True))[1].reshape(weight.shape).contiguous()


def _empty(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    n, batch, _, height, width = x.shape
    return x.new_empty(batch, n, channels, height, width).transpose(0, 1)


grouped_conv2d = register(Form("conv2d_grouped", _forward, _grad_input, _grad_weight, _empty))
"""(x, weight) -> y; see ``esper.kernels.convolution.conv2d``."""
