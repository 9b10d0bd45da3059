"""Ratios between cases: what the figures are for. One table; each says which limit Esper holds itself to, if any.

Cases of one run are interleaved, so a ratio is taken turn by turn, and quoted with its median, p10 and p90.
"""

from typing import NamedTuple

from esper.bench.measure import percentile
from esper.bench.record import Result

Terms = dict[str, int]
"""Cases with the factor that each counts by."""


class Ratio(NamedTuple):
    """One sum of cases over another, at the same number of environments; ``*`` stands for each blueprint in turn."""

    name: str
    above: Terms
    below: Terms
    limit: float | None = None


DORMANT = "env-step-dormant"

RATIOS = (
    Ratio("extra cost, 10 % active / 100 %", {"env-step-10": 1, DORMANT: -1}, {"env-step-100": 1, DORMANT: -1}, 0.2),
    Ratio("extra cost, 50 % active / 100 %", {"env-step-50": 1, DORMANT: -1}, {"env-step-100": 1, DORMANT: -1}),
    Ratio(
        "extra cost, mixed, 10 % active / 100 %",
        {"env-step-mixed-10": 1, DORMANT: -1},
        {"env-step-mixed-100": 1, DORMANT: -1},
        0.2,
    ),
    Ratio("dormant slots / no slots", {"host-step": 1}, {"plain-host": 1}),
    Ratio(
        "seed / same module in a plain net, *", {"slot-*": 1, "host-step": -1}, {"plain-*": 1, "plain-host": -1}, 1.5
    ),
    Ratio("contributions / plain validation", {"counterfactual": 1, "validation": -1}, {"validation": 1}, 1.3),
    Ratio("validation with contributions / without", {"counterfactual": 1}, {"validation": 1}),
)

START_LIMITS = {"cold-start": 60.0, "warm-start": 15.0}
"""Seconds."""

MEMORY_MARGIN, MEMORY_JUDGED = 0.2, 1 << 28
"""How far measured memory may be from the formula; and from how many bytes on that is judged: a small process's memory
is its allocator's affair."""


class Finding(NamedTuple):
    """A number with its spread and its limit."""

    name: str
    envs: str
    median: float
    p10: float
    p90: float
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the limit is kept, by the median."""
        return "" if self.limit is None else "kept" if self.median <= self.limit else "EXCEEDED"


def findings(results: list[Result]) -> list[Finding]:
    """All numbers that these results allow."""
    timed = [result for result in results if result.seconds]
    at = {(result.case, result.envs): result for result in timed}
    found = []
    for ratio in RATIOS:
        for name, above, below in _spelled_out(ratio, timed):
            for envs in sorted({result.envs for result in timed}):
                if all((case, envs) in at for case in (*above, *below)):
                    turns = _turns(above, below, {case: at[case, envs].seconds for case in (*above, *below)})
                    found.append(_finding(name, f"{envs}", turns, ratio.limit))
    return [*found, *_scaling(timed), *_starts(timed), *_waits(timed), *_memory(timed)]


def _spelled_out(ratio: Ratio, timed: list[Result]) -> list[tuple[str, Terms, Terms]]:
    """The ratio for every blueprint that was measured, or itself."""
    if "*" not in ratio.name:
        return [(ratio.name, ratio.above, ratio.below)]
    names = dict.fromkeys(r.case.removeprefix("slot-") for r in timed if r.case.startswith("slot-"))

    def spell(terms: Terms, name: str) -> Terms:
        return {case.replace("*", name): factor for case, factor in terms.items()}

    return [(ratio.name.replace("*", name), spell(ratio.above, name), spell(ratio.below, name)) for name in names]


def _turns(above: Terms, below: Terms, seconds: dict[str, list[float]]) -> list[float]:
    """The ratio in every turn that all cases took part in; without those whose denominator is not positive."""
    count = min(len(column) for column in seconds.values())
    pairs = [
        tuple(sum(factor * seconds[case][turn] for case, factor in terms.items()) for terms in (above, below))
        for turn in range(count)
    ]
    return [top / bottom for top, bottom in pairs if bottom > 0]


def _finding(name: str, envs: str, values: list[float], limit: float | None) -> Finding:
    shares = [percentile(values, share) if values else float("nan") for share in (0.5, 0.1, 0.9)]
    return Finding(name, envs, shares[0], shares[1], shares[2], limit)


def _scaling(timed: list[Result]) -> list[Finding]:
    """Time per environment at the largest E over that at the smallest, turn by turn."""
    found = []
    for case in dict.fromkeys(result.case for result in timed):
        rows = sorted((result for result in timed if result.case == case), key=lambda result: result.envs)
        if len(rows) > 1:
            few, many = rows[0], rows[-1]
            pairs = zip(many.seconds, few.seconds, strict=False)
            values = [b / many.envs / (a / few.envs) for b, a in pairs]
            found.append(_finding(f"time per environment, {case}", f"{many.envs}/{few.envs}", values, 1.0))
    return found


def _starts(timed: list[Result]) -> list[Finding]:
    rows = [(r, START_LIMITS[r.case]) for r in timed if r.case in START_LIMITS]
    return [_finding(f"seconds, {r.case}", f"{r.envs}", r.seconds, limit) for r, limit in rows]


def _waits(timed: list[Result]) -> list[Finding]:
    """Per step of the random walk: waits beyond the plan's one, recompilations, graph breaks."""
    found = []
    for result in timed:
        if result.case == "random-walk" and result.counted:
            for name, count, allowed in (
                ("waits", result.waits, result.counted),
                ("recompilations", result.recompiles, 0),
                ("graph breaks", result.graph_breaks, 0),
            ):
                title = f"{name} in {result.counted} random steps"
                found.append(_finding(title, f"{result.envs}", [float(count)], float(allowed)))
    return found


def _memory(timed: list[Result]) -> list[Finding]:
    """How far the measured memory per environment is from the formula, as a share of the formula."""
    found = []
    for result in timed:
        if result.warm is not None and result.formula_bytes:
            gap = abs(result.warm.run_bytes / result.envs / result.formula_bytes - 1)
            limit = MEMORY_MARGIN if result.warm.run_bytes >= MEMORY_JUDGED else None
            found.append(_finding(f"memory off the formula, {result.case}", f"{result.envs}", [gap], limit))
    return found
