"""Clipping and one optimizer step of many rows in one pass, in C++ for float32 on a CPU.

The plain form is in ``esper.kasmina.optimizers``: a dozen operations per learner, each of which costs more than the
arithmetic where rows are short. Laws: as the plain form up to rounding; a row depends on its own numbers only.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.native.library import address, library

RATES = 7
"""Learning rate, weight decay, clip, momentum, beta 1, beta 2, epsilon."""


class UpdateCall(ctypes.Structure):
    """``Update`` of ``kernels/optimizer.h``, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("rows", "width", "threads", "rule", "params", "moments", "grad"),
            *("params_row", "moments_row", "moments_next", "grad_row", "owners", "steps"),
            *(f"{part}{number}" for number in range(RATES) for part in ("values", "stride")),
            *("decays", "decays_row", "new_params", "new_moments", "lr_next"),
        )
    )


KNOWN = {"sgd": 0, "adam": 1, "adamw": 2}
"""Optimizers by name, and what the library calls them."""


class Update(NamedTuple):
    """An optimizer step of n rows.

    Attributes:
      name: one of ``KNOWN``.
      params: [n, P], float32.
      moments: [n, M, P].
      steps: int64 [n]; steps taken, this one included.
      rates: learning rate, weight decay, clip, momentum, beta 1, beta 2, epsilon; [m, 1], or [1, 1] for all rows. The
        first may be [k, m, 1], of k steps one after the other.
      owners: int64 [n]; row of the rates of each row; None: its own number.
      decays: bool [P] or [n, P]; the columns that AdamW's decay shrinks; None: all.
    """

    name: str
    params: Tensor
    moments: Tensor
    steps: Tensor
    rates: Sequence[Tensor]
    owners: Tensor | None
    decays: Tensor | None

    def behind(self, step: int) -> "Update":
        """The same so many steps later, of those that the learning rate is given for."""
        return self._replace(steps=self.steps + step, rates=(self.rates[0][step:], *self.rates[1:]))


def update_call(update: Update, grad: Tensor, params: Tensor, moments: Tensor) -> UpdateCall:
    """The library's arguments.

    Args:
      update: what learns; its numbers lie side by side.
      grad: [n, P]; gradients.
      params, moments: where what it becomes is written; contiguous. The rows of ``update`` themselves may be given.
    """
    (count, width), decays, rates = update.params.shape, update.decays, update.rates
    assert len(rates) == RATES and params.is_contiguous() and moments.is_contiguous()
    shrinks = (0, 0) if decays is None else (address(decays), decays.stride(0) if decays.dim() > 1 else 0)
    numbers = [n for rate in rates for n in (address(rate), 0 if rate.shape[-2] == 1 else rate.stride(-2))]
    return UpdateCall(
        *(count, width, torch.get_num_threads(), KNOWN[update.name]),
        *(address(update.params), address(update.moments), address(grad)),
        *(update.params.stride(0), update.moments.stride(0), update.moments.stride(1), grad.stride(0)),
        *(address(update.owners), address(update.steps)),
        *numbers,
        *(*shrinks, address(params), address(moments), rates[0].stride(0) if rates[0].dim() == 3 else 0),
    )


def update_rows(update: Update, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Clip gradients [n, P], and step.

    Returns:
      new parameters and moments.
    """
    found = library()
    assert found is not None
    params, moments, grad = (t if t.stride(-1) == 1 else t.contiguous() for t in (update.params, update.moments, grad))
    new_params, new_moments = params.new_empty(params.shape), moments.new_empty(moments.shape)
    call = update_call(update._replace(params=params, moments=moments), grad, new_params, new_moments)
    found.esper_update(ctypes.addressof(call))
    return new_params, new_moments
