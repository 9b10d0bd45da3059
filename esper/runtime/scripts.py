"""Scripts: what to grow, where and when, decided beforehand and alike for every environment."""

from collections.abc import Iterator, Sequence

import torch

from esper.engine import Engine
from esper.kasmina.structure import Structure
from esper.leyline.actions import Blend, Op
from esper.runtime.task import Script
from esper.tamiyo import scripted
from esper.tamiyo.policies import Decision, Policy, PolicyInput, from_mask

WAIT = "wait"
"""Name of the policy that never grows."""


def every_script(
    structure: Structure, starts: Sequence[int], blends: Sequence[Blend | None] = (None,)
) -> Iterator[Script]:
    """Every blueprint in one slot, and in all that offer it if they are several, from each start on, by each blend."""
    for number, blueprint in enumerate(structure.blueprints):
        room = sum(number in slot.offers for slot in structure.slots)
        for slots in (1, 0)[room <= 1 :] if room else ():
            yield from (Script(blueprint.name, slots, start, blend) for start in starts for blend in blends)


def play(engine: Engine, script: Script) -> Policy:
    """The policy that follows a script; what it grew, it brings to its end.

    Raises:
      ValueError: no such seed can be germinated.
    """
    codec, slots = engine.codec, engine.structure.slots
    blends = engine.config.blends
    usual = Blend.SIGMOID if Blend.SIGMOID in blends else blends[0]
    blend = usual if script.blend is None else script.blend
    grow, finish = scripted.grow(codec, script.kind, blend), scripted.finish(codec)
    kind = codec.blueprint_names.index(script.kind)
    offers = [number for number, slot in enumerate(slots) if kind in slot.offers][: script.slots or None]
    barred = (codec.op == int(Op.GERMINATE)) & ~torch.isin(codec.slot, codec.slot.new_tensor(offers))

    def act(memory: None, seen: PolicyInput) -> tuple[None, Decision]:
        begun = seen.state.epoch >= script.start
        return memory, Decision(torch.where(begun, grow(seen.mask & ~barred), finish(seen.mask)))

    return Policy(script.name, lambda num_envs: None, act)


def waiting(engine: Engine) -> Policy:
    """The policy that never grows."""
    return from_mask(WAIT, scripted.wait(engine.codec))
