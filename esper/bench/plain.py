"""The second opinion of the gates: one environment by itself, in float64 on the CPU, with autograd and ``torch.optim``.

It calls the modules of hosts and blueprints, and nothing of what runs them: no groups, lanes or plans.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from esper.engine import Engine
from esper.kasmina import gate
from esper.kasmina.layout import Layout, Params
from esper.kasmina.structure import build_structure
from esper.leyline.actions import BLENDS, NONE, Blend
from esper.leyline.config import Isolation, Precision
from esper.leyline.stages import ACTIVE, ISOLATED, MERGED, Stage
from esper.leyline.state import State
from esper.leyline.streams import Stream
from esper.tezzeret.batches import Batch, batch_at
from esper.tolaria.training import draw_batches
from esper.utils import rng

Name = tuple[str, int]
"""``block`` and its number, or ``seed`` or ``gate`` and the slot's."""

Tensors = dict[Name, Params]

RULES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def _tensors(layout: Layout, row: Tensor) -> Params:
    return {name: nn.Parameter(part.clone()) for name, part in layout.views(row).items()}


class TrainedPart(NamedTuple):
    """A host, a seed or a gate with its optimizer."""

    params: list[Tensor]
    optimizer: torch.optim.Optimizer
    rate: float
    clip: float
    steps: int

    def step(self, factor: float) -> None:
        """Clip and apply what is in ``.grad``."""
        clip_grad_norm_(self.params, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()


class Single:
    """One environment of a batch.

    Attributes:
      tensors, held: parameters and buffers by name.
      learners: what trains.
      taken: steps of SGD so far.
    """

    def __init__(self, engine: Engine, state: State, env: int) -> None:
        def cut(leaf: Tensor) -> Tensor:
            return leaf.cpu().double() if leaf.is_floating_point() else leaf.cpu()

        source = engine.structure
        config = replace(engine.config, num_envs=1, precision=Precision.FLOAT64)
        shape = (source.host, source.blueprints, source.objective, torch.device("cpu"))
        self.structure, self.state = build_structure(config, *shape), state[env : env + 1].apply(cut)
        self.numbers = {name: float(leaf if leaf.dim() == 0 else leaf[env]) for name, leaf in engine.hypers.items()}
        self.data, slots = engine.data.to("cpu", torch.float64), self.state.slots
        self.stages = [Stage(number) for number in slots.stage[0].tolist()]
        self.kinds, self.alphas = slots.blueprint[0].tolist(), slots.alpha[0].tolist()
        self.gated = [blend != NONE and BLENDS[Blend(blend)].gated for blend in slots.blend[0].tolist()]
        self.tensors, self.held = self._read()
        self.learners, self.taken = self._trained_parts(), 0

    def _read(self) -> tuple[Tensors, Tensors]:
        tensors, held, (host, seeds) = {}, {}, (self.state.host.params, self.state.seeds.params)
        blocks = self.structure.host.blocks
        rows = host.split([block.layout.size for block in blocks], dim=1)
        buffers = self.state.buffers.split([block.buffer_layout.size for block in blocks], dim=1)
        for number, (block, row, kept) in enumerate(zip(blocks, rows, buffers, strict=True)):
            tensors["block", number] = _tensors(block.layout, row)
            held["block", number] = block.buffer_layout.views(kept)
        for number, slot in enumerate(self.structure.slots):
            if (kind := self.kinds[number]) != NONE:
                tensors["seed", number] = _tensors(slot.row(kind), seeds[:, slot.blueprint_columns(kind)])
                tensors["gate", number] = _tensors(slot.gate, seeds[:, slot.gate_columns])
                layout, kept = slot.buffer_row(kind), self.state.seed_buffers[:, slot.buffer_columns]
                held["seed", number] = layout.views(kept[:, : layout.size])
        return tensors, held

    def _trained_parts(self) -> list[TrainedPart]:
        config, steps = self.structure.config, self.state.seeds.steps[0].tolist()
        blocks = [self.tensors["block", number] for number in range(len(self.structure.host.blocks))]
        found = [self._trained_part("host", blocks, config.host_optimizer, int(self.state.host.steps))]
        for number, stage in enumerate(self.stages):
            opens = stage in MERGED or config.isolation is Isolation.OBJECTIVE
            names = ["seed", *(["gate"] if self.gated[number] and opens else [])] if stage in ACTIVE else []
            for name in names:
                found.append(
                    self._trained_part("seed", [self.tensors[name, number]], config.seed_optimizer, steps[number])
                )
        return found

    def _trained_part(self, role: str, parts: list[Params], rule: str, steps: int) -> TrainedPart:
        numbers = self.numbers
        params = [tensor for part in parts for tensor in part.values()]
        decay = numbers[f"{role}_weight_decay"]
        flat = [tensor for tensor in params if tensor.dim() < 3]  # with the environment's dimension: vectors, scalars
        groups = [{"params": [tensor for tensor in params if tensor.dim() > 2], "weight_decay": decay}]
        groups.append({"params": flat, "weight_decay": 0.0 if rule == "adamw" else decay})
        options: dict[str, Any] = {"momentum": numbers["momentum"]}
        if rule != "sgd":
            options = {"betas": (numbers["adam_beta1"], numbers["adam_beta2"]), "eps": numbers["adam_epsilon"]}
        made = RULES[rule](groups, lr=1.0, **options)
        return TrainedPart(params, made, numbers[f"{role}_lr"], numbers[f"{role}_clip"], steps)

    def outputs(
        self, x: Tensor, alphas: list[float], batch: Batch | None = None, alone: int | None = None
    ) -> tuple[Tensor, Tensors]:
        """What the network gives for x [1, B, ...], and its buffers thereafter.

        Args:
          x: inputs.
          alphas: of the slots.
          batch: the minibatch in training; None: inference.
          alone: the slot whose seed in TRAINING is on, in its own objective.
        """
        points, kept, h = list[Tensor](), dict(self.held), x
        for point in range(len(self.structure.host.blocks) + 1):
            h = self._block(point - 1, h, batch, kept) if point else h
            for number, slot in enumerate(self.structure.slots):
                if slot.target == point and self.stages[number] in ACTIVE:
                    seen = points[slot.source] if slot.is_bypass else h
                    h = self._slot(number, seen, h, alphas[number], batch, alone, kept)
            points.append(h)
        return h, kept

    def _block(self, number: int, x: Tensor, batch: Batch | None, kept: Tensors) -> Tensor:
        block, own, held = self.structure.host.blocks[number], self.tensors["block", number], kept["block", number]
        params = own | {tie.param.name: self.tensors["block", tie.block][tie.param.name] for tie in block.ties}
        if batch is None:
            return block.infer(params, held, x)
        y, kept["block", number] = block.train(params, held, x, _key(batch, Stream.BLOCK, number, block.draws))
        return y

    def _slot(
        self, number: int, seen: Tensor, h: Tensor, alpha: float, batch: Batch | None, alone: int | None, kept: Tensors
    ) -> Tensor:
        isolation, trains = self.structure.config.isolation, self.stages[number] is Stage.TRAINING
        behind = trains and batch is not None and alone != number
        if alpha == 0 and (batch is None or (behind and isolation is Isolation.OBJECTIVE)):
            return h
        slot, blueprint = self.structure.slots[number], self.structure.blueprints[self.kinds[number]]
        params, held = self.tensors["seed", number], kept["seed", number]
        if self.stages[number] in ISOLATED and isolation is not Isolation.NONE:
            seen = seen.detach()
        if batch is None:
            s = blueprint.infer(params, held, seen)
        else:
            key = _key(batch, Stream.SEED, number, blueprint.draws)
            s, kept["seed", number] = blueprint.train(params, held, seen, key)
        if behind:
            return h + (s - s.detach())
        weight = torch.full((1, 1), alpha, dtype=torch.float64)
        if self.gated[number]:
            weight = alpha * gate.opening(slot.reads)(self.tensors["gate", number], seen)
        weight = weight.reshape(weight.shape + (1,) * (h.dim() - weight.dim()))
        return h + weight * s if slot.is_bypass else h + weight * (s - h)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.structure.objective.loss(outputs, targets).mean()

    def learn(self, batch: Batch) -> float:
        """One step of SGD; the loss before it."""
        outputs, kept = self.outputs(batch.inputs, self.alphas, batch)
        loss = self._loss(outputs, batch.targets)
        loss.backward()
        for number, stage in enumerate(self.stages):
            if stage is Stage.TRAINING and self.structure.config.isolation is Isolation.OBJECTIVE:
                kept["seed", number] = self._own_objective(number, batch)
        with torch.no_grad():
            for learner in self.learners:
                learner.step(self._factor(learner.steps + self.taken))
        self.taken += 1
        self.held = {name: {key: leaf.detach() for key, leaf in part.items()} for name, part in kept.items()}
        return float(loss.detach())

    def _own_objective(self, number: int, batch: Batch) -> Params:
        """The gradient of a seed in TRAINING by the loss as if it were on; returns its buffers."""
        outputs, kept = self.outputs(batch.inputs, self.switched(number), batch, alone=number)
        own = [*self.tensors["seed", number].values()]
        own += self.tensors["gate", number].values() if self.gated[number] else []
        for tensor, grad in zip(own, torch.autograd.grad(self._loss(outputs, batch.targets), own), strict=True):
            tensor.grad = grad
        return kept["seed", number]

    def switched(self, slot: int) -> list[float]:
        """The alphas with one slot's changed: a seed in TRAINING to its target, any other to 0."""
        training = self.stages[slot] is Stage.TRAINING
        target = training * self.numbers["alpha_target"]
        return [target if number == slot else alpha for number, alpha in enumerate(self.alphas)]

    def _factor(self, taken: int) -> float:
        """Linear warm-up, then cosine decay to a floor, by the learner's own age in epochs."""
        config, warmup, floor = self.structure.config, self.numbers["warmup_epochs"], self.numbers["final_lr_fraction"]
        warm = min(1.0, (taken + 1) / config.steps_per_epoch / warmup) if warmup else 1.0
        done = min(1.0, taken / config.steps_per_epoch / config.horizon)
        return warm * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


def _key(batch: Batch, stream: Stream, number: int, draws: bool) -> Tensor | None:
    return rng.fold_in(batch.key, int(stream), number) if draws and batch.key is not None else None


def epoch_loss(engine: Engine, state: State, env: int) -> float:
    """Mean training loss of one environment over an epoch that starts at a state whose moments are 0."""
    one = Single(engine, state, env)
    batches = draw_batches(one.structure.config, one.state, one.data)
    return sum(one.learn(batch_at(one.structure, batches, step)) for step in range(batches.length)) / batches.length


class Validation(NamedTuple):
    """One environment's validation, sample by sample; of a sequence, the mean over its positions."""

    losses: Tensor  # [V]
    scores: Tensor  # [1 + S, V]; as it is, then with each slot switched (as it is where nothing is measured)


@torch.no_grad()
def validate(engine: Engine, state: State, env: int) -> Validation:
    """Validate one environment, and again with every active slot switched by hand."""
    one = Single(engine, state, env)
    measured = [slot for slot, stage in enumerate(one.stages) if stage in ACTIVE]
    targets, objective = one.data.validation.targets.unsqueeze(0), one.structure.objective

    def through(alphas: list[float]) -> Tensor:
        return one.outputs(one.data.validation.held.unsqueeze(0), alphas)[0]

    def per_sample(values: Tensor) -> Tensor:
        return values[0].reshape(values.shape[1], -1).mean(1)

    own = through(one.alphas)
    rows = [own, *(through(one.switched(slot)) if slot in measured else own for slot in range(len(one.stages)))]
    scores = torch.stack([per_sample(objective.score(row, targets)) for row in rows])
    return Validation(per_sample(objective.loss(own, targets)), scores)
