"""The private names of tensordict that Esper uses, and what is done where a version lacks them.

tensordict promises nothing about these names, so no other module uses one.
"""

from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TypedTensorDict
from torch import Tensor

_NEW = getattr(TensorDict, "_new_unsafe", None)
_WRAP = getattr(TypedTensorDict, "_wrap_td", None)

Tree = TypeVar("Tree", bound=TypedTensorDict)


def replaced(tree: Tree, fields: dict[str, Any]) -> Tree | None:
    """``TypedTensorDict.replace`` in a tenth of its time, which is a third of a small environment step.

    Args:
      tree: of tensors and of trees, on no device in particular.
      fields: what is put in place of its own.

    Returns:
      an open copy, its parts open copies; None where the plain way must be taken: without the names, under a compiler,
      or where a field is none of the tree's or has another batch size.
    """
    held = getattr(getattr(tree, "_source", None), "_tensordict", None)
    if held is None or _NEW is None or _WRAP is None or torch.compiler.is_compiling():
        return None
    size = tree.batch_size
    if any(name not in held or value.shape[: len(size)] != size for name, value in fields.items()):
        return None
    return _copy(tree, held | fields)


def _copy(tree: Tree, fields: dict[str, Any]) -> Tree:
    """A tree of these fields; parts that are trees are copied, so that a lock of one is not the other's."""
    own = {
        name: each if isinstance(each, Tensor) else _copy(each, each._source._tensordict)
        for name, each in fields.items()
    }
    assert _NEW is not None
    copy: Tree = type(tree)._wrap_td(_NEW(own, batch_size=tree.batch_size))
    return copy
