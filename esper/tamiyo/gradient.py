"""The policy that grows what a derivative points to."""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.leyline.actions import Blend, Codec, Op
from esper.leyline.decisions import Reason
from esper.leyline.state import State
from esper.tamiyo.policies import Account, Decision, Policy, PolicyInput
from esper.tamiyo.scripted import finish

Promise = Callable[[State, int], Tensor]
"""(state, index of a germination) -> [E]: how promising it is, higher is better; row i by environment i alone."""


def gradient_policy(codec: Codec, promise: Promise, blend: Blend = Blend.SIGMOID) -> Policy:
    """Grow what is most promising wherever there is room: fossilize what may be, else advance, else germinate.

    Args:
      codec: actions.
      promise: of every germination, such as ``esper.tolaria.slopes.birth_norms``.
      blend: how to blend in; where no germination with it is on offer, nothing is grown.

    Returns:
      a policy without memory or chance: the same state gives the same action. Ties go to the lower index; what is not
      finite is not grown. Its confidence in a germination is the promise's share of all that may be germinated.
    """
    finishing = finish(codec)
    offered = [i for i, a in enumerate(codec.actions) if a.op is Op.GERMINATE and a.blend == int(blend)]

    def act(memory: None, seen: PolicyInput) -> tuple[None, Decision]:
        action = finishing(seen.mask)
        sure, reason = torch.ones(action.shape, device=action.device), torch.full_like(action, int(Reason.SCRIPT))
        free = codec.op[action] == int(Op.WAIT)
        open_ = seen.mask[:, offered] & free.unsqueeze(1)
        if bool(open_.any()):
            columns = [
                promise(seen.state, index) if bool(some) else seen.state.slots.alpha.new_zeros(free.shape)
                for index, some in zip(offered, open_.any(0), strict=True)
            ]
            scores = torch.stack(columns, dim=1)
            sound = open_ & torch.isfinite(scores)
            best = torch.where(sound, scores, -torch.inf).argmax(1)
            share = torch.where(sound, scores, 0.0).amax(1) / torch.where(sound, scores, 0.0).sum(1).clamp(min=1e-30)
            action = torch.where(sound.any(1), torch.tensor(offered, device=best.device)[best], action)
            sure = torch.where(sound.any(1), share.float(), sure)
            reason = torch.where(sound.any(1), int(Reason.STEEPEST), reason)
        return memory, Decision(action, account=Account(sure, reason))

    return Policy("gradient", lambda num_envs: None, act)
