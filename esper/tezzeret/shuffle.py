"""The beginning of random orders: by the native library where it is at hand, with the same bits as the whole."""

import torch
from torch import Tensor

from esper.tezzeret.native.library import address, at_hand
from esper.utils import rng
from esper.utils.torch_private import is_plain

MOST = 2**32
"""Numbers that the library puts in order; it has 32 bits of a counter."""


def shuffled(key: Tensor, n: int, count: int) -> Tensor:
    """The beginning of random orders.

    Args:
      key: int64 [..., 2].
      n: what is put in order, 0 .. n - 1.
      count: how many of it are wanted, at most n.

    Returns:
      int64 [..., count]. Law: ``rng.permutation(key, n)[..., :count]``, bit for bit, on every device.
    """
    found = at_hand() if is_plain(key) and 0 < n < MOST else None
    if found is None:
        return rng.permutation(key, n)[..., :count]
    rows = key.reshape(-1, 2).contiguous()
    order = torch.empty(len(rows), count, dtype=torch.int64)
    threads = torch.get_num_threads()
    found.esper_shuffle(address(rows), len(rows), n, count, threads, address(order))
    return order.reshape(*key.shape[:-1], count)
