"""An operation from beginning to end: asked, checked, done, checked again, measured, reported. It never raises."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.surgery import checks
from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned
from esper.tezzeret.surgery.measure import Effect, effect
from esper.tezzeret.surgery.operations import OPERATIONS
from esper.tezzeret.surgery.orders import Operand, Operation, Samples
from esper.tezzeret.surgery.reports import Log, Report, reason_of
from esper.tezzeret.surgery.rules import SurgeryRules, against, expect_growth
from esper.utils import rng


class Operated(NamedTuple):
    """What ``surgery`` returns.

    Attributes:
      body, learned: the new ones; the old ones themselves where nothing was done.
      report: what became of it.
    """

    body: Anatomy
    learned: Learned
    report: Report


def surgery(
    body: Anatomy,
    learned: Learned,
    op: Operation,
    samples: Samples,
    rules: SurgeryRules = SurgeryRules(),  # noqa: B008 (a value)
    log: Log = Log(),  # noqa: B008
    epoch: int = 0,
) -> Operated:
    """Operate on a body: a new structure for **all** E networks of ``learned``.

    For some of a batch, take them out first (``part``, or ``esper.leyline.environments.select`` of states): they go on
    as a batch of their own with the new body, and the others keep structure and bits. Nothing is written to; rolling
    back is keeping the old values. It never raises: whatever goes wrong is the report's ``reason``.

    Args:
      body: what all networks compute.
      learned: what each has learned.
      op: what is to be done.
      samples: a batch on which outputs, gradients, loss and accuracy are tried, on the networks' device.
      rules: constraints.
      log: reports of earlier operations on these networks, from which constraints count.
      epoch: now; also what draws of new numbers depend on.

    Returns:
      the new body, what its networks know, and the report. Law: without a reason all of
      ``esper.tezzeret.surgery.checks`` hold; with one, body and learned are the arguments.
    """
    table = _Table(body, learned, op, samples, time.perf_counter())
    try:
        return table.operate(rules, log, epoch)
    except Exception as error:  # a training loop goes on, whatever happened
        return Operated(body, learned, table.report(epoch, reason_of(error)))


class _Table:
    """An operation on its way."""

    def __init__(self, body: Anatomy, learned: Learned, op: Operation, samples: Samples, began: float) -> None:
        self.body, self.learned, self.op, self.samples, self.began = body, learned, op, samples, began
        self.stage = "rules"
        self.params = (0, 0)
        self.effects: tuple[Effect | None, Effect | None] = (None, None)
        self.moved: float | None = None

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        self.stage = stage

    def expect_none(self, reason: str | None) -> None:
        """Raise ``Impossible`` for a reason."""
        if reason is not None:
            raise Impossible(reason)

    def operate(self, rules: SurgeryRules, log: Log, epoch: int) -> Operated:
        """All stages."""
        self.enter("rules")
        kind = OPERATIONS[type(self.op)]
        self.expect_none(against(rules, self.body, self.op, log, epoch))
        self.enter("before")
        checks.check_structure(self.body, self.learned)
        key = rng.fold_in(rng.key(0), epoch, len(log.reports), torch.arange(len(self.learned.steps)))
        case = Operand(self.body, self.learned, self.samples, key.to(self.learned.steps.device))
        old = checks.check_outputs(self.body, self.learned, case.inputs).output
        self.effects = effect(old, self.samples.targets), None
        self.params = self.body.num_params, self.body.num_params
        self.enter("operation")
        result = kind.run(case, self.op)
        self.params = self.body.num_params, result.body.num_params
        sizes = self._size(self.body, self.learned), self._size(result.body, result.learned)
        self.expect_none(expect_growth(rules, *sizes))
        self._check(case, result.body, result.learned, old, result.preserves)
        lost = 0.0
        if self.effects[0] is not None and self.effects[1] is not None:
            lost = self.effects[0].accuracy - self.effects[1].accuracy
        if lost > rules.accuracy_loss:
            raise Impossible(f"accuracy_loss = {rules.accuracy_loss:g}, {lost:.1f} points lost")
        self.stage = "done"
        return Operated(result.body, result.learned, self.report(epoch, None))

    def _check(self, case: Operand, body: Anatomy, learned: Learned, old: Tensor, preserves: bool) -> None:
        """What must hold behind an operation."""
        self.enter("structure")
        checks.check_structure(body, learned)
        self.enter("fake")
        checks.check_fake(body, learned)
        self.enter("outputs")
        new = checks.check_outputs(body, learned, case.inputs).output
        self.moved = checks.check_kept(old, new, preserves)
        self.enter("gradients")
        checks.check_gradients(body, learned, case)
        self.enter("effect")
        self.effects = self.effects[0], effect(new, self.samples.targets)

    def _size(self, body: Anatomy, learned: Learned) -> tuple[int, int]:
        """Numbers of a network, and bytes of all."""
        values = [value for table in learned[:3] for value in table.values()]
        return body.num_params, sum(value.numel() * value.element_size() for value in values)

    def report(self, epoch: int, reason: str | None) -> Report:
        """What became of it."""
        kind = OPERATIONS.get(type(self.op))
        done = kind if kind is not None and reason is None else None
        return Report(
            op=self.op,
            name=kind.name if kind is not None else type(self.op).__name__,
            epoch=epoch,
            networks=len(self.learned.steps),
            reason=reason,
            stage=self.stage,
            added=done.added if done else 0,
            removed=done.removed if done else 0,
            params=self.params,
            before=self.effects[0],
            after=self.effects[1],
            moved=self.moved,
            seconds=time.perf_counter() - self.began,
        )
