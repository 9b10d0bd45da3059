"""The native library's functions, with what they take: the only door to it."""

import ctypes
import functools

from torch import Tensor

from esper.tezzeret import toolchain

ADDRESS, NUMBER = ctypes.c_void_p, ctypes.c_int64

MOST_TOKENS = 2**24
"""Whole numbers up to this are float32 numbers."""

FUNCTIONS = {
    "esper_pack": ([], NUMBER),
    "esper_program": ([ADDRESS, ADDRESS], ADDRESS),
    "esper_release": ([ADDRESS], None),
    "esper_aux": ([ADDRESS], NUMBER),
    "esper_train": ([ADDRESS], None),
    "esper_infer": ([ADDRESS], None),
    "esper_update": ([ADDRESS], None),
    "esper_shuffle": ([ADDRESS, NUMBER, NUMBER, NUMBER, NUMBER, ADDRESS], None),
}
"""Arguments and result of each."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built library, or None where there is none.

    Raises:
      ValueError: as ``toolchain.load``.
    """
    found = toolchain.load()
    if found is not None:
        for name, (arguments, result) in FUNCTIONS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, result
    return found


def at_hand() -> ctypes.CDLL | None:
    """The library, where this process has it already; nothing is built for it."""
    return library() if library.cache_info().currsize else None


@functools.cache
def pack() -> int:
    """Samples that are computed side by side: as many as a vector register holds where the library was built."""
    found = library()
    assert found is not None
    return int(found.esper_pack())


def inner(x: Tensor) -> Tensor:
    """The tensor with every sample in one piece."""
    return x if x.numel() == 0 or x[0, 0].is_contiguous() else x.contiguous()


def as_numbers(inputs: Tensor) -> Tensor:
    """Inputs as the library reads them: float32, tokens too, which are exact below ``MOST_TOKENS``."""
    return inputs.float()


def address(tensor: Tensor | None) -> int:
    """Where the numbers are; 0 where there are none."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
