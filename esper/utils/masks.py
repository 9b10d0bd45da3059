"""Masks of which it is known, at no cost, that they hold nowhere: what they would change need not be computed."""

import torch
from torch import Tensor

from esper.utils.torch_private import is_plain

LOOKS = True
"""Whether numbers on the CPU are looked at; a meter of what would wait on a device has them not."""


def holds_nowhere(mask: Tensor) -> bool:
    """Whether a mask is known to hold nowhere.

    Args:
      mask: bool, any shape.

    Returns:
      True only where looking costs no wait and decides nothing that outlives the call: for numbers on the CPU that
      nothing watches, where no gradients are recorded. A device, a compiler, a transform, autograd (for which a number
      that was not read has no derivative, in place of 0) and whoever counts operations see the whole program. Law:
      what is left out by it would have changed no bit.
    """
    return is_plain(mask) and LOOKS and not torch.is_grad_enabled() and not mask.any().item()
