"""Validation of the thing itself: what was compiled is held against the eager form, and refused for its own reason.

How far numbers may be apart, and why: ``esper.tezzeret.stages.accuracy``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.tezzeret.stages.accuracy import TOLERANCE, Reference, Results, results_of
from esper.tezzeret.stages.bounds import Bounds, check_leak, check_time
from esper.tezzeret.stages.forms import BlueprintForm, Subject, eager_form
from esper.tezzeret.stages.inputs import BATCHES, DRAWS, NETWORKS, DrawnBatch, Numbers, batch_of, goal_of, numbers_of
from esper.tezzeret.stages.refusal import ArtefactRefused, require

__all__ = ["TOLERANCE", "ArtefactRefused", "validate"]

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
    """Outputs and gradients on one batch, in units of what is allowed."""
    form, eager, subject = setting
    row = (numbers.params, numbers.buffers, batch.x)
    reference = Reference(eager, subject, row, lambda y: goal_of(subject, _finite(y, batch), batch.targets))
    gave = _given(form, subject, row, reference, batch)
    off = {"outputs": 0.0, "gradients": 0.0}
    for name in reference.results:
        part = "gradients" if name.startswith("gradient") else "outputs"
        worst = _expect_near(reference, batch, name, gave[name])
        off[part] = max(off[part], worst)
    return off


def _finite(y: Tensor, batch: DrawnBatch) -> Tensor:
    _expect_finite("its eager form", y, batch, "output")
    return y


def _given(
    form: BlueprintForm, subject: Subject, row: tuple[Tensor, Tensor, Tensor], reference: Reference, batch: DrawnBatch
) -> Results:
    """What a form gives, of the right names, shapes and types, and finite."""
    gave = results_of(form, subject, row, reference.goal)
    for name, wanted in reference.results.items():
        require(name in gave, "blocked gradient", f"no {name} ({batch.name})", "one, as in eager")
        for found, right in ((list(gave[name].shape), list(wanted.shape)), (gave[name].dtype, wanted.dtype)):
            require(found == right, "shape", f"{name} {found} ({batch.name})", f"{right}")
        _expect_finite("it", gave[name], batch, name)
    return gave


def _most(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _expect_finite(whose: str, values: Tensor, batch: DrawnBatch, what: str) -> None:
    sound = bool(torch.isfinite(values).all())
    require(sound, "not finite", f"{whose} gives {what} that are not finite ({batch.name})", "finite numbers")


def _expect_near(reference: Reference, batch: DrawnBatch, name: str, found: Tensor) -> float:
    """How far a result is off, in units of what is allowed."""
    worst, wanted = reference.off(name, found), reference.results[name]
    if worst <= 1:
        return worst
    is_gradient = name.startswith("gradient")
    if is_gradient and not bool(found.any()):
        raise ArtefactRefused("blocked gradient", f"no {name} ({batch.name})", "one, as in eager")
    most, reason = _most(found - wanted), "wrong gradients" if is_gradient else "wrong values"
    what = f"{name} off by {most:.3g} where it is {_most(wanted):.3g} ({batch.name}), {worst:.3g} times what is allowed"
    raise ArtefactRefused(reason, what, "eager's")


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
