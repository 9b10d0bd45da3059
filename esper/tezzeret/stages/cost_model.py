"""What compiling a document will take, before it is tried; and the order of a queue that follows from it.

Shortest first serves the most requests soonest, and would let the longest wait for ever: so a request's claim grows as
it waits (ageing; Silberschatz, Galvin and Gagne, "Operating System Concepts", chapter 5).
"""

from collections.abc import Sequence

from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints import Costs, parse
from esper.tezzeret.stages.pipeline import costs_of
from esper.tezzeret.stages.request import CompileJob

BASE, PER_NODE, PER_FLOP, PER_PARAMETER = 0.12, 0.015, 1.2e-6, 1e-6
"""Seconds: of any document; of a node; of a multiply-add of a sample, which validation repeats; of a parameter. Near
what shipped documents take on the native backend; only the order of what follows matters."""

FACTOR = {"native": 1.0, "eager": 1.0, "inductor": 60.0}
"""How much longer a backend takes."""

AGEING = 0.02
"""Seconds of compilation that a second of waiting outweighs."""

UNKNOWN = 0.0
"""Seconds of a document that cannot be compiled: it is told so first of all."""


def predict(costs: Costs, backend: str) -> float:
    """Seconds of stages 3 to 6.

    Args:
      costs: of stage 2.
      backend: the first one that is tried.
    """
    seconds = BASE + PER_NODE * len(costs.nodes) + PER_FLOP * costs.flops + PER_PARAMETER * costs.params
    return FACTOR.get(backend, 1.0) * seconds


def predict_job(job: CompileJob) -> float:
    """Seconds of a job; ``UNKNOWN`` where its document fails in stages 1 or 2."""
    try:
        job.check()
        document = parse(job.document, job.place)
        return predict(costs_of(document, job.site)[1], job.backends[0])
    except ConfigError:
        return UNKNOWN


def urgency(predicted: float, waited: float) -> float:
    """What a queue is ordered by, the least first.

    Args:
      predicted: seconds of compilation.
      waited: seconds in the queue. Law: whoever has waited for ``predicted / AGEING`` comes before whoever arrives.
    """
    return predicted - AGEING * waited


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. NaN of fewer than two, or all equal."""
    ranks = [_ranks(values) for values in (one, other)]
    count = len(ranks[0])
    if count < 2:
        return float("nan")
    middle = (count + 1) / 2
    first, second = ([rank - middle for rank in each] for each in ranks)
    size = (sum(a * a for a in first) * sum(b * b for b in second)) ** 0.5
    return sum(a * b for a, b in zip(first, second, strict=True)) / size if size else float("nan")


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
