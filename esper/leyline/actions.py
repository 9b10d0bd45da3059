"""Actions: factored in meaning, flat in representation.

A decision is an operation with its arguments (slot, blueprint, blend, target). The codec enumerates every combination
that can ever be legal, once; an action is an index into that list, so a policy is one ``Categorical(A)`` with an exact
mask.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1
"""Argument of an action that does not take it, and the blueprint, blend and target of an empty slot."""

TARGETS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights that RETARGET may ask for, by their number."""


class Op(IntEnum):
    """What a decision does."""

    WAIT = 0
    GERMINATE = 1
    ADVANCE = 2
    CULL = 3
    FOSSILIZE = 4
    CHANGE_BLUEPRINT = 5
    RETARGET = 6


OPTIONAL_OPS = (Op.RETARGET,)
"""Operations that an action space has only if it is asked for: they come last, so that without them it is what it was
before there were such.
"""


class Curve(IntEnum):
    """Shape of an alpha ramp."""

    LINEAR = 0
    SIGMOID = 1
    COSINE = 2


class Blend(IntEnum):
    """How a seed is blended in: an alpha curve, and whether a learned gate multiplies alpha."""

    LINEAR = 0
    SIGMOID = 1
    GATED = 2
    COSINE = 3


class BlendRule(NamedTuple):
    """What a blend means."""

    curve: Curve
    gated: bool


BLENDS: dict[Blend, BlendRule] = {
    Blend.LINEAR: BlendRule(Curve.LINEAR, False),
    Blend.SIGMOID: BlendRule(Curve.SIGMOID, False),
    Blend.GATED: BlendRule(Curve.LINEAR, True),
    Blend.COSINE: BlendRule(Curve.COSINE, False),
}


class Action(NamedTuple):
    """One decision in words: operation and arguments, ``NONE`` where the operation takes none."""

    op: Op
    slot: int = NONE
    blueprint: int = NONE
    blend: int = NONE
    target: int = NONE


class Codec(NamedTuple):
    """The list of all actions, with its columns as tensors.

    ``op, slot, blueprint, blend, target`` are int64 [A]; ``blueprint_names`` are for people. Index 0 is WAIT.
    """

    actions: tuple[Action, ...]
    op: Tensor
    slot: Tensor
    blueprint: Tensor
    blend: Tensor
    target: Tensor
    blueprint_names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of actions A."""
        return len(self.actions)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operations of this action space, by number without a gap."""
        return tuple(op for op in Op if op not in OPTIONAL_OPS or self.actions[-1].op >= op)

    def limited(self, ops: tuple[Op, ...]) -> "Codec":
        """The same without the optional operations that are not among these."""
        count = sum(action.op in ops or action.op not in OPTIONAL_OPS for action in self.actions)
        columns = {name: getattr(self, name)[:count] for name in COLUMNS}
        return self._replace(actions=self.actions[:count], **columns)

    def at(self, index: Tensor) -> "Codec":
        """The same with the columns of some actions, by int64 indices of any shape, in place of all."""
        return self._replace(**{name: getattr(self, name)[index] for name in COLUMNS})

    def to(self, device: torch.device | None) -> "Codec":
        """The same with its columns on a device."""
        columns = {name: getattr(self, name).to(device) for name in COLUMNS}
        return self._replace(**columns)

    def encode(self, action: Action) -> int:
        """Index of an action.

        Raises:
          ValueError: the combination is not in the codec.
        """
        try:
            return self.actions.index(action)
        except ValueError:
            raise ValueError(f"action {tuple(action)}: not one of the codec's {self.size} combinations") from None

    def decode(self, index: int) -> Action:
        """Action at an index.

        Raises:
          ValueError: the index is outside [0, A).
        """
        if not 0 <= index < self.size:
            raise ValueError(f"action index {index}: outside [0, {self.size})")
        return self.actions[index]

    def describe(self, index: int) -> str:
        """One line for people, such as ``GERMINATE slot 1 conv_light sigmoid``."""
        action = self.decode(index)
        words = [action.op.name]
        if action.slot != NONE:
            words.append(f"slot {action.slot}")
        if action.blueprint != NONE:
            words += [self.blueprint_names[action.blueprint], Blend(action.blend).name.lower()]
        if action.target != NONE:
            words.append(f"alpha {TARGETS[action.target]:g}")
        return " ".join(words)


COLUMNS = Action._fields
"""Names of a codec's columns."""


def build_codec(
    offers: tuple[tuple[int, ...], ...],
    blends: tuple[Blend, ...],
    blueprint_names: tuple[str, ...],
    retarget: bool = False,
) -> Codec:
    """Enumerate all actions.

    Args:
      offers: per slot, the blueprints (indices) known at its site.
      blends: the blends on offer.
      blueprint_names: K names.
      retarget: whether RETARGET is among them.

    Returns:
      the codec; op-major, then slot, blueprint, blend, target, each ascending. Laws: decode(encode(a)) == a,
      encode(decode(i)) == i, index 0 is WAIT.
    """
    actions = [Action(Op.WAIT)]
    ops = [op for op in Op if op not in (Op.WAIT, *(() if retarget else OPTIONAL_OPS))]
    for op in ops:
        for slot, known in enumerate(offers):
            if op in (Op.GERMINATE, Op.CHANGE_BLUEPRINT):
                actions += [Action(op, slot, blueprint, int(blend)) for blueprint in known for blend in sorted(blends)]
            elif op is Op.RETARGET:
                actions += [Action(op, slot, target=target) for target in range(len(TARGETS))]
            else:
                actions.append(Action(op, slot))
    columns = torch.tensor([tuple(map(int, action)) for action in actions], dtype=torch.int64)
    op_column, slot_column, blueprint_column, blend_column, target_column = columns.unbind(1)
    return Codec(tuple(actions), op_column, slot_column, blueprint_column, blend_column, target_column, blueprint_names)
