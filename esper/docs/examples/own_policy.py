"""A policy of one's own: it reads each environment's price and share of the samples, and picks the seed by them.

``python -m esper.docs.examples.own_policy`` plays it beside scripts that do the same everywhere, in the environments
of ``digits_varied``, which differ. The text with its figures is ``esper/docs/examples.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import Tensor

from esper.docs.examples.results import write_outcomes
from esper.engine import Engine
from esper.leyline.actions import Blend, Op
from esper.runtime.build import make
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.tasks import named
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params
from esper.tamiyo.policies import Decision, Policy, PolicyInput, from_mask
from esper.tamiyo.scripted import grow, wait
from esper.utils.settings import read_settings, setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class PolicyExampleSettings:
    """Play a policy of one's own beside fixed scripts, where environments differ."""

    num_envs: int = setting(64, "environments", low=6, high=65536)
    horizon: int = setting(25, "epochs", low=1, high=1000)
    seed: int = setting(1, "seed of the environments", low=0, high=2**31)


LATE = 12
"""Epoch from which on a seed is planted where there are few samples: until then the host learns what it can."""


def frugal(engine: Engine) -> Policy:
    """Where parameters are cheap, ``conv16x2``; where they are dear, ``conv4x2``; late, where samples are few.

    Once planted, a seed is advanced and made permanent as soon as that is legal.
    """
    codec = engine.codec
    names = codec.blueprint_names
    planting = (codec.op == int(Op.GERMINATE)) & (codec.blend == int(Blend.SIGMOID))

    def scores(kind: str) -> Tensor:
        """[A]: FOSSILIZE over ADVANCE over germinating this kind over WAIT; below WAIT whatever is never done."""
        order = {Op.WAIT: 0.0, Op.ADVANCE: 2.0, Op.FOSSILIZE: 3.0}
        ranks = codec.op.new_tensor([order.get(action.op, -1.0) for action in codec.actions], dtype=torch.float32)
        return torch.where(planting & (codec.blueprint == names.index(kind)), 1.0, ranks)

    large, small = scores("conv16x2"), scores("conv4x2")

    def act(memory: None, seen: PolicyInput) -> tuple[None, Decision]:
        cheap, few = seen.state.context.price < 1.0, seen.state.context.data_share < 0.5
        wanted = torch.where(cheap.unsqueeze(1), large, small)
        early = (few & (seen.state.epoch < LATE)).unsqueeze(1) & (codec.op == int(Op.GERMINATE))
        return memory, Decision(torch.where(seen.mask & ~early, wanted, -torch.inf).argmax(1))

    return Policy("by price and samples", lambda num_envs: None, act)


def run(settings: PolicyExampleSettings, out: TextIO | None = None) -> list[Outcome]:
    """Play everybody in the same environments and print what came of it.

    Args:
      settings: everything.
      out: where the table goes; None = standard output.

    Returns:
      outcomes: the policy first, then the scripts, then waiting.
    """
    out, task = output(out), named("digits_varied")
    engine = make(task, settings.num_envs, horizon=settings.horizon)
    params = build_reward_params(dict(task.rewards), engine.config, engine.data.train.inputs.device)
    scripts = [from_mask(f"grow {name}", grow(engine.codec, name)) for name in ("conv4x2", "conv8x2", "conv16x2")]
    policies = [frugal(engine), *scripts, from_mask("wait", wait(engine.codec))]
    outcomes = [rollout(engine, each, settings.seed, DEFAULT_REWARD, params)[1] for each in policies]
    write_outcomes(out, outcomes)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    words = sys.argv[1:] if arguments is None else arguments
    run(read_settings(PolicyExampleSettings, words, "python -m esper.docs.examples.own_policy"))


if __name__ == "__main__":
    main()
