"""Columns of the last decisions, where an environment remembers them: what was done, in which slot, and refusals."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.leyline.actions import OPTIONAL_OPS, Op
from esper.leyline.config import Config
from esper.leyline.state import Signals

REFUSED = re.compile(r"decision\[-(\d+)\]\.refused")
"""The last column of a decision."""


def _ops(config: Config) -> list[Op]:
    """Operations that decisions may have, by number without a gap."""
    return [op for op in Op if op not in OPTIONAL_OPS or config.retarget]


def decision_labels(config: Config) -> list[str]:
    """Labels of the columns, the oldest decision first; none where none is remembered."""
    each = [*(f"={op.name}" for op in _ops(config)), *(f".slot{slot}" for slot in range(config.num_slots)), ".refused"]
    return [f"[-{age}]{label}" for age in range(config.decision_history, 0, -1) for label in each]


def decision_flags(config: Config, signals: Signals) -> Tensor:
    """Values of the columns, float32 [E, *]: 0 or 1; all 0 of a decision that was not taken yet."""
    if not config.decision_history:
        return signals.val_loss.new_zeros(signals.val_loss.shape[0], 0)
    op, slot, refused = signals.decisions.unbind(2)
    flags = [F.one_hot(op + 1, len(_ops(config)) + 1)[..., 1:], F.one_hot(slot + 1, config.num_slots + 1)[..., 1:]]
    return torch.cat((*flags, refused.clamp(min=0).unsqueeze(2)), 2).flatten(1).float()


def decisions_seen(columns: Sequence[str]) -> int:
    """How many decisions are among the columns of an observation, by their names."""
    return max((int(found[1]) for name in columns if (found := REFUSED.fullmatch(name))), default=0)
