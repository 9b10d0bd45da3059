"""2x2 maximum pooling of many networks: plain torch, or C++ for float32 on a CPU.

Inductor's code for the strided maps of a pooling's backward is scalar on a CPU; it took a third of a training step of
a small host. On other devices the plain form fuses with its neighbours.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from esper.kernels import native


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = native.load("pooling")
    if found is not None:
        address, number = ctypes.c_void_p, ctypes.c_int64
        found.esper_pool.argtypes = [address, address, number, number, number, ctypes.c_int]
        found.esper_pool.restype = None
        found.esper_unpool.argtypes = [address, address, address, number, number, number, ctypes.c_int]
        found.esper_unpool.restype = None
    return found


@torch.compiler.assume_constant_result
def _is_built() -> bool:
    return _library() is not None


def _maps(x: Tensor) -> tuple[int, int, int]:
    return x.shape[:-2].numel(), x.shape[-2], x.shape[-1]


@torch.library.custom_op("esper::max_pool2", mutates_args=())
def _pool(x: Tensor) -> Tensor:
    x, library = x.contiguous(), _library()
    assert library is not None
    out = x.new_empty(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)
    library.esper_pool(x.data_ptr(), out.data_ptr(), *_maps(x), torch.get_num_threads())
    return out


@_pool.register_fake
def _pool_fake(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)


@torch.library.custom_op("esper::max_pool2_grad", mutates_args=())
def _unpool(grad: Tensor, x: Tensor) -> Tensor:
    x, grad, library = x.contiguous(), grad.contiguous(), _library()
    assert library is not None
    out = torch.empty_like(x)
    library.esper_unpool(x.data_ptr(), grad.data_ptr(), out.data_ptr(), *_maps(x), torch.get_num_threads())
    return out


@_unpool.register_fake
def _unpool_fake(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    out: Tensor = _unpool(grad, x)
    return out


_pool.register_autograd(_backward, setup_context=_setup_context)


def _plain(x: Tensor) -> Tensor:
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    top, bottom = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
    rows = torch.maximum(top, bottom)
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def max_pool2(x: Tensor) -> Tensor:
    """2x2 max pooling with stride 2; an odd last row or column is dropped.

    Args:
      x: [n, B, C, H, W].

    Returns:
      [n, B, C, H // 2, W // 2]. Where entries tie, the gradient is shared among them; a NaN wins.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and _is_built():
        out: Tensor = _pool(x)
        return out
    return _plain(x)
