"""Dealing a workload: an Esper state in which half of all slots are active, and the same as plain numbers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import esper
from bench.workload import Layout, Numbers, Structure, Workload
from esper.engine import Engine
from esper.kasmina import arena
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.plan import make_plan
from esper.leyline.actions import Blend
from esper.leyline.config import Precision, SampleOrder
from esper.leyline.stages import ACTIVE, ISOLATED, Stage
from esper.leyline.state import State
from esper.runtime.tasks import digits
from esper.tolaria import data
from esper.tolaria.training import sample_indices
from esper.utils import rng

ALPHA = {Stage.TRAINING: 0.0, Stage.BLENDING: 0.5}
"""Alpha by stage; 1 in the others. It does not move during a step."""

GATE_STEPS = 50
"""SGD steps over which contenders are compared, at least."""


def cifar() -> esper.Task:
    """The shape of CIFAR-10 with noisy prototypes for pictures: time does not depend on what they show.

    The rates are low, so that within the gate's steps rounding in float32 does not grow beyond its tolerance: at 0.02,
    torch.nn in float32 is 4e-4 away from torch.nn in float64 after 52 steps, at 0.002 it is 2e-5.
    """
    dataset = data.synthetic((3, 32, 32), num_train=1024, num_val=256)
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=3, base_channels=8)
    settings = {"slots": (0, 1, 2), "steps_per_epoch": 4, "host_lr": 0.002, "seed_lr": 0.002}
    return esper.Task("cifar", host, CONV_BLUEPRINTS, dataset, settings)


SHAPES = {"digits": digits, "cifar": cifar}


class Deal(NamedTuple):
    """What to deal.

    Attributes:
      shape: key of ``SHAPES``.
      num_envs: environments E.
      precision: "float32" or "float64".
      shared: whether all environments see the same minibatches.
      active: share of the slots that hold an active seed; 0 = hosts alone.
      seed: which deal.
    """

    shape: str
    num_envs: int
    precision: str = "float32"
    shared: bool = False
    active: float = 0.5
    seed: int = 0


def build_engine(deal: Deal, compile: bool, **overrides: Any) -> Engine:
    """The engine that a deal asks for; ``overrides`` as in ``esper.make``."""
    order = SampleOrder.SHARED if deal.shared else SampleOrder.INDEPENDENT
    settings = {"sample_order": order, "precision": Precision(deal.precision)} | overrides
    return esper.make(SHAPES[deal.shape](), deal.num_envs, compile=compile, **settings)


def deal_state(engine: Engine, deal: Deal) -> State:
    """A state with freshly sown seeds: every pair of blueprint and stage equally often, in shuffled slots."""
    state = engine.init(deal.seed)
    shape = state.slots.stage.shape
    place = rng.permutation(rng.key(deal.seed), shape.numel()).reshape(shape)
    active = place < round(deal.active * shape.numel())
    kinds, stages = len(engine.network.blueprints), torch.tensor([int(stage) for stage in ACTIVE])
    slots = state.slots.replace(
        stage=torch.where(active, int(Stage.GERMINATED), state.slots.stage),
        blueprint=torch.where(active, place % kinds, state.slots.blueprint),
        blend=torch.where(active, int(Blend.LINEAR), state.slots.blend),
    )
    state = state.replace(slots=slots)
    state = arena.sow(engine.network, state, make_plan(engine.network, slots))
    stage = torch.where(active, stages[place % len(stages)], slots.stage)
    alpha = torch.tensor([ALPHA.get(each, 1.0) for each in ACTIVE], dtype=slots.alpha.dtype)[place % len(stages)]
    return state.replace(slots=slots.replace(stage=stage, alpha=torch.where(active, alpha, 0.0)))


def at_epoch(state: State, epoch: int) -> State:
    """The state as if so many epochs were done, which decides the minibatches it draws."""
    return state.replace(epoch=torch.full_like(state.epoch, epoch), rounds=torch.full_like(state.rounds, epoch))


def export(engine: Engine, state: State, deal: Deal) -> Workload:
    """An Esper state as plain numbers."""
    network, dataset, slots = engine.network, engine.data, state.slots
    epochs = -(-GATE_STEPS // engine.config.steps_per_epoch)
    samples = len(dataset.train_targets)
    indices = [sample_indices(engine.config, at_epoch(state, epoch), samples) for epoch in range(epochs)]
    active = torch.isin(slots.stage, torch.tensor([int(stage) for stage in ACTIVE]))
    kind = torch.where(active, slots.blueprint, -1)

    def group(slot: int, blueprint: int) -> Any:
        columns = arena.blueprint_columns(network, slot, blueprint)
        return state.seeds.params[kind[:, slot] == blueprint, columns].numpy()

    def member(stages: tuple[Stage, ...]) -> Any:
        return torch.isin(slots.stage, torch.tensor([int(stage) for stage in stages])).numpy()

    return Workload(
        structure=_structure(engine, deal),
        train_inputs=dataset.train_inputs.numpy(),
        train_targets=dataset.train_targets.numpy(),
        val_inputs=dataset.val_inputs.numpy(),
        val_targets=dataset.val_targets.numpy(),
        indices=torch.stack(indices).unsqueeze(1).numpy() if deal.shared else torch.stack(indices).numpy(),
        kind=kind.numpy(),
        training=member((Stage.TRAINING,)),
        isolated=member(ISOLATED),
        alpha=slots.alpha.numpy(),
        host=state.host.params.numpy(),
        seeds=tuple(
            tuple(group(slot, blueprint) for blueprint in range(len(network.blueprints)))
            for slot in range(len(network.sites))
        ),
    )


def _structure(engine: Engine, deal: Deal) -> Structure:
    network, host = engine.network, engine.network.host
    fields = {
        "host_lr": "host_lr",
        "seed_lr": "seed_lr",
        "host_decay": "host_weight_decay",
        "seed_decay": "seed_weight_decay",
    }
    fields |= {name: name for name in ("momentum", "host_clip", "seed_clip", "alpha_target")}
    return Structure(
        name=deal.shape,
        precision=deal.precision,
        seed=deal.seed,
        shared=deal.shared,
        input_shape=host.input_shape,
        num_classes=host.num_outputs,
        channels=tuple(site.channels for site in host.sites.values()),
        slots=engine.config.slots,
        blueprints=tuple(blueprint.name for blueprint in network.blueprints),
        numbers=Numbers(**{name: _exact(engine.hypers.get(source)) for name, source in fields.items()}),
        host_layouts=tuple(_layout(stage.layout) for stage in host.blocks),
        seed_layouts=tuple(tuple(_layout(layout) for layout in row) for row in network.layouts),
        host_flops=tuple(stage.flops for stage in host.blocks),
    )


def _exact(value: Tensor) -> float:
    """A hyperparameter as a number; one that differs between environments has none."""
    return float(value.item())


def _layout(layout: Any) -> Layout:
    return tuple((param.name, param.shape) for param in layout.params)
