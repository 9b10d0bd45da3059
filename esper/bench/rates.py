"""What the machine can do: rates of a matrix product and of a copy, measured beside the cases."""

from typing import NamedTuple

import torch

from esper.bench.measure import percentile, seconds_of

SIZES = {False: (2048, 1 << 28), True: (256, 1 << 22)}
"""Side of the square matrices and bytes of the copy; with ``--quick`` small ones."""

TRIES = 3


class Rates(NamedTuple):
    """Rates at one moment."""

    flops: float  # per second; a product of two square matrices, 2 per multiply-add
    bytes: float  # per second; a copy, each byte read and written


def measure_rates(device: torch.device, dtype: torch.dtype, quick: bool) -> Rates:
    """The best of a few tries of each."""
    side, size = SIZES[quick]
    left = torch.ones(side, side, dtype=dtype, device=device)
    product = torch.empty_like(left)
    source = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    flops = min(seconds_of(lambda: torch.mm(left, left, out=product), device) for _ in range(TRIES))
    copied = min(seconds_of(lambda: target.copy_(source), device) for _ in range(TRIES))
    return Rates(2 * side**3 / flops, 2 * source.nbytes / copied)


def median_rates(rates: list[Rates]) -> Rates:
    """The median of each."""
    return Rates(*(percentile(column, 0.5) for column in zip(*rates, strict=True)))
