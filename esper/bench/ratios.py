"""Ratios between cases: what the figures are for. One table; each says which limit Esper holds itself to, if any.

Cases of one run are interleaved, so a ratio is taken turn by turn, and quoted with its median, quartiles, p10 and p90.
"""

from typing import NamedTuple

from esper.bench.measure import percentile
from esper.bench.record import Result
from esper.nissa.profiles import PROFILES

Terms = dict[str, int]
"""Cases with the factor that each counts by."""


class Ratio(NamedTuple):
    """One sum of cases over another, at the same number of environments."""

    name: str
    above: Terms
    below: Terms
    limit: float | None = None


DORMANT = "env-step-dormant"

TELEMETRY_LIMITS = {"production": 1.02, "minimal": 1.02, "standard": 1.05}
"""Profile -> what a round may take, as a multiple of one without."""


def _extra(share: int, kind: str = "", limit: float | None = None) -> Ratio:
    above, below = ({f"env-step-{kind}{percent}": 1, DORMANT: -1} for percent in (share, 100))
    words = f"extra cost, {kind.removesuffix('-')}{', ' if kind else ''}"
    return Ratio(f"{words}{share} % active / 100 %", above, below, limit)


RATIOS = (
    _extra(10, limit=0.2),
    _extra(50),
    _extra(10, "mixed-", 0.2),
    Ratio("training of dormant slots / whole step", {"host-step": 1}, {DORMANT: 1}),
    Ratio("dormant slots / hosts alone", {DORMANT: 1}, {"hosts-alone": 1}, 1.05),
    Ratio("platform / hosts alone", {"platform-step": 1}, {"hosts-alone": 1}, 1.05),
    *(
        Ratio(f"telemetry {name} / off", {f"telemetry-{name}": 1}, {"telemetry-off": 1}, TELEMETRY_LIMITS.get(name))
        for name in PROFILES
        if name != "off"
    ),
    Ratio("contributions / plain validation", {"contributions": 1, "validation": -1}, {"validation": 1}, 1.3),
)

START_LIMITS = {"cold-start": 60.0, "warm-start": 15.0}
"""Seconds."""


class Finding(NamedTuple):
    """A number with its spread and its limit."""

    name: str
    envs: str
    median: float
    p10: float
    p25: float
    p75: float
    p90: float
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the limit is kept, by the median."""
        return "" if self.limit is None else "kept" if self.median <= self.limit else "EXCEEDED"


def findings(results: list[Result]) -> list[Finding]:
    """All numbers that these results allow."""
    timed = [result for result in results if result.seconds]
    return [*ratios_of(results), *_starts(timed), *_waits(timed)]


def ratios_of(results: list[Result]) -> list[Finding]:
    """Those among them that are ratios within the run, so that they say something of another machine as well."""
    timed = [result for result in results if result.seconds]
    at = {(result.case, result.envs): result for result in timed}
    found = []
    for ratio in RATIOS:
        cases = (*ratio.above, *ratio.below)
        for envs in sorted({result.envs for result in timed}):
            if all((case, envs) in at for case in cases):
                turns = _turns(ratio.above, ratio.below, {case: at[case, envs].seconds for case in cases})
                found.append(_finding(ratio.name, f"{envs}", turns, ratio.limit))
    return [*found, *_scaling(timed), *_beside(timed)]


def beside_first(results: list[Result], first: dict[int, str]) -> list[Finding]:
    """Every case over one of the same run, turn by turn.

    Args:
      results: with seconds.
      first: for a number of environments, the case that others are divided by.
    """
    at, found = {(result.case, result.envs): result for result in results}, list[Finding]()
    for result in results:
        below = first.get(result.envs, result.case)
        if below != result.case:
            turns = _turns(
                {result.case: 1}, {below: 1}, {case: at[case, result.envs].seconds for case in (result.case, below)}
            )
            found.append(_finding(f"{result.case} / {below}", f"{result.envs}", turns, None))
    return found


def _beside(timed: list[Result]) -> list[Finding]:
    """Of cases with parts: each part's rate beside the others over its rate alone."""
    return [
        _finding(f"rate beside others / alone, {part}", f"{result.envs}", [both / alone for alone, both in pairs], None)
        for result in timed
        for part, pairs in result.rates.items()
    ]


def _turns(above: Terms, below: Terms, seconds: dict[str, list[float]]) -> list[float]:
    """The ratio in every turn that all cases took part in; without those whose denominator is not positive."""
    count = min(len(column) for column in seconds.values())
    pairs = [
        tuple(sum(factor * seconds[case][turn] for case, factor in terms.items()) for terms in (above, below))
        for turn in range(count)
    ]
    return [top / bottom for top, bottom in pairs if bottom > 0]


def _finding(name: str, envs: str, values: list[float], limit: float | None) -> Finding:
    places = {"median": 0.5, "p10": 0.1, "p25": 0.25, "p75": 0.75, "p90": 0.9}
    shares = {place: percentile(values, share) if values else float("nan") for place, share in places.items()}
    return Finding(name, envs, limit=limit, **shares)


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
    """In the random walk: waits beyond the plan's one a step, and recompilations."""
    found = []
    for result in timed:
        if result.case == "random-walk" and result.counted:
            counts = (("waits", result.waits, result.counted), ("recompilations", result.recompiles, 0))
            for name, count, allowed in counts:
                title = f"{name} in {result.counted} random steps"
                found.append(_finding(title, f"{result.envs}", [float(count)], float(allowed)))
    return found
