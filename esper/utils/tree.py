"""Trees: tuples, named tuples, lists and dicts, nested; everything else is a leaf, None is nothing."""

from collections.abc import Callable, Iterator
from typing import Any


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same shape, with what the function makes of every leaf; typed Any, since a leaf may change type."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: map_leaves(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_leaves(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree)


def leaves_of(tree: Any) -> Iterator[Any]:
    """The leaves of a tree, in order."""
    if isinstance(tree, dict | tuple | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves_of(part)
    elif tree is not None:
        yield tree
