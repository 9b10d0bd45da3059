"""Validation of the thing itself: what was compiled is held against the eager form, and refused for its own reason.

Two numbers agree where they differ by no more than ``TOLERANCE`` times the larger of the eager number and the scale of
its tensor: the largest number of it, of outputs and losses 1 at the least, of gradients ``LEAST``; so inputs a hundred
times as large are allowed a hundred times the difference where the outputs grow with them. Rounding also decides on
which side of a relu's edge a number falls, and a derivative jumps there. So where two numbers do not agree, the eager
form is asked again at numbers within ``NUDGE`` of the same ones, and in float64: what it then differs from itself is
allowed as well, in the second case ``ROUNDING`` times the most in the same tensor: norms of zeros, one behind another,
make a gradient that is 0 a thousandth by rounding alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.tezzeret.stages.bounds import Bounds, check_leak, check_time
from esper.tezzeret.stages.forms import BlueprintForm, Subject, Trained, eager_form
from esper.tezzeret.stages.inputs import BATCHES, DRAWS, NETWORKS, DrawnBatch, Numbers, batch_of, goal_of, numbers_of
from esper.tezzeret.stages.refusal import ArtefactRefused, require
from esper.utils import rng

__all__ = ["TOLERANCE", "ArtefactRefused", "validate"]

TOLERANCE = 1e-5
"""Relative and absolute."""

LEAST = 0.1
"""The scale of gradients at the least: cross-entropies have gradients of about 1, and rounding is of that."""

NUDGE, NUDGES = 1e-6, 8
"""Relative size of a change that rounding might have made, and how many are tried."""

ROUNDING = 8.0
"""Times the eager form's own rounding error."""

ROWS = 3
"""Rows that must not depend on each other."""


class Setting(NamedTuple):
    """What is held against what.

    Attributes:
      form: what was compiled.
      reference: the eager form.
      subject: the blueprint and its sites.
    """

    form: BlueprintForm
    reference: BlueprintForm
    subject: Subject


def validate(
    form: BlueprintForm,
    subject: Subject,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    bounds: Bounds | None = None,
) -> dict[str, float]:
    """Hold a form against the eager one.

    On batches of 1, 16 and 32 of four kinds of numbers: shape, finiteness, values, losses, new buffers and gradients;
    on one of them independence of rows; the identity bound; that gradients flow wherever they do in the eager form; at
    most ``bounds.slower`` times the eager form's time, and no more than ``bounds.leak`` bytes that stay.

    Args:
      form: what was compiled.
      subject: what it was compiled from.
      dtype, device: where it runs; by default float32 on the CPU.
      bounds: of time and memory; None: those of every artefact.

    Returns:
      the largest difference of outputs and of gradients, in units of what is allowed; the ratio of times; bytes that
      stayed.

    Raises:
      ArtefactRefused: the first thing that is wrong.
    """
    place, bounds = device or torch.device("cpu"), bounds or Bounds()
    setting = Setting(form, eager_form(subject), subject)
    numbers = numbers_of(subject, NETWORKS, dtype, place)
    found = {"outputs": 0.0, "gradients": 0.0}
    try:
        for batch in _batches(subject, numbers):
            for name, value in _compare(setting, numbers, batch).items():
                found[name] = max(found[name], value)
        _check_rows(setting, dtype, place)
        _check_identity(setting, dtype, place)
        found["slower"] = check_time(form, setting.reference, subject, numbers, bounds)
        found["leak"] = check_leak(form, subject, numbers, bounds)
    except (ArtefactRefused, MemoryError):
        raise
    except ConfigError as error:
        raise ArtefactRefused("failing", str(error), "results") from error
    return found


def _batches(subject: Subject, numbers: Numbers) -> Iterator[DrawnBatch]:
    for samples in BATCHES:
        for kind in DRAWS:
            yield batch_of(subject, kind, samples, numbers.params.shape[0], numbers.params)


