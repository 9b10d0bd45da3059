"""Factored scores to flat logits: one ``Categorical(A)`` over a codec's actions whose log-probabilities factor.

A plain sum of all heads would start with nearly all mass on GERMINATE, which has most combinations. So the operation
is chosen first: ``log p(action) = log p(op | legal ops) + log p(arguments | op, legal arguments)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import NONE, Codec, Op


class HeadLogits(NamedTuple):
    """Unnormalised preferences, any finite numbers; the heads of a policy. S and K are at least 1.

    The slot's scores differ by operation, so that culling a slot and germinating there can be told apart.
    """

    op: Tensor  # [..., 6]; Op
    slot: Tensor  # [..., 6, S]; Op, slot
    blueprint: Tensor  # [..., K]
    blend: Tensor  # [..., 4]; Blend


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
      [..., A] in the scores' dtype. Laws: where a row has a legal action, the legal entries' exponentials sum to 1
      (they are normalised: feeding them to a softmax changes nothing); illegal entries are finfo.min / 4, so every
      entry and every gradient is finite, also where whole ops are illegal; within an op, equal scores give equal
      probabilities.
    """
    illegal = torch.finfo(scores.op.dtype).min / 4
    sizes = [sum(action.op == op for action in codec.actions) for op in Op]
    arguments = torch.where(mask, _argument_scores(codec, scores), illegal).split(sizes, dim=-1)
    legal = torch.stack([group.any(-1) for group in mask.split(sizes, dim=-1)], dim=-1)
    log_op = torch.log_softmax(torch.where(legal, scores.op, illegal), dim=-1)
    joint = [log_op[..., op, None] + torch.log_softmax(group, dim=-1) for op, group in enumerate(arguments)]
    return torch.where(mask, torch.cat(joint, dim=-1), illegal)


def uniform_logits(codec: Codec, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities of drawing a legal op uniformly, then legal arguments uniformly; see ``factored_logits``."""
    zero = torch.zeros(mask.shape[:-1], dtype=dtype, device=mask.device).unsqueeze(-1)
    slots, kinds = max(num_slots(codec), 1), len(codec.blueprint_names)
    op = zero.expand(*zero.shape[:-1], len(Op))
    slot = zero.unsqueeze(-1).expand(*zero.shape[:-1], len(Op), slots)
    return factored_logits(codec, HeadLogits(op, slot, zero.expand(*zero.shape[:-1], max(kinds, 1)), op), mask)


def _argument_scores(codec: Codec, scores: HeadLogits) -> Tensor:
    """Sum of the scores of each action's arguments, [..., A]; 0 where it takes none."""
    op, slot, blueprint, blend = codec.op, codec.slot, codec.blueprint, codec.blend
    placed = torch.where(slot == NONE, NONE, op * scores.slot.shape[-1] + slot)
    return _pick(scores.slot.flatten(-2), placed) + _pick(scores.blueprint, blueprint) + _pick(scores.blend, blend)


def _pick(scores: Tensor, index: Tensor) -> Tensor:
    """The scores at an index [A], 0 where it is NONE: [..., n] to [..., A]."""
    return torch.where(index == NONE, 0.0, scores[..., index.clamp(min=0)])
