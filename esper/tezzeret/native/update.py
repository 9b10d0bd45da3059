"""Clipping and one optimizer step of many rows in one pass, in C++ for float32 on a CPU.

The plain form is in ``esper.kasmina.optimizers``: a dozen operations per learner, each of which costs more than the
arithmetic where rows are short. Laws: as the plain form up to rounding; a row depends on its own numbers only.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from esper.tezzeret.native.library import address, library

RATES = 7
"""Learning rate, weight decay, clip, momentum, beta 1, beta 2, epsilon."""


class _Call(ctypes.Structure):
    """``Call`` of ``kernels/optimizer.cpp``, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("rows", "width", "threads", "rule", "params", "moments", "grad"),
            *("params_row", "moments_row", "moments_next", "grad_row", "owners", "steps"),
            *(f"{part}{number}" for number in range(RATES) for part in ("values", "stride")),
            *("decays", "decays_row", "new_params", "new_moments"),
        )
    )


KNOWN = {"sgd": 0, "adam": 1, "adamw": 2}
"""Optimizers by name, and what the library calls them."""


def update_rows(
    name: str,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    rates: Sequence[Tensor],
    owners: Tensor | None,
    decays: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clip and step.

    Args:
      name: one of ``KNOWN``.
      rows: params [n, P], float32; moments [n, M, P]; gradients [n, P]; and int64 [n], steps taken, this one included.
      rates: learning rate, weight decay, clip, momentum, beta 1, beta 2, epsilon; [m, 1], or [1, 1] for all rows.
      owners: int64 [n]; row of the rates of each row; None: its own number.
      decays: bool [P] or [n, P]; the columns that AdamW's decay shrinks; None: all.

    Returns:
      new parameters and moments.
    """
    params, moments, grad, steps = rows
    found, (count, width) = library(), params.shape
    assert found is not None and len(rates) == RATES
    params, moments, grad = (t if t.stride(-1) == 1 else t.contiguous() for t in (params, moments, grad))
    new_params, new_moments = params.new_empty(params.shape), moments.new_empty(moments.shape)
    shrinks = (0, 0) if decays is None else (address(decays), decays.stride(0) if decays.dim() > 1 else 0)
    numbers = [n for rate in rates for n in (address(rate), 0 if rate.shape[0] == 1 else rate.stride(0))]
    call = _Call(
        *(count, width, torch.get_num_threads(), KNOWN[name]),
        *(address(params), address(moments), address(grad)),
        *(params.stride(0), moments.stride(0), moments.stride(1), grad.stride(0), address(owners), address(steps)),
        *numbers,
        *(*shrinks, address(new_params), address(new_moments)),
    )
    found.esper_update(ctypes.addressof(call))
    return new_params, new_moments
