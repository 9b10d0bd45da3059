"""Units: what a network is made of, each as one function of tensors: a block, a group of seeds, a gate, a blend.

A unit takes a tuple of tensors and returns (value, aux). How it is called is a matter of the backend: as it stands, or
with the function that pulls a gradient back through it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional as F

from esper.kasmina import gate
from esper.kasmina.layout import Param, Params
from esper.kasmina.objectives import Objective
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure

Pull = Callable[[Tensor], dict[int, Tensor]]
"""Gradient of a unit's value -> gradients of its arguments, by their place."""


class Unit(NamedTuple):
    """A function of tensors.

    Attributes:
      name: units of one structure with equal names are equal functions.
      run: arguments -> (value, aux).
      varies: whether the number of rows, dimension 0 of all arguments, changes from call to call.
    """

    name: tuple[Any, ...]
    run: Callable[..., tuple[Any, Any]]
    varies: bool = True


Call = Callable[[Unit, tuple[Tensor, ...], tuple[int, ...]], tuple[Any, Any, Pull | None]]
"""(unit, arguments, places of those that have gradients) -> value, aux, pull."""


def plain(unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> tuple[Any, Any, None]:
    """Call a unit as it stands."""
    del wrt
    value, aux = unit.run(*arguments)
    return value, aux, None


def pulled(unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> tuple[Any, Any, Pull | None]:
    """Call a unit, and get the function that pulls a gradient back through it; aux has none."""
    if not wrt:
        return plain(unit, arguments, wrt)
    value, pull, aux = vjp(  # type: ignore[misc]
        _of(unit, arguments, wrt), *(arguments[place] for place in wrt), has_aux=True
    )

    def by_place(grad: Tensor) -> dict[int, Tensor]:
        return dict(zip(wrt, pull(grad), strict=True))

    return value, aux, by_place


def recomputed(unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> tuple[Any, Any, Pull | None]:
    """As ``pulled``; the unit is computed again for its gradient, so that its arguments alone are kept (Chen et al.
    2016).

    It does not use ``torch.utils.checkpoint``: that one hangs on hooks of saved tensors, which torch.func refuses.
    Here recomputing is a composition of functions, so it can be differentiated from outside as the rest can.
    """
    value, aux, _ = plain(unit, arguments, wrt)

    def by_place(grad: Tensor) -> dict[int, Tensor]:
        return dict(zip(wrt, pull_again(unit, wrt)(grad, *arguments), strict=True))

    return value, aux, by_place if wrt else None


def pull_again(unit: Unit, wrt: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """(gradient, *arguments) -> gradients of those in ``wrt``; the unit's value is computed again."""

    def pull(grad: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        _, back, _ = vjp(  # type: ignore[misc]
            _of(unit, arguments, wrt), *(arguments[place] for place in wrt), has_aux=True
        )
        found: tuple[Tensor, ...] = back(grad)
        return found

    return pull


def _of(unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The unit as a function of some of its arguments."""

    def run(*primals: Tensor) -> tuple[Tensor, Tensor]:
        values = list(arguments)
        for place, primal in zip(wrt, primals, strict=True):
            values[place] = primal
        return unit.run(*values)

    return run


def per_row(vector: Tensor, like: Tensor) -> Tensor:
    """View [n], [n, B] or [n, B, T] so that it broadcasts against features [n, B, ...]."""
    return vector.reshape(vector.shape + (1,) * (like.dim() - vector.dim()))


def _flat(params: Sequence[Param], named: Params, held: Tensor) -> Tensor:
    return torch.cat([named[param.name].flatten(1) for param in params], dim=1) if params else held


def _narrow(
    structure: Structure, run: Callable[..., tuple[Tensor, Tensor]], name: tuple[Any, ...]
) -> Callable[..., Any]:
    """A block or a seed between features of fewer bits; what knows nothing of those computes in the weights' type.

    What reads tokens has its weights rounded as a whole: nothing that it is given says which type its features have.
    """
    precision, is_wide = structure.config.precision, name in structure.wide
    if not precision.is_mixed:
        return run

    def narrowed(row: Tensor, x: Tensor, held: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not is_wide:
            row = row if x.is_floating_point() else row.to(precision.features)
        elif x.is_floating_point():
            x = x.to(row.dtype)
        y, new = run(row, x, held, key)
        return y.to(precision.features), new.to(held.dtype)

    return narrowed


def block_unit(structure: Structure, index: int, train: bool) -> Unit:
    """A host block: (rows [n, P_i], x, buffers [n, N_i], key if it draws) -> features, new buffers."""
    block = structure.host.blocks[index]
    reads, buffers = block.reads, block.buffer_layout

    def run(row: Tensor, x: Tensor, held: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not train:
            return block.infer(reads.views(row), buffers.views(held), x), held
        y, new = block.train(reads.views(row), buffers.views(held), x, key)
        return y, _flat(buffers.params, new, held)

    return Unit(("block", index, train), _narrow(structure, run, ("block", index)))


def seed_unit(structure: Structure, number: int, kind: int, train: bool) -> Unit:
    """Seeds of one blueprint: (rows [n, P_k], x, buffers [n, R], key if it draws) -> features, new buffers [n, R]."""
    slot, blueprint = structure.slots[number], structure.blueprints[kind]
    layout, buffers = slot.row(kind), slot.buffer_row(kind)
    padding = slot.buffer_width - buffers.size

    def run(row: Tensor, x: Tensor, held: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        named, before = layout.views(row), buffers.views(held[:, : buffers.size])
        if not train:
            return blueprint.infer(named, before, x), held
        s, new = blueprint.train(named, before, x, key)
        return s, F.pad(_flat(buffers.params, new, held[:, :0]), (0, padding))

    name = ("seed", slot.reads, slot.acts, slot.is_bypass, slot.buffer_width, kind, train)
    return Unit(name, _narrow(structure, run, ("seed", number, kind)))


def gate_unit(slot: Slot) -> Unit:
    """The gates of a slot: (rows [n, G], x) -> openings [n, B] or [n, B, T]."""
    opening, layout = gate.opening(slot.reads), slot.gate

    def run(row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return opening(layout.views(row), x), row[:, :0]

    return Unit(("gate", slot.reads), run)


def mix_unit(slot: Slot) -> Unit:
    """A slot's blend, ``mix``: (h, s, openings if it has gates, alpha [n], gated bool [n]) -> features."""
    is_bypass = slot.is_bypass

    def run(h: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        *grown, alpha, gated = rest
        return mix(is_bypass, alpha, gated, h, tuple(grown)), alpha[:0]

    return Unit(("mix", slot.acts, slot.is_bypass, bool(slot.gate.size)), run)


def loss_unit(objective: Objective) -> Unit:
    """The objective: (outputs [n, B, ..., C], targets [n, B, ...]) -> every network's mean loss [n], mean score [n]."""

    def run(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        score = objective.score(outputs, targets).flatten(1).mean(1)
        return objective.loss(outputs, targets).flatten(1).mean(1), score

    return Unit(("loss",), run)


def mix(is_bypass: bool, alpha: Tensor, gated: Tensor, h: Tensor, grown: tuple[Tensor, ...]) -> Tensor:
    """What the network sees of a slot: ``lerp(h, s, w)``, or of a bypass ``h + w s``.

    Args:
      is_bypass: which form.
      alpha: [n]; the weight w, times the gate's opening where ``gated`` [n] holds.
      gated: bool [n].
      h: [n, B, ...]; the features at the target.
      grown: the seeds' features s, and openings [n, B] or [n, B, T] of their gates.

    Returns:
      like h. Where alpha is 0 it is h, whatever the seed gives: a seed that is not finite is not seen before its time.
    """
    s, weight = grown[0], alpha
    if len(grown) == 2:
        opening, full = grown[1], per_row(alpha, grown[1])
        opening = torch.where((full == 0) & ~torch.isfinite(opening), 0.0, opening)
        weight = torch.where(per_row(gated, opening), full * opening, full)
    hidden = (per_row(alpha, s) == 0) & ~torch.isfinite(s)
    if is_bypass:
        return (h + per_row(weight, h) * torch.where(hidden, 0.0, s)).to(h.dtype)
    seen = torch.where(hidden, h, s)
    return torch.lerp(h.to(weight.dtype), seen.to(weight.dtype), per_row(weight, h)).to(h.dtype)
