"""From windows of recorded episodes to rows that losses take: a trunk with memory runs once, heads look at its output.

A window is run from its first step on with an empty memory, whatever was before it, and one step beyond its last: what
is behind a step is the next one as the memory has it then, so state and successor are read off one pass. TorchRL's
losses then see rows "hidden, mask, action, and what followed", and nothing of sequences.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import set_recurrent_mode

from esper.simic.chunks import REMEMBERED
from esper.simic.offline.config import HORIZONS

HIDDEN = "_hidden"
"""What a trunk writes, and heads read."""


def along(trunk: TensorDictModuleBase, batch: TensorDictBase, width: int, keys: Sequence[str]) -> dict[str, Tensor]:
    """What a trunk makes of windows and of the step behind each, [B, T + 1, ...] by key.

    Args:
      trunk: "observation" and its memory to ``keys``.
      batch: windows [B, T]: "observation", and ("next", "observation").
      width: of the memory.
      keys: of what is wanted.

    Laws: each window begins with an empty memory, and its output depends on no other window; the output of a step
    depends on the window's steps up to it alone.
    """
    seen = torch.cat((batch["observation"][:, :1], batch["next", "observation"]), 1)
    begins = torch.zeros(*seen.shape[:2], 1, dtype=torch.bool)
    begins[:, 0] = True
    empty = seen.new_zeros(*seen.shape[:2], 1, width)
    given = TensorDict({"observation": seen, **dict.fromkeys(REMEMBERED, empty)}, batch_size=seen.shape[:2])
    with set_recurrent_mode(True):
        out = trunk(given.set("is_init", begins))
    return {key: out[key] for key in keys}


def rows_of(batch: TensorDictBase, found: dict[str, Tensor], horizon: str = HORIZONS[0]) -> TensorDictBase:
    """The steps of windows that are data, one after the other, [R].

    Args:
      batch: windows [B, T] of ``Episodes.window``.
      found: from ``along``.
      horizon: of ``HORIZONS``; "end": what is truncated counts as terminated.

    Returns:
      the keys of ``found``, "action_mask" and "action"; under "next" the keys of ``found`` a step later, "action_mask",
      "reward", "done" and "terminated", [R, 1] each.
    """
    valid, after = batch["valid"], batch["next"]
    ended = after["done"] if horizon == "end" else after["terminated"]
    following = {"action_mask": after["action_mask"], "reward": after["reward"], "done": after["done"]}
    following |= {"terminated": ended} | {key: value[:, 1:] for key, value in found.items()}
    steps = {"action_mask": batch["action_mask"], "action": batch["action"]}
    steps |= {key: value[:, :-1] for key, value in found.items()}
    picked = {key: value[valid] for key, value in steps.items()}
    ahead = TensorDict({key: value[valid] for key, value in following.items()}, [len(picked["action"])])
    return TensorDict({**picked, "next": ahead}, ahead.batch_size)


def with_hidden(
    rows: TensorDictBase, found: dict[str, Tensor], batch: TensorDictBase, *, ahead: bool
) -> TensorDictBase:
    """The same rows with another trunk's output, of the steps or, with ``ahead``, of what is behind them."""
    other = rows.copy()
    for key, value in found.items():
        place = ("next", key) if ahead else key
        other[place] = (value[:, 1:] if ahead else value[:, :-1])[batch["valid"]]
    return other


def expect_batch(batch: TensorDictBase) -> None:
    """Raise unless every decision of windows was a legal one.

    Raises:
      ValueError: an action outside its mask; the episode and the step are named.
    """
    action, mask = batch["action"], batch["action_mask"]
    inside = (action >= 0) & (action < mask.shape[-1])
    legal = inside & mask.gather(-1, action.clamp(0, mask.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    if bool(legal.all()):
        return
    place = tuple((~legal).nonzero()[0].tolist())
    episode, step = int(batch["episode"][place]), int(batch["step"][place])
    raise ValueError(f"episode {episode}, step {step}: action {int(action[place])} is outside its mask")
