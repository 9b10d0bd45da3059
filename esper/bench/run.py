"""Running cases: gate, count, time in turn, then fresh processes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from esper.bench import probe
from esper.bench.case import Bench, Case, Trial
from esper.bench.measure import interleave
from esper.bench.meter import compilations, count_waits
from esper.bench.probe import Probe
from esper.bench.rates import Rates, measure_rates
from esper.bench.record import Result
from esper.kasmina.plan import take_census


class Ready(NamedTuple):
    """A case whose gate was green."""

    case: Case
    trial: Trial
    result: Result


def run_cases(
    bench: Bench,
    cases: Sequence[Case],
    envs: Sequence[int],
    repeat: int,
    fresh: bool,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[list[Result], list[Rates]]:
    """Measure cases.

    Args:
      bench: what they share.
      cases: which.
      envs: numbers of environments; every case is measured at each.
      repeat: timings of each, taken in turn.
      fresh: whether to start fresh processes for compile seconds and memory.
      note: told what is being done.

    Returns:
      results in the order of cases, then of E; and the machine's rates before, between and after.
    """
    results: list[Result] = []
    rates: list[Rates] = []
    with ExitStack() as stack:
        ready = []
        for case in cases:
            for count in envs:
                note(f"{case.name}, E = {count}: gate")
                prepared = prepare(bench, case, count, stack)
                results.append(prepared.result)
                if prepared.result.wrong is None:
                    ready.append(prepared)

        def between(turn: int) -> None:
            note(f"turn {turn} of {repeat}")
            if turn in (0, repeat // 2, repeat):
                rates.append(measure_rates(bench.device, bench.precision.dtype, bench.quick))

        runs = [(each.trial.run, each.case.most) for each in ready]
        for each, seconds in zip(ready, interleave(runs, repeat, bench.device, between), strict=True):
            each.result.seconds = seconds
    if fresh:
        for each in ready:
            if each.case.probed:
                note(f"{each.case.name}, E = {each.result.envs}: fresh processes")
                each.result.cold, each.result.warm = _probes(bench, each.case, each.result.envs)
    return results, rates


def prepare(bench: Bench, case: Case, envs: int, stack: ExitStack) -> Ready:
    """Build a trial, let its gate judge it, and count what it does; what it holds is given back by ``stack``."""
    trial = case.prepare(bench, envs)
    stack.callback(trial.close)
    result = Result(case.name, case.unit, envs, wrong=case.gate(trial))
    if result.wrong is None:
        result.work = case.work(trial)
        if bench.compile and case.memory is not None:
            result.formula_bytes = case.memory(trial.engine, take_census(trial.state.slots))
        _count(bench, case, trial, result)
    return Ready(case, trial, result)


def _count(bench: Bench, case: Case, trial: Trial, result: Result) -> None:
    """Compilations and waits over the case's counted runs; whatever it compiles at first is compiled."""
    result.counted = case.counted
    with compilations() as compiled:
        result.waits = sum(count_waits(trial.run, bench.device) for _ in range(case.counted))
    result.recompiles, result.graph_breaks = compiled.events, compiled.graph_breaks


def _probes(bench: Bench, case: Case, envs: int) -> tuple[Probe | None, Probe]:
    """A process with empty caches and the next with the same ones; without compilation one process is enough."""
    with probe.empty_caches() as caches:
        found = [Probe(**probe.ask("probe", bench, case.name, envs, caches)) for _ in range(1 + bench.compile)]
    return (found[0] if bench.compile else None), found[-1]
