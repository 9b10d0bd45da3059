"""What operations may do: constraints as settings, each with a name that a refusal gives."""

from collections.abc import Callable
from typing import NamedTuple

from esper.tezzeret.surgery.anatomy import Anatomy
from esper.tezzeret.surgery.layers import layers_of, width_of
from esper.tezzeret.surgery.operations import OPERATIONS
from esper.tezzeret.surgery.orders import AddSkip, ModifyLayer, Operation
from esper.tezzeret.surgery.reports import Log

MEGABYTE = 2**20


class SurgeryRules(NamedTuple):
    """Limits and capabilities. Widths come first: topology is off until it is asked for.

    Attributes:
      widths: whether ``modify_layer`` is allowed.
      topology: whether layers may come and go, and ways be changed.
      surgeries_per_epoch: most operations in an epoch.
      added_per_epoch, removed_per_epoch: most layers.
      cooldown_epochs: from an epoch with operations to the next one.
      width_factor: a width at most so many times the old, and at least its share.
      smallest_width: units that stay at the least.
      growth: most parameters that one operation adds, as a share of all; a network of ``free_params`` numbers or fewer
        may grow as it likes.
      free_params: see ``growth``.
      memory_mb: most memory that parameters, moments and buffers of all networks gain.
      skips: most ways around.
      depth: most layers.
      accuracy_loss: most accuracy that an operation may cost on the samples, in percentage points.
    """

    widths: bool = True
    topology: bool = False
    surgeries_per_epoch: int = 2
    added_per_epoch: int = 5
    removed_per_epoch: int = 3
    cooldown_epochs: int = 10
    width_factor: float = 2.0
    smallest_width: int = 2
    growth: float = 0.5
    free_params: int = 10_000
    memory_mb: float = 500.0
    skips: int = 10
    depth: int = 100
    accuracy_loss: float = 10.0


class Question(NamedTuple):
    """What a constraint looks at before an operation.

    Attributes:
      rules: the limits.
      body: as it is.
      op: what is asked for.
      log: what was done before.
      epoch: now.
    """

    rules: SurgeryRules
    body: Anatomy
    op: Operation
    log: Log
    epoch: int


def _flag(asked: Question) -> str | None:
    flag = OPERATIONS[type(asked.op)].flag
    return None if getattr(asked.rules, flag) else f"{flag} = False"


def _surgeries(asked: Question) -> str | None:
    done, limit = len(asked.log.done_in(asked.epoch)), asked.rules.surgeries_per_epoch
    return f"surgeries_per_epoch = {limit}, {done} done" if done >= limit else None


def _added(asked: Question) -> str | None:
    done = asked.log.total("added", asked.epoch) + OPERATIONS[type(asked.op)].added
    limit = asked.rules.added_per_epoch
    return f"added_per_epoch = {limit}" if done > limit else None


def _removed(asked: Question) -> str | None:
    done = asked.log.total("removed", asked.epoch) + OPERATIONS[type(asked.op)].removed
    limit = asked.rules.removed_per_epoch
    return f"removed_per_epoch = {limit}" if done > limit else None


def _cooldown(asked: Question) -> str | None:
    earlier = [epoch for epoch in asked.log.epochs if epoch < asked.epoch]
    limit = asked.rules.cooldown_epochs
    if not earlier or asked.epoch - max(earlier) >= limit:
        return None
    return f"cooldown_epochs = {limit}, the last was {asked.epoch - max(earlier)} ago"


def _width(asked: Question) -> str | None:
    if not isinstance(asked.op, ModifyLayer) or asked.op.width is None:
        return None
    found = layers_of(asked.body).get(asked.op.name)
    if found is None:
        return None
    old, new = width_of(asked.body, found), asked.op.width
    factor, least = asked.rules.width_factor, asked.rules.smallest_width
    if new < least:
        return f"smallest_width = {least}, {new} asked for"
    return f"width_factor = {factor:g}, {old} to {new} asked for" if not old / factor <= new <= old * factor else None


def _skips(asked: Question) -> str | None:
    limit = asked.rules.skips
    is_full = isinstance(asked.op, AddSkip) and asked.log.count("add_skip") >= limit
    return f"skips = {limit}" if is_full else None


def _depth(asked: Question) -> str | None:
    depth = len(layers_of(asked.body)) + OPERATIONS[type(asked.op)].added
    return f"depth = {asked.rules.depth}" if depth > asked.rules.depth else None


BEFORE: tuple[Callable[[Question], str | None], ...] = (
    _flag,
    _surgeries,
    _added,
    _removed,
    _cooldown,
    _width,
    _skips,
    _depth,
)
"""Asked before anything is done; each says which constraint stands against it, if it does."""


def against(rules: SurgeryRules, body: Anatomy, op: Operation, log: Log, epoch: int) -> str | None:
    """Which constraint stands against an operation, if one does; asked before anything is done."""
    asked = Question(rules, body, op, log, epoch)
    return next((reason for rule in BEFORE if (reason := rule(asked)) is not None), None)


def expect_growth(rules: SurgeryRules, before: tuple[int, int], after: tuple[int, int]) -> str | None:
    """Which constraint stands against a new body; (parameters of a network, bytes of all) before and after."""
    (old, held), (new, holds) = before, after
    if new > old * (1 + rules.growth) and new > rules.free_params:
        return f"growth = {rules.growth:g}, {old} to {new} parameters"
    if holds - held > rules.memory_mb * MEGABYTE:
        return f"memory_mb = {rules.memory_mb:g}, {(holds - held) / MEGABYTE:.0f} more"
    return None
