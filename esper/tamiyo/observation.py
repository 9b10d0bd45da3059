"""Observation: what a policy sees of an environment, from one table of columns.

Every column is bounded by [-1, 1]. What is absent differs from what is zero: a slot's measurements come with a flag,
a history that has not happened yet is -1, and of a decision that was not taken yet no operation is flagged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import Blend
from esper.leyline.config import Config, ConfigError
from esper.leyline.stages import Stage
from esper.leyline.state import Slots, State
from esper.tamiyo.decision_columns import decision_flags, decision_labels
from esper.utils.documents import shown

SMALLEST = 1e-6
"""The smallest scale, and the inverse of the largest."""

ABSENT = -1.0
"""Value of a history entry before there is one."""

STAGES = tuple(Stage)[1:]
"""Stages a slot can be seen in: all but UNKNOWN."""


@dataclass(frozen=True)
class Scales:
    """Units in which columns are measured before they are cut to [-1, 1]; positive numbers.

    Attributes:
      loss_gain: 1 / nats; changes of the loss are seen as tanh(loss_gain x).
      accuracy_delta: pp; the accuracy's change.
      class_spread: pp; deviation of the classes' accuracies.
      plateau: epochs without gain.
      spikes: epochs in a row.
      stage_age: epochs in a stage.
      contribution: pp; a seed's contribution, its error, prospect and improvement.
    """

    loss_gain: float = 5.0
    accuracy_delta: float = 10.0
    class_spread: float = 50.0
    plateau: float = 10.0
    spikes: float = 3.0
    stage_age: float = 10.0
    contribution: float = 10.0


STANDARD = Scales()


def build_scales(given: Mapping[str, Any]) -> Scales:
    """Defaults with overrides.

    Raises:
      ConfigError: no table, an unknown name, or not a positive number; one line.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"observation = {shown(given)}: expected a table of names and numbers")
    known = [entry.name for entry in fields(Scales)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"observation.{name}: unknown; known are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST <= value <= 1 / SMALLEST:
            raise ConfigError(f"observation.{name} = {shown(value)}: expected a number from 1e-06 to 1e+06")
    return Scales(**{name: float(value) for name, value in given.items()})


class View(NamedTuple):
    """What the columns are computed from."""

    config: Config
    unit: Scales
    state: State
    num_blueprints: int
    growth: Tensor  # [E]; parameters in seeds / parameters of the host


class Column(NamedTuple):
    """One entry of the table: one number, or several of one kind."""

    name: str
    unit: str
    scaling: str
    labels: Callable[[Config, Sequence[str]], list[str]]
    value: Callable[[View], Tensor]


def squash(x: Tensor) -> Tensor:
    """Map [0, inf] onto [0, 1]: x / (1 + x)."""
    return torch.where(torch.isinf(x), 1.0, x / (1 + x))


def one_hot(number: Tensor, count: int) -> Tensor:
    """1 at the number's place of ``count``, float32 [..., count]; zeros where it has none, which torch's refuses."""
    return (number.unsqueeze(-1) == torch.arange(count, device=number.device)).float()


def _one(config: Config, blueprints: Sequence[str]) -> list[str]:
    del config, blueprints
    return [""]


def _history(config: Config, blueprints: Sequence[str]) -> list[str]:
    del blueprints
    return [f"[-{age}]" for age in range(config.history, 0, -1)]


def _masked_history(view: View, values: Tensor) -> Tensor:
    length = view.config.history
    age = torch.arange(length, 0, -1, device=values.device)
    return torch.where(age <= view.state.signals.epochs_seen.unsqueeze(1), values, ABSENT)


def _scalar(name: str, unit: str, scaling: str, value: Callable[[View], Tensor]) -> Column:
    return Column(name, unit, scaling, _one, value)


def _accuracy_delta(view: View) -> Tensor:
    return view.state.signals.accuracy_delta / view.unit.accuracy_delta


def _class_spread(view: View) -> Tensor:
    return view.state.signals.class_accuracy.std(1, correction=0) / view.unit.class_spread


BASE: tuple[Column, ...] = (
    _scalar("epoch", "epochs", "/ horizon", lambda v: v.state.epoch / v.config.horizon),
    _scalar("seen", "1", "1 once validated", lambda v: (v.state.signals.epochs_seen > 0).float()),
    _scalar("train_loss", "nats", "x / (1 + x)", lambda v: squash(v.state.signals.train_loss)),
    _scalar("val_loss", "nats", "x / (1 + x)", lambda v: squash(v.state.signals.val_loss)),
    _scalar("best_loss", "nats", "x / (1 + x)", lambda v: squash(v.state.signals.best_loss)),
    _scalar("loss_delta", "nats", "tanh(gain x)", lambda v: torch.tanh(v.unit.loss_gain * v.state.signals.loss_delta)),
    _scalar("train_accuracy", "pp", "/ 100", lambda v: v.state.signals.train_accuracy / 100),
    _scalar("val_accuracy", "pp", "/ 100", lambda v: v.state.signals.val_accuracy / 100),
    _scalar("best_accuracy", "pp", "/ 100", lambda v: v.state.signals.best_accuracy / 100),
    _scalar(
        "accuracy_delta", "pp", "/ unit, clipped", lambda v: v.state.signals.accuracy_delta / v.unit.accuracy_delta
    ),
    _scalar("worst_class", "pp", "/ 100", lambda v: v.state.signals.class_accuracy.amin(1) / 100),
    _scalar("class_spread", "pp", "/ unit", _class_spread),
    _scalar("plateau", "epochs", "/ unit, clipped", lambda v: v.state.signals.plateau / v.unit.plateau),
    _scalar("stable", "1", "flag", lambda v: v.state.signals.stable.float()),
    _scalar("growth", "seed / host parameters", "x / (1 + x)", lambda v: squash(v.growth)),
    _scalar("occupied", "fraction of slots", "1", lambda v: _share(v.state.slots.blueprint >= 0)),
    _scalar("fossilized", "fraction of slots", "1", lambda v: _share(v.state.slots.stage == int(Stage.FOSSILIZED))),
    _scalar("gradient_norm", "L2", "x / (1 + x)", lambda v: squash(v.state.signals.gradient_norm)),
    _scalar("vanishing", "fraction of tensors", "1", lambda v: v.state.signals.vanishing),
    _scalar("exploding", "fraction of tensors", "1", lambda v: v.state.signals.exploding),
    _scalar("spikes", "epochs in a row", "/ unit, clipped", lambda v: v.state.governor.spikes / v.unit.spikes),
    _scalar("rollbacks", "count", "x / (1 + x)", lambda v: squash(v.state.governor.rollbacks.float())),
    Column(
        "loss_history",
        "nats",
        "x / (1 + x), -1 absent",
        _history,
        lambda v: _masked_history(v, squash(v.state.signals.loss_history)),
    ),
    Column(
        "accuracy_history",
        "pp",
        "/ 100, -1 absent",
        _history,
        lambda v: _masked_history(v, v.state.signals.accuracy_history / 100),
    ),
    Column(
        "decision",
        "1",
        "one-hot, zeros when absent; where decisions are remembered",
        lambda config, blueprints: decision_labels(config),
        lambda v: decision_flags(v.config, v.state.signals),
    ),
)
"""Columns of the environment."""


def _share(mask: Tensor) -> Tensor:
    return mask.float().sum(1) / max(mask.shape[1], 1)


def _slot(name: str, unit: str, scaling: str, value: Callable[[Slots], Tensor]) -> Column:
    return Column(name, unit, scaling, _one, lambda v: value(v.state.slots))


def _prospect_known(slots: Slots) -> Tensor:
    return ((slots.stage == int(Stage.TRAINING)) & (slots.evaluations > 0)).float()


def _prospect(view: View) -> Tensor:
    slots = view.state.slots
    return _prospect_known(slots) * slots.prospect / view.unit.contribution


def _scaled(name: str, unit: str, value: Callable[[View], Tensor]) -> Column:
    return Column(name, unit, "/ unit, clipped", _one, value)


PER_SLOT: tuple[Column, ...] = (
    _slot("alpha", "1", "1", lambda s: s.alpha),
    Column(
        "target",
        "1",
        "1, -1 not asked for; where decisions may ask",
        lambda config, blueprints: [""] * config.retarget,
        lambda v: v.state.slots.target.unsqueeze(2)[..., : int(v.config.retarget)],
    ),
    Column("age", "epochs", "/ horizon", _one, lambda v: v.state.slots.age / v.config.horizon),
    _scaled("stage_age", "epochs", lambda v: v.state.slots.stage_age / v.unit.stage_age),
    _slot("measured", "1", "flag", lambda s: s.measured.float()),
    _scaled("contribution", "pp", lambda v: v.state.slots.contribution / v.unit.contribution),
    _scaled("contribution_error", "pp", lambda v: v.state.slots.contribution_error / v.unit.contribution),
    _slot("prospect_known", "1", "flag", _prospect_known),
    _scaled("prospect", "pp", _prospect),
    _scaled("improvement", "pp", lambda v: v.state.slots.improvement / v.unit.contribution),
    _slot("gradient_norm", "L2", "x / (1 + x)", lambda s: squash(s.gradient_norm)),
    _slot("gradient_ratio", "seed / host norm", "x / (1 + x)", lambda s: squash(s.gradient_ratio)),
    _slot("healthy", "1", "flag", lambda s: s.healthy.float()),
    _slot("in_snapshot", "1", "flag", lambda s: s.in_snapshot.float()),
    Column(
        "stage",
        "1",
        "one-hot",
        lambda config, blueprints: [f"={stage.name}" for stage in STAGES],
        lambda v: one_hot(v.state.slots.stage - 1, len(STAGES)),
    ),
    Column(
        "blueprint",
        "1",
        "one-hot, zeros when empty",
        lambda config, blueprints: [f"={name}" for name in blueprints],
        lambda v: one_hot(v.state.slots.blueprint, v.num_blueprints),
    ),
    Column(
        "blend",
        "1",
        "one-hot, zeros when empty",
        lambda config, blueprints: [f"={blend.name}" for blend in Blend],
        lambda v: one_hot(v.state.slots.blend, len(Blend)),
    ),
)
"""Columns of every slot, slot after slot."""


CONTEXT: dict[str, Column] = {
    "host_lr": _scalar("context.host_lr", "factor", "x / (1 + x)", lambda v: squash(v.state.context.host_lr)),
    "price": _scalar("context.price", "factor", "x / (1 + x)", lambda v: squash(v.state.context.price)),
    "data_share": _scalar("context.data_share", "fraction of samples", "1", lambda v: v.state.context.data_share),
}
"""Columns of what an environment was given that others were not, where a task's environments differ in it."""


def column_names(config: Config, blueprints: Sequence[str], context: Sequence[str] = ()) -> list[str]:
    """Names of all O columns, in order: the environment's, its context's, then those of slot 0, slot 1, ...

    Args:
      config: history, slots.
      blueprints: their names.
      context: names of ``CONTEXT`` that are seen.
    """
    names = [column.name + label for column in BASE for label in column.labels(config, blueprints)]
    names += [CONTEXT[name].name for name in context]
    each = [column.name + label for column in PER_SLOT for label in column.labels(config, blueprints)]
    return names + [f"slot{slot}.{name}" for slot in range(config.num_slots) for name in each]


def observe(
    config: Config,
    state: State,
    growth: Tensor,
    num_blueprints: int,
    scales: Scales = STANDARD,
    context: Sequence[str] = (),
) -> Tensor:
    """What a policy sees.

    Args:
      config: horizon, history, slots.
      state: [E].
      growth: [E]; parameters in seeds divided by parameters of the host.
      num_blueprints: K.
      scales: units of the columns that have one of their own.
      context: names of ``CONTEXT`` that are seen.

    Returns:
      float32 [E, O] in [-1, 1], always finite; O and the order are those of ``column_names``.
    """
    view = View(config, scales, state, num_blueprints, growth)
    base = [column.value(view) for column in (*BASE, *(CONTEXT[name] for name in context))]
    each = [column.value(view) for column in PER_SLOT]
    parts = [value if value.dim() == 2 else value.unsqueeze(1) for value in base]
    rows = torch.cat([value if value.dim() == 3 else value.unsqueeze(2) for value in each], dim=2)
    observation = torch.cat([part.float() for part in [*parts, rows.flatten(1)]], dim=1)
    return observation.nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1)
