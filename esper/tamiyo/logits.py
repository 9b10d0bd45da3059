"""Factored scores to flat logits: one ``Categorical(A)`` over a codec's actions whose log-probabilities factor.

A plain sum of all heads would start with nearly all mass on GERMINATE, which has most combinations. So the operation
is chosen first: ``log p(action) = log p(op | legal ops) + log p(arguments | op, legal arguments)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import NONE, TARGETS, Blend, Codec
from esper.tamiyo.amp import widened


class HeadLogits(NamedTuple):
    """Unnormalised preferences, any finite numbers; the heads of a policy. S and K are at least 1; N operations, those
    of ``Codec.ops``.

    The slot's scores differ by operation, so that culling a slot and germinating there can be told apart.
    """

    op: Tensor  # [..., N]; Op
    slot: Tensor  # [..., N, S]; Op, slot
    blueprint: Tensor  # [..., K]
    blend: Tensor  # [..., 4]; Blend
    target: Tensor | None = None  # [..., 5]; of TARGETS, where RETARGET is one of the operations


def num_slots(codec: Codec) -> int:
    """Slots S that the codec's actions name; 0 where WAIT is all there is."""
    return max(action.slot for action in codec.actions) + 1


def factored_logits(codec: Codec, scores: HeadLogits, mask: Tensor) -> Tensor:
    """Exact log-probabilities of all actions under a factored policy.

    Args:
      codec: actions, op-major.
      scores: preferences; their sums must stay within finfo.max / 8.
      mask: bool [..., A]; legal actions. An op is legal if any of its combinations is.

    Returns:
      [..., A] in the scores' dtype, float32 at the least. Laws: where a row has a legal action, the legal entries'
      exponentials sum to 1 (they are normalised: feeding them to a softmax changes nothing); illegal entries are
      finfo.min / 4, so every entry and every gradient is finite, also where whole ops are illegal; within an op, equal
      scores give equal probabilities.
    """
    return joint_logits(codec, scores.op, _argument_scores(codec, scores), mask)


def joint_logits(codec: Codec, op: Tensor, arguments: Tensor, mask: Tensor) -> Tensor:
    """The same from a score of every action's arguments taken together.

    Args:
      codec: actions, op-major.
      op: [..., N]; scores of operations, those of the codec at least.
      arguments: [..., A]; scores within an operation.
      mask: bool [..., A]; legal actions.

    Returns:
      [..., A] in the scores' dtype, float32 at the least; the laws of ``factored_logits``.
    """
    op, arguments = widened(op), widened(arguments)
    illegal = torch.finfo(op.dtype).min / 4
    sizes = [sum(action.op == each for action in codec.actions) for each in range(op.shape[-1])]
    groups = torch.where(mask, arguments, illegal).split(sizes, dim=-1)
    legal = torch.stack([group.any(-1) for group in mask.split(sizes, dim=-1)], dim=-1)
    log_op = torch.log_softmax(torch.where(legal, op, illegal), dim=-1)
    joint = [log_op[..., each, None] + torch.log_softmax(group, dim=-1) for each, group in enumerate(groups)]
    return torch.where(mask, torch.cat(joint, dim=-1), illegal)


def uniform_logits(codec: Codec, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities of drawing a legal op uniformly, then legal arguments uniformly; see ``factored_logits``."""
    zero = torch.zeros(mask.shape[:-1], dtype=dtype, device=mask.device).unsqueeze(-1)
    slots = max(num_slots(codec), 1)

    def alike(*shape: int) -> Tensor:
        return zero.reshape(*zero.shape[:-1], *(1 for _ in shape)).expand(*zero.shape[:-1], *shape)

    ops, kinds = len(codec.ops), max(len(codec.blueprint_names), 1)
    scores = HeadLogits(alike(ops), alike(ops, slots), alike(kinds), alike(len(Blend)), alike(len(TARGETS)))
    return factored_logits(codec, scores, mask)


def _argument_scores(codec: Codec, scores: HeadLogits) -> Tensor:
    """Sum of the scores of each action's arguments, [..., A]; 0 where it takes none."""
    op, slot, blueprint, blend = codec.op, codec.slot, codec.blueprint, codec.blend
    placed = torch.where(slot == NONE, NONE, op * scores.slot.shape[-1] + slot)
    own = _pick(scores.slot.flatten(-2), placed) + _pick(scores.blueprint, blueprint) + _pick(scores.blend, blend)
    return own if scores.target is None else own + _pick(scores.target, codec.target)


def _pick(scores: Tensor, index: Tensor) -> Tensor:
    """The scores at an index [A], 0 where it is NONE: [..., n] to [..., A]."""
    return torch.where(index == NONE, 0.0, widened(scores)[..., index.clamp(min=0)])
