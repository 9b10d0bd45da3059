"""Convolution of many networks at once: every network of the batch has its own weights.

Opaque to torch.compile, because Inductor specialises a grouped convolution on its number of groups: as an operator,
one compiled graph serves every number of networks. There are two forms, and tests hold them to the same results:
``grouped``, plain torch, and ``direct``, C++ for small networks on a CPU, where a grouped convolution of the library
spends its time on anything but arithmetic. Element-wise operations keep the layout of either, so a chain of layers
copies nothing.
"""

import torch
from torch import Tensor

from esper.kernels import direct
from esper.kernels.direct import direct_conv2d
from esper.kernels.grouped import grouped_conv2d

MOST_CHANNELS = 16
"""Largest channel count (per group, the smaller of input and output) at which the direct form is faster."""


@torch.compiler.assume_constant_result
def _is_built() -> bool:
    return direct.library() is not None


def prefers_networks_outermost(x: Tensor) -> bool:
    """Whether convolutions of such tensors want [n, B, ...] in memory, rather than [B, n, ...]."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _is_built()


def is_direct(x: Tensor, weight: Tensor) -> bool:
    """Whether ``conv2d`` takes the direct form; a matter of dtype, device and fixed sizes alone."""
    per_group = min(weight.shape[2], weight.shape[1] * weight.shape[2] // x.shape[2])
    small = per_group <= MOST_CHANNELS and weight.shape[-1] <= direct.MOST_TAPS
    return small and prefers_networks_outermost(x)


def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """2-D convolution, stride 1, "same" zero padding, no bias, one weight per network.

    Args:
      x: [n, B, C, H, W].
      weight: [n, C', C/g, k, k], k odd. g = C / (C/g) channel groups follow from the shapes: g = 1 is a full
        convolution, C/g = 1 with C' = C a depthwise one.

    Returns:
      [n, B, C', H, W]. Law: row i equals ``F.conv2d(x[i], weight[i], padding=k // 2, groups=g)``.
    """
    return direct_conv2d(x, weight) if is_direct(x, weight) else grouped_conv2d(x, weight)
