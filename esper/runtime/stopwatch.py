"""How much of an engine's time its evaluations take."""

import time
from dataclasses import replace
from typing import Any

from esper.engine import Engine
from esper.tezzeret.score import Scores


class Stopwatch:
    """Seconds that evaluations of an engine took, validation with its counterfactuals; on a CPU, where calls wait.

    Attributes:
      engine: as the one it was given, and timed.
      seconds: so far; set it to 0 to begin anew.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        evaluate = engine.backend.evaluate

        def timed(*arguments: Any) -> Scores:
            start = time.perf_counter()
            scores = evaluate(*arguments)
            self.seconds += time.perf_counter() - start
            return scores

        self.engine = replace(engine, backend=engine.backend._replace(evaluate=timed))
