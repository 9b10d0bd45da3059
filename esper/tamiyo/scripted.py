"""Scripted policies: fixed preferences over the actions that are legal."""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.leyline.actions import Blend, Codec, Op

MaskPolicy = Callable[[Tensor], Tensor]
"""Mask of legal actions, bool [E, A] -> action, int64 [E]."""


def preference(scores: Tensor) -> MaskPolicy:
    """The policy that takes the legal action of highest score.

    Args:
      scores: [A], on the masks' device; ties go to the lower index.

    Returns:
      a policy; it never acts illegally, because WAIT is always legal.
    """

    def act(mask: Tensor) -> Tensor:
        return torch.where(mask, scores, -torch.inf).argmax(1)

    return act


def wait(codec: Codec) -> MaskPolicy:
    """Never grow: the static host."""
    return preference(torch.where(codec.op == int(Op.WAIT), 1.0, 0.0))


def grow(codec: Codec, blueprint: str, blend: Blend = Blend.SIGMOID) -> MaskPolicy:
    """Grow one kind of seed wherever there is room: fossilize what may be, else advance, else germinate.

    Args:
      codec: actions.
      blueprint: name of the seed to grow.
      blend: how to blend it in.

    Raises:
      ValueError: the codec has no such seed.
    """
    names = codec.blueprint_names
    kind = names.index(blueprint) if blueprint in names else -1
    chosen = (codec.op == int(Op.GERMINATE)) & (codec.blueprint == kind) & (codec.blend == int(blend))
    if not bool(chosen.any()):
        raise ValueError(f"grow blueprint {blueprint!r}, blend {blend.name}: expected one of {', '.join(names)}")
    return preference(torch.where(chosen, 0.5, _finishing(codec)))


def finish(codec: Codec) -> MaskPolicy:
    """Bring to its end what grows already: fossilize what may be, else advance, else wait."""
    return preference(_finishing(codec))


def _finishing(codec: Codec) -> Tensor:
    """Scores [A] of ``finish``; what it never does is below 0."""
    order = {Op.WAIT: 0.0, Op.ADVANCE: 1.0, Op.FOSSILIZE: 2.0}
    return codec.op.new_tensor([order.get(action.op, -1.0) for action in codec.actions], dtype=torch.float32)
