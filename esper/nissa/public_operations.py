"""Public operations: what the package's own functions do, told as events while somebody listens.

``public`` stands before every function that users call; outside of a ``telling`` block, and in a graph that
torch.compile traces, it calls the function and nothing else. Within one, each call is an event on success and another
on failure, with the time it took.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from esper.nissa.event_record import OPERATIONS
from esper.nissa.operations import OperationLog

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LISTENING: ContextVar[OperationLog | None] = ContextVar("listening", default=None)


@contextmanager
def telling(log: OperationLog | None) -> Iterator[None]:
    """A context in which calls of public operations are told, in this thread.

    Args:
      log: of them; None: nobody is told.
    """
    token = _LISTENING.set(log)
    try:
        yield
    finally:
        _LISTENING.reset(token)


def public(operation: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator: the function does an operation.

    Args:
      operation: of ``esper.nissa.event_record.OPERATIONS``.

    Raises:
      KeyError: no such operation.
    """
    OPERATIONS[operation]

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            log = None if torch.compiler.is_compiling() else _LISTENING.get()  # nobody listens within a graph
            if log is None:
                return function(*arguments, **named)
            with log(operation):
                return function(*arguments, **named)

        return run

    return decorate