def _compare(setting: Setting, numbers: Numbers, batch: DrawnBatch) -> dict[str, float]:
    """Outputs and gradients on one batch."""
    form, reference, subject = setting
    row = (numbers.params, numbers.buffers, batch.x)
    wanted, y = reference.infer(*row), form.infer(*row)
    shape = (*batch.x.shape[:2], *subject.target.shape)
    require(tuple(y.shape) == shape, "shape", f"output {list(y.shape)} ({batch.name})", f"{list(shape)}")
    require(y.dtype == wanted.dtype, "shape", f"output {y.dtype} ({batch.name})", f"{wanted.dtype}")
    _expect_finite("its eager form", wanted, batch, "output")
    _expect_finite("it", y, batch, "output")
    goal = goal_of(subject, wanted, batch.targets)
    gave, right = form.train(*row, goal), reference.train(*row, goal)
    for name, part in _parts(gave):
        _expect_finite("it", part, batch, name)
    _expect_flow(subject, gave, right, batch)
    nudged = _Nudged(setting, numbers, batch)
    outputs = nudged.differs("wrong values", "output", y, wanted, max(1.0, _most(wanted)))
    outputs = max(outputs, nudged.differs("wrong values", "losses", gave.losses, right.losses, 1.0))
    nudged.differs("wrong values", "new buffers", gave.buffers, right.buffers, max(1.0, _most(right.buffers)))
    found = nudged.differs("wrong gradients", "gradient of params", gave.params, right.params, _scale(right.params))
    if right.inputs is not None:
        require(gave.inputs is not None, "blocked gradient", f"none of the input ({batch.name})", "one")
        assert gave.inputs is not None
        scale = _scale(right.inputs)
        found = max(found, nudged.differs("wrong gradients", "gradient of inputs", gave.inputs, right.inputs, scale))
    return {"outputs": outputs, "gradients": found}


def _parts(trained: Trained) -> list[tuple[str, Tensor]]:
    named = (("losses", trained.losses), ("gradient of params", trained.params), ("new buffers", trained.buffers))
    return [*named, *([("gradient of inputs", trained.inputs)] if trained.inputs is not None else [])]


