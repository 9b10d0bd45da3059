"""How much of an engine's time its evaluations take, and spans of a step's parts."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from esper.engine import Engine
from esper.nissa.spans import NO_SPANS, Spans
from esper.tezzeret.backend import Backend
from esper.tezzeret.score import Scores

PARTS = {"plan_with": "plan", "epoch": "epoch", "evaluate": "evaluate"}
"""Functions of a backend -> spans of a step's parts, in order; on a CPU, where calls wait, they last as long as what
they do.
"""


class Stopwatch:
    """Seconds that evaluations of an engine took, validation with its counterfactuals; on a CPU, where calls wait.

    Attributes:
      engine: as the one it was given, and timed.
      seconds: so far; set it to 0 to begin anew.
    """

    def __init__(self, engine: Engine, spans: Spans = NO_SPANS) -> None:
        self.seconds = 0.0
        backend = engine.backend if spans is NO_SPANS else recorded_parts(engine.backend, spans)
        evaluate = backend.evaluate

        def timed(*arguments: Any) -> Scores:
            start = time.perf_counter()
            scores = evaluate(*arguments)
            self.seconds += time.perf_counter() - start
            return scores

        self.engine = replace(engine, backend=backend._replace(evaluate=timed))


def recorded_parts(backend: Backend, spans: Spans) -> Backend:
    """The same backend, the parts of whose steps are spans."""

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def within(*arguments: Any) -> Any:
            with spans.detail(name):
                return function(*arguments)

        return within

    parts: dict[str, Any] = {name: recorded(span, getattr(backend, name)) for name, span in PARTS.items()}
    return backend._replace(**parts)
