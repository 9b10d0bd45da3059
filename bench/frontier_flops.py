"""FLOPs of training and of validating, counted from what blocks and blueprints say of themselves.

A multiply-add is two FLOPs; norms, activations, pooling and optimizers are not counted, as in
``torch.utils.flop_counter``. With F(x) the FLOPs of a forward pass of x for one sample, H the host, A the active seeds,
M those that are merged, T those in TRAINING, and B(t) all that the network's features pass behind t's slot (blocks, and
merged seeds):

| per sample | FLOPs                                  |                                                           |
|------------|----------------------------------------|-----------------------------------------------------------|
| forward    | F(H) + sum over A of F(s)              |                                                           |
| backward   | 2 (F(H) + sum over A of F(s))          | gradients of numbers and of what they read                |
| objective  | sum over T of 2 F(B(t))                | with the seeds' own objective: B(t) forward and backward  |
| validation | F(H) + sum over M of F(s)              | the network as it is,                                     |
|            | + sum over M of F(B(m))                | each merged seed off, the part in front of it being known |
|            | + sum over T of F(t) + F(B(t))         | each seed in TRAINING on                                  |

First layers are charged for the gradient of what they read, too, though nobody needs it: the usual rule of three times
the forward pass, for everybody alike. Which seeds are active, merged and in TRAINING is taken from every step's slots,
after its decision, before its clock.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina import lifecycle
from esper.kasmina.structure import Structure
from esper.leyline.actions import NONE, Op
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.leyline.state import Slots, State
from esper.nissa.trace import Trace

FLOPS = 2.0
"""Of a multiply-add."""

Row = tuple[tuple[int, int], ...]
"""Stage and blueprint of every slot of one environment."""


class Spent(NamedTuple):
    """FLOPs per environment, float64 [E] each; per sample, or of a whole run."""

    forward: Tensor
    backward: Tensor
    objective: Tensor
    validation: Tensor

    @property
    def training(self) -> Tensor:
        """All but validation."""
        return self.forward + self.backward + self.objective

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, trained: int, validated: int) -> "Spent":
        """Of so many samples."""
        forward, backward, objective = (part * trained for part in self[:3])
        return Spent(forward, backward, objective, self.validation * validated)


def nothing(num_envs: int) -> Spent:
    """No FLOPs."""
    return Spent(*torch.zeros(4, num_envs, dtype=torch.float64))


def host_flops(structure: Structure) -> float:
    """F(H)."""
    return FLOPS * sum(block.flops for block in structure.host.blocks)


def seed_flops(structure: Structure, slot: int, kind: int) -> float:
    """F(s) of a blueprint in a slot."""
    place = structure.slots[slot]
    return FLOPS * structure.blueprints[kind].flops(place.reads, place.acts)


def flops_behind(structure: Structure, slot: int, row: Row) -> float:
    """F(B(t)): blocks and merged seeds further on in the route than a slot."""
    numbers = [(place.is_slot, place.number) for place in structure.route]
    found = 0.0
    for is_slot, number in numbers[numbers.index((True, slot)) + 1 :]:
        if not is_slot:
            found += FLOPS * structure.host.blocks[number].flops
        elif row[number][0] in MERGED:
            found += seed_flops(structure, number, row[number][1])
    return found


def row_flops(structure: Structure, row: Row) -> tuple[float, float, float, float]:
    """Forward, backward, objective and validation of one environment, per sample."""
    forward = validation = host_flops(structure)
    objective = 0.0
    for slot, (stage, kind) in enumerate(row):
        if stage not in ACTIVE:
            continue
        own, behind = seed_flops(structure, slot, kind), flops_behind(structure, slot, row)
        forward, validation = forward + own, validation + own + behind
        if stage == Stage.TRAINING and structure.config.isolation is Isolation.OBJECTIVE:
            objective += 2 * behind
    return forward, 2 * forward, objective, validation


def slots_flops(structure: Structure, slots: Slots) -> Spent:
    """Per sample and environment, as the table above says."""
    return stages_flops(structure, slots.stage, slots.blueprint)


def stages_flops(structure: Structure, stages: Tensor, kinds: Tensor) -> Spent:
    """Likewise of stages and blueprints of slots, int [n, S] each; n numbers a part."""
    pairs = zip(stages.tolist(), kinds.tolist(), strict=True)
    rows = [tuple(zip(*pair, strict=True)) for pair in pairs]
    known = {row: row_flops(structure, row) for row in set(rows)}
    return Spent(*torch.tensor([known[row] for row in rows], dtype=torch.float64).unbind(1))


def step_flops(engine: Engine, state: State, action: Tensor) -> Spent:
    """FLOPs of the environment step that ``engine.step(state, action)`` is.

    Args:
      engine: whose steps, samples per step and validation samples.
      state: [E]; before the step.
      action: int64 [E].
    """
    accuracy = state.signals.val_accuracy
    slots, _ = lifecycle.apply_action(engine.structure, engine.hypers, state.slots, action, accuracy)
    # a seed is GERMINATED only until the clock has ticked, so it takes no part in its first step
    trained = engine.config.steps_per_epoch * engine.config.batch_size
    return slots_flops(engine.structure, slots).times(trained, engine.data.validation.size)


def trace_flops(engine: Engine, trace: Trace) -> Spent:
    """FLOPs of an episode [E], from its trace: what ``step_flops`` of its steps adds up to."""
    slots, before = trace.during.shape[2], torch.full_like(trace.blueprint[:1], NONE)
    kinds = torch.cat((before, trace.blueprint[:-1]))
    sown = torch.isin(trace.op, trace.op.new_tensor([int(Op.GERMINATE), int(Op.CHANGE_BLUEPRINT)]))
    chosen = (sown & (trace.slot >= 0)).unsqueeze(2) & (trace.slot.unsqueeze(2) == torch.arange(slots))
    kinds = torch.where(chosen, trace.kind.unsqueeze(2), kinds)
    found = stages_flops(engine.structure, trace.during.flatten(0, 1), kinds.flatten(0, 1))
    trained = engine.config.steps_per_epoch * engine.config.batch_size
    whole = found.times(trained, engine.data.validation.size)
    return Spent(*(part.unflatten(0, trace.during.shape[:2]).sum(0) for part in whole))
