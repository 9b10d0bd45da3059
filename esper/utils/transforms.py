"""What derivatives a tensor is part of: the one place that asks torch about its transforms.

``torch.func`` wraps tensors level by level; plain autograd marks them (``requires_grad``), and plain forward mode
attaches tangents (``torch.autograd.forward_ad``). Code that leaves ATen sees none of it.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from esper.utils.torch_private import in_forward_mode, is_batched, is_transforming
from esper.utils.tree import map_leaves

Tree = TypeVar("Tree")


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` (grad, vjp, jvp, vmap, ...) wraps this tensor."""
    return torch.func.debug_unwrap(tensor, recurse=False) is not tensor


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below all transforms, which holds the bits."""
    return torch.func.debug_unwrap(tensor)


def is_mapped(tensor: Tensor) -> bool:
    """Whether vmap holds a batch in this tensor, at whatever level."""
    while is_wrapped(tensor):
        if is_batched(tensor):
            return True
        tensor = torch.func.debug_unwrap(tensor, recurse=False)
    return False


def outside_inference(tree: Tree) -> Tree:
    """A tree of tensors in which those that belong to inference mode, which autograd refuses, are cloned out of it."""

    def clone(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    with torch.inference_mode(False):
        return map_leaves(clone, tree)


_requires_grad = attrgetter("requires_grad")


def find_derivative(leaves: Sequence[Tensor]) -> tuple[int, str] | None:
    """The first tensor that is part of a derivative or of vmap.

    Args:
      leaves: tensors.

    Returns:
      its number, and what it is, to be said of it; None if there is none. What requires a gradient does not count
      where autograd is off (``torch.no_grad``).
    """
    if is_transforming():
        for number, leaf in enumerate(leaves):
            if is_wrapped(leaf):
                return number, "belongs to a transform of torch.func"
    if torch.is_grad_enabled() and any(map(_requires_grad, leaves)):
        return list(map(_requires_grad, leaves)).index(True), "requires a gradient"
    if in_forward_mode():  # asking every tensor costs ten times as much
        for number, leaf in enumerate(leaves):
            if forward_ad.unpack_dual(leaf).tangent is not None:
                return number, "carries a tangent"
    return None