def _most(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _scale(grad: Tensor) -> float:
    return max(LEAST, _most(grad))


def _expect_finite(whose: str, values: Tensor, batch: DrawnBatch, what: str) -> None:
    sound = bool(torch.isfinite(values).all())
    require(sound, "not finite", f"{whose} gives {what} that are not finite ({batch.name})", "finite numbers")


def _expect_flow(subject: Subject, gave: Trained, right: Trained, batch: DrawnBatch) -> None:
    """A gradient wherever the eager form has one."""
    require(gave.params.shape == right.params.shape, "shape", f"gradient {list(gave.params.shape)}", "one of each")
    mine, wanted = (subject.layout.views(each.params) for each in (gave, right))
    flows = 10 * TOLERANCE * _scale(right.params)  # less is rounding
    dead = [name for name in wanted if not bool(mine[name].any()) and _most(wanted[name]) > flows]
    require(not dead, "blocked gradient", f"no gradient to {', '.join(dead)} ({batch.name})", "one, as in eager")
    if right.inputs is not None and gave.inputs is not None and _most(right.inputs) > 10 * TOLERANCE * LEAST:
        alive = bool(gave.inputs.any())
        require(alive, "blocked gradient", f"no gradient to the input ({batch.name})", "one, as in eager")


class _Nudged:
    """Differences, against the tolerance and, where it is not enough, against what rounding does to the eager form."""

    def __init__(self, setting: Setting, numbers: Numbers, batch: DrawnBatch) -> None:
        self.setting, self.numbers, self.batch = setting, numbers, batch
        self.known: list[dict[str, Tensor]] | None = None
        self.exact: dict[str, Tensor] = {}

    def differs(self, reason: str, what: str, found: Tensor, wanted: Tensor, scale: float) -> float:
        """The largest difference in units of what is allowed.

        Raises:
          ArtefactRefused: it is more than 1.
        """
        require(found.shape == wanted.shape, "shape", f"{what} {list(found.shape)}", f"{list(wanted.shape)}")
        if not wanted.numel():
            return 0.0
        allowed = TOLERANCE * torch.maximum(wanted.abs(), wanted.new_tensor(scale))
        off = (found - wanted).abs()
        worst = float((off / allowed).max())
        if worst > 1:
            allowed = allowed + self._spread(what, wanted)
            worst = float((off / allowed).max())
        name = self.batch.name
        most = float(off.max())
        require(worst <= 1, reason, f"{what} off by {most:.3g} where it is {_most(wanted):.3g} ({name})", "eager's")
        return worst

    def _spread(self, what: str, wanted: Tensor) -> Tensor:
        if self.known is None:
            self.known = [self._at(number) for number in range(NUDGES)]
            self.exact = self._asked(*(_doubled(each) for each in self._row()))
        off = (self.exact[what] - wanted).abs().to(wanted.dtype)
        sizes = [param.size for param in self.setting.subject.layout.params]
        parts = off.split(sizes, dim=1) if what == "gradient of params" else (off,)
        rounding = torch.cat([part.amax().expand_as(part) for part in parts], dim=1)
        return ROUNDING * rounding + torch.stack([(each[what] - wanted).abs() for each in self.known]).amax(0)

    def _row(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers.params, self.numbers.buffers, self.batch.x

    def _at(self, number: int) -> dict[str, Tensor]:
        params, buffers, x = self._row()
        key = rng.fold_in(rng.key(5), number)
        x = x if self.setting.subject.vocabulary else _moved(x, rng.fold_in(key, 1))
        return self._asked(_moved(params, rng.fold_in(key, 0)), buffers, x)

    def _asked(self, params: Tensor, buffers: Tensor, x: Tensor) -> dict[str, Tensor]:
        """What the eager form gives of numbers near the batch's, for the goal of the batch's own."""
        _, reference, subject = self.setting
        goal = goal_of(subject, reference.infer(*self._row()), self.batch.targets)
        goal = goal._replace(weight=goal.weight.to(params.dtype))
        trained = reference.train(params, buffers, x, goal)
        return {"output": reference.infer(params, buffers, x), **dict(_parts(trained))}


def _doubled(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _moved(values: Tensor, key: Tensor) -> Tensor:
    sign = rng.uniform(key, tuple(values.shape), -1.0, 1.0, values.dtype).to(values.device).sign()
    return values * (1 + NUDGE * sign)


def _check_rows(setting: Setting, dtype: torch.dtype, device: torch.device) -> None:
    """Rows alone give what they give together."""
    form, _, subject = setting
    numbers = numbers_of(subject, ROWS, dtype, device)
    batch = batch_of(subject, "normal", BATCHES[1], ROWS, numbers.params)
    row = (numbers.params, numbers.buffers, batch.x)
    y = form.infer(*row)
    goal = goal_of(subject, y, batch.targets)
    together = form.train(*row, goal)
    for number in range(ROWS):
        own = slice(number, number + 1)
        mine = (row[0][own], row[1][own], row[2][own])
        alone = form.train(*mine, goal._replace(targets=goal.targets[own]))
        pairs = [("outputs", form.infer(*mine), y[own])]
        if not subject.blueprint.draws:  # whose keys are rows' own
            pairs += [("losses", alone.losses, together.losses[own]), ("gradients", alone.params, together.params[own])]
        for what, one, many in pairs:
            most = float((one - many).abs().max())
            near = most <= 10 * TOLERANCE * max(1.0, _most(many))
            require(near, "dependent rows", f"{what} of a row that differ by {most:.3g} when it is alone", "the same")


def _check_identity(setting: Setting, dtype: torch.dtype, device: torch.device) -> None:
    """A fresh seed is near the identity, or near 0 between two points."""
    form, _, subject = setting
    numbers = numbers_of(subject, NETWORKS, dtype, device)
    x = batch_of(subject, "normal", BATCHES[1], NETWORKS, numbers.params).x
    x = x if subject.vocabulary else x.abs()
    y = form.infer(numbers.fresh, numbers.buffers, x)
    distance = _most(y if subject.is_bypass else y - x)
    bound = subject.blueprint.identity_bound + TOLERANCE
    what = "|y|" if subject.is_bypass else "|y - x|"
    require(distance <= bound, "identity bound", f"{what} = {distance:.3g} at initialisation", f"<= {bound:.3g}")
