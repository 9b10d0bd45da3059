"""Checking that a function writes into none of its arguments, as no function of Esper may.

A lock on a tensordict stops neither ``set_`` nor ``[rows] =`` nor arithmetic in place, and a kernel that writes through
an address moves no version counter. So every tensor is compared before and after: which one it is, its ``_version``,
and its bits (a NaN equals itself).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper.utils.torch_private import below_transforms, version_of, without_forward_mode
from esper.utils.transforms import unwrapped

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of every size, as which bits are compared."""


class PurityError(RuntimeError):
    """A function that wrote into an argument; one line with the function, the tensor, and what changed."""


class LeafCopy(NamedTuple):
    """A tensor or an array as it was."""

    leaf: Any
    version: int | None  # None where nobody counts
    bits: Tensor | None  # None where they are not compared


def pure(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, checked: every call compares its arguments before and after.

    Returns:
      a function that raises ``PurityError`` where a tensor or array among the arguments was written to or exchanged:
      in nests of tuples, lists, dicts, dataclasses and tensordicts. Where torch.compile traces it, the function itself.
    """
    place = f"{function.__module__.removeprefix('esper.')}.{function.__qualname__}"

    @wraps(function)
    def checked(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return function(*arguments, **named)
        with untouched(place, dict(zip(_names(function), arguments, strict=False)) | named):
            return function(*arguments, **named)

    return checked


@contextmanager
def untouched(place: str, tree: Any, bits: bool = True) -> Iterator[None]:
    """A context in which nobody may write into a nest.

    Args:
      place: what the message calls whoever does.
      tree: the nest; see ``pure``.
      bits: compare them, too; without, only what the tensors count is, which costs nothing.

    Raises:
      PurityError: at the end, unless the block raised: a tensor or array was written to or exchanged.
    """
    before = {path: _look(leaf, bits) for path, leaf in leaves(tree)}
    yield
    _compare(place, before, dict(leaves(tree)))


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and arrays of a nest, with their paths."""
    if isinstance(tree, Tensor | np.ndarray):
        yield path, tree
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from ((f"{path}.{name}", leaf) for name, leaf in _fixed(tree))
    else:
        for name, part in _parts(tree):
            yield from leaves(part, f"{path}.{name}" if path else str(name))


def _parts(tree: Any) -> Iterable[tuple[object, Any]]:
    if isinstance(tree, TensorDictBase):
        return ((name, tree.get(name)) for name in tree.keys())  # noqa: SIM118
    if isinstance(tree, dict):
        return tree.items()
    if isinstance(tree, tuple | list):
        return zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True)
    return ()


_known: WeakKeyDictionary[Any, list[tuple[str, Any]]] = WeakKeyDictionary()


def _fixed(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of a dataclass; of one that is its own identity, listed once: a structure holds thousands of objects."""
    if type(tree).__hash__ is not object.__hash__:
        return [found for field in fields(tree) for found in leaves(getattr(tree, field.name), field.name)]
    if tree not in _known:
        _known[tree] = [found for field in fields(tree) for found in leaves(getattr(tree, field.name), field.name)]
    return _known[tree]


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount]


def _look(leaf: Any, bits: bool) -> LeafCopy:
    counts = isinstance(leaf, Tensor) and not unwrapped(leaf).is_inference()
    return LeafCopy(leaf, version_of(leaf) if counts else None, _bits(leaf).clone() if bits else None)


def _bits(leaf: Any) -> Tensor:
    """The bits of a tensor or an array, below all derivatives."""
    with below_transforms(), torch.no_grad(), without_forward_mode():
        bare = unwrapped(leaf).detach() if isinstance(leaf, Tensor) else torch.from_numpy(np.ascontiguousarray(leaf))
        return bare.contiguous().view(WHOLE[bare.element_size()])


def _compare(place: str, before: dict[str, LeafCopy], after: dict[str, Any]) -> None:
    if before.keys() != after.keys():
        odd = ", ".join(sorted(before.keys() ^ after.keys()))
        raise PurityError(f"{place}: added or removed {odd}; expected its arguments untouched")
    for path, (leaf, version, bits) in before.items():
        now = after[path]
        if now is not leaf:
            raise PurityError(f"{place}: exchanged {path}; expected its arguments untouched")
        if bits is not None and not _same(_bits(now), bits):
            raise PurityError(f"{place}: changed the bits of {path}; expected its arguments untouched")
        if version is not None and version_of(now) != version:
            counts = f"version {version_of(now)}, {version} before"
            raise PurityError(f"{place}: wrote into {path} ({counts}); expected its arguments untouched")


def _same(bits: Tensor, other: Tensor) -> bool:
    with below_transforms():
        return torch.equal(bits, other)
