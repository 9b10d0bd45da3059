"""Bringing features to another shape: means over positions, and 1x1 projections of channels."""

import torch
from torch import Tensor

from esper.tezzeret.native.graph import Shape
from esper.tezzeret.surgery.anatomy import Impossible
from esper.tezzeret.surgery.edit import Edit, eye


def brought(edit: Edit, source: int, shape: Shape, what: str) -> int:
    """Features at the positions of a shape; the number of channels stays.

    Raises:
      Impossible: no mean over equal parts leads there.
    """
    own = edit.nodes[source].shape
    if len(own) == len(shape) and own[1:] == shape[1:] and len(shape) != 2:
        return source
    if len(own) == len(shape) == 2 and own[0] == shape[0]:
        return source
    index = torch.arange(edit.nodes[source].size).reshape(own)
    if len(shape) == 1 and len(own) in (2, 3):
        parts = index.T if len(own) == 2 else index.flatten(1)
        return _mean(edit, source, parts.reshape(parts.shape[0], -1))
    if len(own) == len(shape) == 3 and not own[1] % shape[1] and not own[2] % shape[2]:
        parts = index.unflatten(2, (shape[2], -1)).unflatten(1, (shape[1], -1)).permute(0, 1, 3, 2, 4)
        return _mean(edit, source, parts.flatten(3))
    raise Impossible(f"no way {what}: {list(own)} to {list(shape)}; expected positions that are parts of the others")


def _mean(edit: Edit, source: int, parts: Tensor) -> int:
    """Over the last axis of places."""
    taken = edit.moved(source, parts)
    return edit.add("mean", (taken,), tuple(parts.shape[:-1]), each=parts.shape[-1])


def projected(edit: Edit, source: int, shape: Shape, name: str) -> tuple[int, Tensor]:
    """A projection to the channels of a shape: its node, and a weight that passes channels on."""
    own, is_sequence = edit.nodes[source].shape, len(shape) == 2
    axis = -1 if is_sequence else 0
    value = eye(shape[axis], own[axis])
    value = value if len(shape) == 3 else value[..., 0, 0]
    weight = edit.parameter(f"{name}.weight", tuple(value.shape))
    return (edit.linear if is_sequence else edit.convolve)(source, weight, None), value
