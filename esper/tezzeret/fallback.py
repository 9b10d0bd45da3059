"""A kernel that raises while it runs: the definition does its work from then on, and the failure is counted.

What cannot be built or compiled is known before anything runs (``esper.tezzeret.choose``). This is for what fails
later, in the middle of a training that need not end for it: all functions of a backend are pure, so the definition can
be given the very arguments that the failed call had.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from esper.kasmina.slot_table import SlotTable
from esper.tezzeret.backend import Backend, BackendError, Plan
from esper.tezzeret.guard import ARGUMENTS
from esper.utils.documents import cause
from esper.utils.resilience.causes import Nature, cause_of

logger = logging.getLogger("esper")

FALLS_BACK = "raised while it ran"
"""Words of the line in the log, and of a backend's description."""


def is_of_surroundings(error: Exception) -> bool:
    """Whether a failure is the machine's, such as memory that ran out: no other form of the same work helps."""
    return cause_of(error).nature in (Nature.TRANSIENT, Nature.LASTING)


def or_eager(backend: Backend, definition: Backend) -> Backend:
    """A backend whose functions go on as the definition's once they have raised.

    Args:
      backend: its plans have a ``table``.
      definition: the eager backend of the same structure.

    Returns:
      the backend. A call that the definition cannot do either raises what it raised; so does one that asks for what the
      backend does not give (``BackendError``), and one that fails for want of memory or the like.
    """
    failed = dict[str, str]()

    def describe() -> tuple[str, ...]:
        return (*backend.describe(), *(f"eager: {name} {FALLS_BACK}: {reason}" for name, reason in failed.items()))

    functions: dict[str, Any] = {
        name: _or_plainly(backend, definition.plan, (name, getattr(definition, name)), failed) for name in ARGUMENTS
    }
    return backend._replace(**functions, describe=describe, failures=lambda: backend.failures() + len(failed))


def _or_plainly(
    backend: Backend,
    plan: Callable[[SlotTable, torch.device], Plan],
    named: tuple[str, Callable[..., Any]],
    failed: dict[str, str],
) -> Callable[..., Any]:
    name, plainly = named
    function = getattr(backend, name)

    def definition(arguments: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        given = dict(zip(ARGUMENTS[name], arguments, strict=False)) | by_name
        given["plan"] = plan(given["plan"].table, given["alphas"].device)
        return plainly(*(given[each] for each in ARGUMENTS[name]))

    def run(*arguments: Any, **by_name: Any) -> Any:
        if name in failed:
            return definition(arguments, by_name)
        try:
            return function(*arguments, **by_name)
        except BackendError:
            raise
        except Exception as error:  # whatever a kernel, or what calls it, may raise
            if is_of_surroundings(error):
                raise
            try:
                result = definition(arguments, by_name)
            except Exception:
                raise error from None  # the fault is the call's own
            failed[name] = cause(error)
            logger.warning(
                "backend %r: %s %s (%s); the definition does it now", backend.name, name, FALLS_BACK, failed[name]
            )
            return result

    return run
