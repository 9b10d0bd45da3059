"""Surgery on an engine's hosts: between two steps, an engine and a state become others.

```python
engine, state, report = operate(engine, state, ModifyLayer("block0.conv", width=16))
```
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from esper.engine import Engine
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.tezzeret.backend import BackendError
from esper.tezzeret.choose import build_backend
from esper.tezzeret.surgery import Log, Operation, Report, Samples, SurgeryRules, learned_of
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tezzeret.surgery.reports import reason_of
from esper.tolaria import operating
from esper.tolaria.evaluation import measure
from esper.tolaria.triggers import Trigger, Watched, planned

SAMPLES = 256
"""Of the validation part, on which operations are tried."""


class Continued(NamedTuple):
    """How a run goes on.

    Attributes:
      engine: of the new structure.
      state: [E].
      report: what became of the operation.
    """

    engine: Engine
    state: State
    report: Report


def samples_of(engine: Engine) -> Samples:
    """Samples of the validation part, which decisions are made on."""
    part = engine.data.validation
    return Samples(part.inputs[:SAMPLES], part.targets[:SAMPLES])


def operate(
    engine: Engine,
    state: State,
    op: Operation,
    rules: SurgeryRules = SurgeryRules(),  # noqa: B008 (a value)
    log: Log = Log(),  # noqa: B008
) -> Continued:
    """Operate on **all** environments of a state: a new structure needs a new engine.

    For some of them, take these out first with ``esper.leyline.environments.select``; the engine and the state that
    come back are theirs, and the rest goes on with the old engine, bit by bit as if nothing had been done. A fossil is
    removed from all environments that have one in that slot, within the old structure.

    Args:
      engine: as it is; it stays usable.
      state: [E].
      op: what is to be done.
      rules: constraints; topology is off unless asked for.
      log: reports of earlier operations.

    Returns:
      engine, state and report; with a reason in the report, the first two are the arguments. It never raises.
    """
    if isinstance(op, RemoveFossil):
        began = time.perf_counter()
        try:
            return _excise(engine, state, op, rules, log)
        except Exception as error:  # a training loop goes on, whatever happened
            epoch, count = int(state.epoch.max()), len(state.key)
            return Continued(engine, state, operating.refused(op, epoch, count, reason_of(error), began))
    found = operating.operate(engine.structure, state, op, samples_of(engine), rules, log)
    if not found.report.done:
        return Continued(engine, state, found.report)
    device = state.key.device
    try:
        backend = build_backend(engine.backend.name, found.structure, device)
    except BackendError:  # what the old structure's backend cannot take, another can
        backend = build_backend("auto", found.structure, device)
    except Exception as error:  # a training loop goes on, whatever happened
        report = found.report._replace(reason=reason_of(error), stage="structure", added=0, removed=0)
        return Continued(engine, state, report)
    return Continued(replace(engine, structure=found.structure, backend=backend), found.state, found.report)


def _excise(engine: Engine, state: State, op: RemoveFossil, rules: SurgeryRules, log: Log) -> Continued:
    rows = operating.fossils(state, op.slot)
    slots = state.slots
    alphas = (
        slots.alpha.index_fill(1, torch.tensor([op.slot], device=slots.alpha.device), 0.0)
        if rows.any()
        else slots.alpha
    )
    without = state.replace(slots=slots.replace(alpha=alphas))
    measured = tuple(measure(engine.backend, engine.hypers, each, engine.data.validation) for each in (state, without))
    found = operating.excise(engine.structure, state, op, rows, (measured[0], measured[1]), rules, log)
    return Continued(engine, found.state, found.report)


class Tended(NamedTuple):
    """How a run goes on after triggers were asked.

    Attributes:
      engine, state: the new ones.
      log: with one more report, where a trigger asked for something.
    """

    engine: Engine
    state: State
    log: Log


def tend(engine: Engine, state: State, triggers: Sequence[Trigger], rules: SurgeryRules, log: Log) -> Tended:
    """Ask triggers in order, and do what the first asks for; between two steps of a run.

    Args:
      engine, state: as they are.
      triggers: such as those of ``esper.tolaria.triggers.TRIGGERS``.
      rules: constraints.
      log: reports of earlier operations.

    Raises:
      Impossible: the host cannot be read as a graph.
    """
    body, learned = operating.anatomy(engine.structure), learned_of(engine.structure.host, learners_of(state))
    watched = Watched(state, body, learned, samples_of(engine), log)
    for trigger in triggers:
        decision = trigger(watched)
        if decision is not None:
            engine, state, report = operate(engine, state, planned(body, decision), rules, log)
            return Tended(engine, state, log.with_report(report))
    return Tended(engine, state, log)
