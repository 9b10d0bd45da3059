"""Training once more, to be differentiated from outside: one environment after the other, by autograd, unrolled.

A gradient that stops at ONE level: the network is run twice. The first run is of the numbers themselves; the second is
of copies (``x * 1``), and whatever the life cycle holds constant in it is taken from the first. The inner gradient is
that of the copies, so it does not know what was taken; ``create_graph`` lets a derivative from outside through both.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from esper.kasmina.layout import Layout, Params
from esper.kasmina.slot import Slot
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import Structure
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation
from esper.leyline.learners import Learners
from esper.leyline.stages import Stage
from esper.tezzeret.batches import Batch

ACTIVE = (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED)


class TrainedRow(NamedTuple):
    """A host, a seed or a gate."""

    row: Tensor  # [1, P]
    moments: Tensor  # [1, M, P]
    steps: int


class Environment(NamedTuple):
    """One environment."""

    host: TrainedRow
    blocks: list[Tensor]  # buffers, [1, N_i]
    seeds: dict[int, TrainedRow]
    gates: dict[int, TrainedRow]
    held: dict[int, Tensor]  # buffers of seeds, [1, R]


class TrainingContext(NamedTuple):
    """What an environment is trained under."""

    structure: Structure
    numbers: dict[str, Tensor]  # hyperparameters, each []
    stages: list[int]
    kinds: list[int]
    gated: list[bool]
    alphas: Tensor  # [S]

    def active(self, slot: int) -> bool:
        """Whether a slot holds a seed that takes part."""
        return self.stages[slot] in ACTIVE


class RunParams(NamedTuple):
    """The numbers a run is of."""

    host: Tensor
    seeds: dict[int, Tensor]
    gates: dict[int, Tensor]


class RunRecord(NamedTuple):
    """What a run leaves."""

    h: Tensor
    reads: dict[int, Tensor]
    gives: dict[int, Tensor]
    blocks: list[Tensor]
    held: dict[int, Tensor]


def context_of(structure: Structure, hypers: Any, table: SlotTable, alphas: Tensor, env: int) -> TrainingContext:
    """The context of one environment."""
    numbers = {name: value if value.dim() == 0 else value[env] for name, value in hypers.items()}
    rows = (table.stage[env].tolist(), table.blueprint[env].tolist(), (table.blend[env] == int(Blend.GATED)).tolist())
    return TrainingContext(structure, numbers, *rows, alphas[env])


def _flat(layout: Layout, new: Params, held: Tensor) -> Tensor:
    return torch.cat([new[param.name].flatten(1) for param in layout.params], 1) if layout.params else held


def _block(structure: Structure, index: int, host: Tensor, held: Tensor, x: Tensor, train: bool) -> tuple[Any, Tensor]:
    block, rows = structure.host.blocks[index], host.split([b.layout.size for b in structure.host.blocks], 1)
    named = block.layout.views(rows[index])
    for tie in block.ties:
        named[tie.param.name] = structure.host.blocks[tie.block].layout.views(rows[tie.block])[tie.param.name]
    buffers = block.buffer_layout.views(held)
    if not train:
        return block.infer(named, buffers, x), held
    y, new = block.train(named, buffers, x, None)
    return y, _flat(block.buffer_layout, new, held)


def _seed(
    context: TrainingContext, number: int, row: Tensor, held: Tensor, x: Tensor, train: bool
) -> tuple[Tensor, Tensor]:
    kind, slot = context.kinds[number], context.structure.slots[number]
    blueprint, layout = context.structure.blueprints[kind], slot.buffer_row(kind)
    named, buffers = slot.row(kind).views(row), layout.views(held)
    if not train:
        return blueprint.infer(named, buffers, x), held
    s, new = blueprint.train(named, buffers, x, None)
    return s, _flat(layout, new, held)


def _opening(slot: Slot, row: Tensor, x: Tensor) -> Tensor:
    named = slot.gate.views(row)
    pooled = x.mean((-2, -1)) if x.dim() == 5 else x
    hidden = torch.relu(pooled @ named["hidden.weight"].mT + named["hidden.bias"])
    opening = torch.sigmoid(hidden @ named["out.weight"].mT + named["out.bias"])
    return opening.reshape(1, -1, *(1,) * (len(slot.acts.shape)))


def passage(
    context: TrainingContext,
    net: Environment,
    numbers: RunParams,
    inputs: Tensor,
    train: bool,
    fixed: RunRecord | None = None,
    own: int = -1,
) -> RunRecord:
    """The network, from the input to the outputs.

    Args:
      fixed: where constants come from; None: nothing is held constant.
      own: the slot whose seed in TRAINING is on; others in TRAINING are absent.
    """
    structure, h, points = context.structure, inputs, dict[int, Tensor]()
    seen = RunRecord(h, {}, {}, list(net.blocks), dict(net.held))
    for point in range(len(structure.host.blocks) + 1):
        if point:
            i = point - 1
            h, seen.blocks[i] = _block(structure, i, numbers.host, net.blocks[i], h, train)
        for number, slot in enumerate(structure.slots):
            if slot.target == point and context.active(number):
                h = _slot(context, net, numbers, number, points.get(slot.source, h), h, seen, train, fixed, own)
        points[point] = h
    return seen._replace(h=h)


def _slot(context, net, numbers, number, x, h, seen, train, fixed, own):
    """One slot with an active seed; what it reads and gives is noted."""
    slot, stage, isolation = context.structure.slots[number], context.stages[number], context.structure.config.isolation
    seen.reads[number] = x
    behind = stage in (Stage.TRAINING, Stage.BLENDING) and isolation is not Isolation.NONE
    read = fixed.reads[number] if fixed is not None and behind else x
    s, seen.held[number] = _seed(context, number, numbers.seeds[number], net.held[number], read, train)
    seen.gives[number] = s
    if stage == Stage.TRAINING and number != own:
        through = fixed is not None and isolation is not Isolation.OBJECTIVE
        return h + (s - fixed.gives[number]) if through else h
    weight = context.numbers["alpha_target"] if number == own else context.alphas[number]
    if context.gated[number]:
        weight = weight * _opening(slot, numbers.gates[number], read)
    return h + weight * s if slot.is_bypass else h + weight * (s - h)


def _loss(context: TrainingContext, outputs: Tensor, targets: Tensor) -> Tensor:
    return context.structure.objective.loss(outputs, targets).mean()


def _copy(value: Tensor) -> Tensor:
    found = value * 1
    return found if found.requires_grad else found.requires_grad_()


def step(context: TrainingContext, net: Environment, inputs: Tensor, targets: Tensor, cut: bool = False) -> Environment:
    """One minibatch [1, B, ...]; ``cut``: constants are detached, from every level."""
    active = [number for number in range(len(context.stages)) if context.active(number)]
    outer = RunParams(net.host.row, {n: net.seeds[n].row for n in active}, {n: net.gates[n].row for n in active})
    inner = RunParams(_copy(outer.host), *({n: _copy(row) for n, row in rows.items()} for rows in outer[1:]))
    fixed = passage(context, net, outer, inputs, True)
    fixed = tree_map(torch.Tensor.detach, fixed) if cut else fixed
    seen = passage(context, net, inner, inputs, True, fixed)
    total, isolation = _loss(context, seen.h, targets), context.structure.config.isolation
    for own in active:
        if isolation is Isolation.OBJECTIVE and context.stages[own] == Stage.TRAINING:
            mine = ({**rows, own: copies[own]} for rows, copies in zip(outer[1:], inner[1:], strict=True))
            end = passage(context, net, RunParams(outer.host, *mine), inputs, True, None, own)
            total = total + _loss(context, end.h, targets)
    leaves = [inner.host, *(inner.seeds[n] for n in active), *(inner.gates[n] for n in active)]
    host, *rest = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
    seeds, gates = dict(net.seeds), dict(net.gates)
    for n, of_seed, of_gate in zip(active, rest[: len(active)], rest[len(active) :], strict=True):
        seeds[n] = _moved(context, "seed", net.seeds[n], of_seed, context.structure.slots[n].row(context.kinds[n]))
        opens = context.stages[n] != Stage.TRAINING or isolation is Isolation.OBJECTIVE
        if context.gated[n] and opens:
            gates[n] = _moved(context, "seed", net.gates[n], of_gate, context.structure.slots[n].gate)
        gates[n] = gates[n]._replace(steps=seeds[n].steps)
    moved = _moved(context, "host", net.host, host, context.structure.host.layout)
    return Environment(moved, seen.blocks, seeds, gates, seen.held)


def _root(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())


def _moved(context: TrainingContext, who: str, old: TrainedRow, grad: Tensor, layout: Layout) -> TrainedRow:
    """Clip, then the optimizer of that name."""
    n, config = context.numbers, context.structure.config
    rate, decay, limit = n[f"{who}_lr"], n[f"{who}_weight_decay"], n[f"{who}_clip"]
    if (grad.detach().norm() + 1e-6) > limit:
        grad = grad * (limit / (grad.norm() + 1e-6))
    name = config.host_optimizer if who == "host" else config.seed_optimizer
    grad = grad if name == "adamw" else grad + decay * old.row
    if name == "sgd":
        speed = n["momentum"] * old.moments[:, 0] + grad
        return TrainedRow(old.row - rate * speed, speed.unsqueeze(1), old.steps + 1)
    mean = n["adam_beta1"] * old.moments[:, 0] + (1 - n["adam_beta1"]) * grad
    square = n["adam_beta2"] * old.moments[:, 1] + (1 - n["adam_beta2"]) * grad**2
    time, shrinks = old.steps + 1, [torch.full((p.size,), len(p.shape) > 1) for p in layout.params]
    start = old.row * torch.where(torch.cat(shrinks), 1 - rate * decay, 1.0) if name == "adamw" else old.row
    scale = _root(square / (1 - n["adam_beta2"] ** time)) + n["adam_epsilon"]
    row = start - rate * mean / (1 - n["adam_beta1"] ** time) / scale
    return TrainedRow(row, torch.stack((mean, square), 1), time)


def environment_of(context: TrainingContext, learners: Learners, env: int) -> Environment:
    """One environment's learners; of slots without a seed nothing."""
    structure, one = context.structure, slice(env, env + 1)
    sizes = [block.buffer_layout.size for block in structure.host.blocks]
    (params, moments, steps), held = learners.seeds, learners.seed_buffers
    seeds, gates, buffers = {}, {}, {}
    for number, slot in enumerate(structure.slots):
        if context.kinds[number] < 0:
            continue
        for columns, part in ((slot.blueprint_columns(context.kinds[number]), seeds), (slot.gate_columns, gates)):
            part[number] = TrainedRow(params[one, columns], moments[one, :, columns], int(steps[env, number]))
        size = slot.buffer_row(context.kinds[number]).size
        buffers[number] = held[one, slot.buffer_start : slot.buffer_start + size]
    host = TrainedRow(learners.host.params[one], learners.host.moments[one], int(learners.host.steps[env]))
    return Environment(host, list(learners.buffers[one].split(sizes, 1)), seeds, gates, buffers)


def validate(context: TrainingContext, net: Environment, samples: tuple[Tensor, Tensor]) -> Tensor:
    """Mean validation loss []; seeds in TRAINING are absent."""
    rows = [{n: part.row for n, part in table.items()} for table in (net.seeds, net.gates)]
    end = passage(context, net, RunParams(net.host.row, *rows), samples[0].unsqueeze(0), False)
    return _loss(context, end.h, samples[1].unsqueeze(0))


def take(batch: Batch, env: int) -> tuple[Tensor, Tensor]:
    """One environment's samples."""
    return batch.inputs[env : env + 1], batch.targets[env : env + 1]
