"""Running cases: gate, count, time in turn, then fresh processes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from esper.bench.case import Bench, Case, Trial
from esper.bench.fresh import Probe, ask
from esper.bench.measure import interleave
from esper.bench.meter import compilations, count_work
from esper.bench.record import Result


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
) -> list[Result]:
    """Measure cases.

    Args:
      bench: what they share.
      cases: which.
      envs: numbers of environments; every case is measured at each.
      repeat: timings of each, taken in turn.
      fresh: whether to start fresh processes for first repeats and memory.
      note: told what is being done.

    Returns:
      results in the order of cases, then of E.
    """
    results: list[Result] = []
    with ExitStack() as stack:
        ready = []
        for case in cases:
            for count in envs:
                note(f"{case.name}, E = {count}: gate")
                prepared = prepare(bench, case, count, stack)
                results.append(prepared.result)
                if prepared.result.wrong is None:
                    ready.append(prepared)

        runs = [(each.trial.run, each.case.most) for each in ready]
        columns = interleave(runs, repeat, bench.device, lambda turn: note(f"turn {turn} of {repeat}"))
        for each, seconds in zip(ready, columns, strict=True):
            each.result.seconds, each.result.rates = seconds, each.trial.rates()
    for each in ready:
        if fresh and each.case.probed:
            note(f"{each.case.name}, E = {each.result.envs}: fresh process")
            each.result.probe = Probe(**ask(bench, each.case.name, each.result.envs, {}))
    return results


def prepare(bench: Bench, case: Case, envs: int, stack: ExitStack) -> Ready:
    """Build a trial, let its gate judge it, and count what it does; what it holds is given back by ``stack``."""
    trial = case.prepare(bench, envs)
    stack.callback(trial.close)
    result = Result(case.name, case.unit, envs, wrong=case.gate(trial))
    if result.wrong is None and case.counted:
        result.counted = case.counted
        with compilations() as compiled:  # whatever is compiled at first has been
            runs = [count_work(trial.run, bench.device) for _ in range(case.counted)]
        result.waits, result.launches, result.bytes = map(sum, zip(*runs, strict=True))
        result.recompiles = compiled[0]
    return Ready(case, trial, result)
