"""Convolution of many networks by ``kernels/convolution.cpp``: float32 on a CPU.

Memory is [n, B, C, H, W], with networks and samples of the input in any order or expanded.
"""

import ctypes
import functools

import torch
from torch import Tensor

from esper.kernels import native
from esper.kernels.form import Form, register

MOST_TAPS = 11
"""Largest side of a kernel, as in the source."""

Sizes = ctypes.c_int64 * 8
"""Networks, batch, groups, channels per group in and out, height, width, side of the kernel."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built library, or None where there is none; see ``esper.kernels.native``."""
    found = native.load("convolution")
    if found is not None:
        address, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        images = (address, number, number)
        found.esper_convolve.argtypes = [*images, address, address, address, count, count]
        found.esper_convolve.restype = None
        found.esper_contract.argtypes = [*images, *images, address, address, address, count]
        found.esper_contract.restype = None
        found.esper_tasks.argtypes = [address]
        found.esper_tasks.restype = number
    return found


def _built() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError("esper::conv2d_direct: there is no built library; conv2d takes the grouped form then")
    return found


def _sizes(x: Tensor, weight: Tensor) -> "ctypes.Array[ctypes.c_int64]":
    n, batch, channels, height, width = x.shape
    groups = channels // weight.shape[2]
    return Sizes(n, batch, groups, weight.shape[2], weight.shape[1] // groups, height, width, weight.shape[-1])


def _packed(x: Tensor) -> Tensor:
    """The tensor with contiguous channels, rows and columns."""
    return x if x.numel() == 0 or x[0, 0].is_contiguous() else x.contiguous()


def _images(x: Tensor) -> tuple[int, int, int]:
    """Address, and strides over networks and samples."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def _convolve(x: Tensor, weight: Tensor, sizes: "ctypes.Array[ctypes.c_int64]", transposed: bool) -> Tensor:
    x, weight = _packed(x), weight.contiguous()
    channels = sizes[2] * (sizes[3] if transposed else sizes[4])
    out = x.new_empty(sizes[0], sizes[1], channels, sizes[5], sizes[6])
    _built().esper_convolve(
        *_images(x), weight.data_ptr(), out.data_ptr(), sizes, int(transposed), torch.get_num_threads()
    )
    return out


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    return _convolve(x, weight, _sizes(x, weight), False)


def _grad_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _convolve(grad, weight, _sizes(x, weight), True)


def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    built, sizes, x, grad = _built(), _sizes(x, weight), _packed(x), _packed(grad)
    out = weight.new_zeros(weight.shape)
    partial = weight.new_zeros(built.esper_tasks(sizes) * weight.numel())
    built.esper_contract(
        *_images(x), *_images(grad), partial.data_ptr(), out.data_ptr(), sizes, torch.get_num_threads()
    )
    return out


def _empty(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    n, batch, _, height, width = x.shape
    return x.new_empty(n, batch, channels, height, width)


direct_conv2d = register(Form("conv2d_direct", _forward, _grad_input, _grad_weight, _empty))
"""(x, weight) -> y; see ``esper.kernels.convolution.conv2d``."""
