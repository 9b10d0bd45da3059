"""Drawing a workload: an Esper state in which half of all slots are active, and the same as plain numbers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import esper
from bench.workload import Layout, NetworkSpec, SgdHypers, Workload
from esper.engine import Engine
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.seeding import draw_seeds, place_seeds
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation, Precision, SampleOrder
from esper.leyline.stages import ACTIVE, ISOLATED, Stage, is_in
from esper.leyline.state import State
from esper.runtime.tasks import digits_v1
from esper.tolaria.synthetic import synthetic
from esper.tolaria.training import sample_indices

GATE_STEPS = 50
"""SGD steps over which contenders are compared, at least."""


def cifar() -> esper.Task:
    """The shape of CIFAR-10 with noisy prototypes for pictures: time does not depend on what they show.

    The rates are low, so that within the gate's steps rounding in float32 does not grow beyond its tolerance: at 0.02,
    torch.nn in float32 is 4e-4 away from torch.nn in float64 after 52 steps, at 0.002 it is 2e-5.
    """
    dataset = synthetic((3, 32, 32), num_train=1024, num_val=256)
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=3, base_channels=8)
    settings = {"slots": (0, 1, 2), "steps_per_epoch": 4, "host_lr": 0.002, "seed_lr": 0.002}
    settings["isolation"] = Isolation.STRAIGHT_THROUGH
    return esper.Task("cifar", host, CONV_BLUEPRINTS, dataset, settings)


SHAPES = {"digits": digits_v1, "cifar": cifar}


class WorkloadConfig(NamedTuple):
    """What to draw.

    Attributes:
      shape: key of ``SHAPES``.
      num_envs: environments E.
      precision: "float32" or "float64".
      shared: whether all environments see the same minibatches.
      active: share of the slots that hold an active seed; 0 = hosts alone.
      seed: of the draw.
    """

    shape: str
    num_envs: int
    precision: str = "float32"
    shared: bool = False
    active: float = 0.5
    seed: int = 0


def build_engine(config: WorkloadConfig, backend: str, device: str = "cpu", **overrides: Any) -> Engine:
    """The engine that a config asks for; ``overrides`` as in ``esper.make``."""
    order = SampleOrder.SHARED if config.shared else SampleOrder.INDEPENDENT
    settings = {"sample_order": order, "precision": Precision(config.precision)} | overrides
    return esper.make(SHAPES[config.shape](), config.num_envs, device, backend, **settings)


def draw_state(engine: Engine, config: WorkloadConfig) -> State:
    """A state with fresh seeds: every blueprint and every stage equally often, in shuffled slots."""
    kinds = tuple(range(len(engine.structure.blueprints)))
    seeds = draw_seeds(engine.structure, config.active, kinds, ACTIVE, (Blend.LINEAR,), config.seed)
    return place_seeds(engine.structure, engine.init(config.seed), seeds)


def at_epoch(state: State, epoch: int) -> State:
    """The state as if so many epochs were done, which decides the minibatches it draws."""
    return state.replace(epoch=torch.full_like(state.epoch, epoch), rounds=torch.full_like(state.rounds, epoch))


def export(engine: Engine, state: State, config: WorkloadConfig) -> Workload:
    """An Esper state as plain numbers."""
    dataset, slots = engine.data, state.slots
    epochs = -(-GATE_STEPS // engine.config.steps_per_epoch)
    orders = [sample_indices(engine.config, at_epoch(state, e), dataset.train.size) for e in range(epochs)]
    indices = torch.stack(orders).unsqueeze(1) if config.shared else torch.stack(orders)
    kind = torch.where(is_in(slots.stage, ACTIVE), slots.blueprint, -1)
    seeds = tuple(
        tuple(
            state.seeds.params[kind[:, number] == blueprint, slot.blueprint_columns(blueprint)].numpy()
            for blueprint in range(len(engine.structure.blueprints))
        )
        for number, slot in enumerate(engine.structure.slots)
    )
    return Workload(
        structure=_structure(engine, config),
        train_inputs=dataset.train.inputs.numpy(),
        train_targets=dataset.train.targets.numpy(),
        val_inputs=dataset.validation.inputs.numpy(),
        val_targets=dataset.validation.targets.numpy(),
        indices=indices.numpy(),
        kind=kind.numpy(),
        training=is_in(slots.stage, (Stage.TRAINING,)).numpy(),
        isolated=is_in(slots.stage, ISOLATED).numpy(),
        alpha=slots.alpha.numpy(),
        host=state.host.params.numpy(),
        seeds=seeds,
    )


def _structure(engine: Engine, config: WorkloadConfig) -> NetworkSpec:
    structure, host = engine.structure, engine.structure.host
    fields = {name: name for name in ("host_lr", "seed_lr", "momentum", "host_clip", "seed_clip", "alpha_target")}
    fields |= {f"{role}_decay": f"{role}_weight_decay" for role in ("host", "seed")}
    return NetworkSpec(
        name=config.shape,
        precision=config.precision,
        seed=config.seed,
        shared=config.shared,
        input_shape=host.input_shape,
        num_classes=host.num_outputs,
        channels=tuple(site.channels for site in host.sites.values()),
        slots=engine.config.slots,
        blueprints=tuple(blueprint.name for blueprint in structure.blueprints),
        numbers=SgdHypers(**{name: _exact(engine.hypers.get(source)) for name, source in fields.items()}),
        host_layouts=tuple(_layout(block.layout) for block in host.blocks),
        seed_layouts=tuple(tuple(_layout(layout) for layout in slot.layouts) for slot in structure.slots),
        host_flops=tuple(block.flops for block in host.blocks),
    )


def _exact(value: Tensor) -> float:
    """A hyperparameter as a number; one that differs between environments has none."""
    return float(value.item())


def _layout(layout: Any) -> Layout:
    return tuple((param.name, param.shape) for param in layout.params)
