"""What learns in the native network: rows that step in place, minibatch after minibatch, and running averages."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from esper.tezzeret.native.library import address
from esper.tezzeret.native.update import Update, UpdateCall, update_call


class Averages(NamedTuple):
    """Running averages of what batch norms saw.

    Attributes:
      rows: [n, R]; contiguous.
      follows: int64 [K, R]; by kind of a row the number of ``aux`` that each follows, -1: none.
    """

    rows: Tensor
    follows: Tensor


class Learning(NamedTuple):
    """The rows of ``train``'s host and seeds, which step in place; seeds, gates and their averages by slot."""

    host: Update
    seeds: tuple[Update, ...]
    gates: tuple[Update, ...]
    buffers: Averages
    seed_buffers: tuple[Averages, ...]

    def behind(self, step: int) -> "Learning":
        """The same so many minibatches later."""
        seeds, gates = (tuple(each.behind(step) for each in part) for part in (self.seeds, self.gates))
        return self._replace(host=self.host.behind(step), seeds=seeds, gates=gates)


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [(field, ctypes.c_int64) for field in fields.split()]})


_Averages = _structure("_Averages", "rows row count follows")
_Learning = _structure("_Learning", "host seeds gates buffers seed_buffers")
"""``Averages`` and ``Learning`` of ``kernels/network.h``, field by field."""


def _averages(averages: Averages) -> Any:
    return _Averages(address(averages.rows), averages.rows.stride(0), averages.rows.shape[1], address(averages.follows))


def learning_call(learning: Learning, host: Tensor, seeds: Sequence[Tensor], gates: Sequence[Tensor]) -> Any:
    """The library's arguments, with the gradients of hosts, seeds and gates."""
    own = _updates([learning.host], [host]), _updates(learning.seeds, seeds), _updates(learning.gates, gates)
    held = [(_Averages * len(part))(*map(_averages, part)) for part in ((learning.buffers,), learning.seed_buffers)]
    call = _Learning(*(ctypes.addressof(each) for each in (*own, *held)))
    call.keeps_alive = (own, held)
    return call


def _updates(updates: Sequence[Update], grads: Sequence[Tensor]) -> Any:
    pairs = zip(updates, grads, strict=True)
    return (UpdateCall * len(updates))(*(update_call(each, grad, each.params, each.moments) for each, grad in pairs))
