"""The guard of backends that give no derivatives: an input that asks for one is an error, never a silent zero."""

import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from tensordict import TensorDictBase
from torch import Tensor

from esper.tezzeret.backend import Backend, BackendError
from esper.utils.torch_private import below_transforms, is_transforming
from esper.utils.transforms import find_derivative

Result = TypeVar("Result")

ARGUMENTS = {
    "forward": ("plan", "learners", "alphas", "batch"),
    "minibatch_step": ("hypers", "plan", "learners", "alphas", "batch"),
    "epoch": ("hypers", "plan", "learners", "alphas", "batches"),
    "evaluate": ("hypers", "plan", "learners", "alphas", "samples", "counterfactuals"),
}
"""Arguments of a backend's functions, in order. Plans and counterfactuals are whole numbers; they are not looked at."""

WATCHED = {"watched_epoch": ("hypers", "plan", "learners", "alphas", "watched")}
"""The same of what not every backend has."""

CHECKED = ("hypers", "learners", "alphas", "batch", "batches", "samples", "watched")


def without_derivatives(backend: Backend) -> Backend:
    """The backend with its functions guarded.

    Returns:
      a backend whose functions raise ``BackendError``, one line, where a tensor among their arguments requires a
      gradient, carries a tangent, or belongs to a transform of ``torch.func``.
    """
    names = [name for name in ARGUMENTS | WATCHED if getattr(backend, name) is not None]
    guarded: dict[str, Any] = {name: _guarded(backend.name, name, getattr(backend, name)) for name in names}
    return backend._replace(**guarded)


def _guarded(backend: str, name: str, function: Callable[..., Result]) -> Callable[..., Result]:
    listed = _Leaves()

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Result:
        given = dict(zip((ARGUMENTS | WATCHED)[name], arguments, strict=False)) | named
        seen, leaves = {key: given[key] for key in CHECKED if key in given}, list[Tensor]()
        for value in seen.values():
            listed.collect(value, leaves)
        found = find_derivative(leaves)
        if found is not None:
            path = [path for key, value in seen.items() for path in _paths(key, value)][found[0]]
            raise BackendError(
                f"backend {backend!r}: {name}: {path} {found[1]}, which it cannot follow; "
                'expected backend="eager" (esper.make with differentiable=True)'
            )
        if is_transforming():  # with none of this in it: plain tensors, which kernels can read, and constant
            with below_transforms():
                return function(*arguments, **named)
        return function(*arguments, **named)

    return checked


class _Leaves:
    """Tensors of an argument: itself, or those of a nest of tuples or of a tensordict without nested ones.

    Listing a tensordict takes longer than the check, so the list of a locked one, which cannot change, is kept.
    """

    def __init__(self) -> None:
        self.last: weakref.ref[TensorDictBase] | None = None
        self.held: tuple[Tensor, ...] = ()

    def collect(self, argument: Any, found: list[Tensor]) -> None:
        """Append the tensors of an argument."""
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, tuple):
            for part in argument:
                self.collect(part, found)
        elif isinstance(argument, TensorDictBase):
            found.extend(self._listed(argument))

    def _listed(self, table: TensorDictBase) -> tuple[Tensor, ...]:
        if not table.is_locked:
            return tuple(table.values())
        if self.last is None or self.last() is not table:
            self.last, self.held = weakref.ref(table), tuple(table.values())
        return self.held


def _paths(path: str, argument: Any) -> Iterator[str]:
    """Names of the tensors of an argument, in the order of ``_Leaves``."""
    if isinstance(argument, Tensor):
        yield path
    elif isinstance(argument, tuple):
        fields = getattr(argument, "_fields", range(len(argument)))
        for name, part in zip(fields, argument, strict=True):
            yield from _paths(f"{path}.{name}", part)
    elif isinstance(argument, TensorDictBase):
        yield from (f"{path}.{name}" for name in argument.keys())  # noqa: SIM118
