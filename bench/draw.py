"""Drawing a workload: an Esper state in which half of all slots are active, and the same as plain numbers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import esper
from bench.workload import Layout, NetworkSpec, RateHypers, Workload
from esper.engine import Engine
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.seeding import draw_seeds, place_seeds
from esper.kasmina.slot import Slot
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation, Precision, SampleOrder
from esper.leyline.stages import ACTIVE, ISOLATED, Stage, is_in
from esper.leyline.state import State
from esper.runtime.tasks import chars, digits, digits_v1
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


def chars_v1() -> esper.Task:
    """The characters as they were first, for comparisons of speed: three slots behind the embeddings, Adam."""
    task = chars()
    settings = {"slots": (0, 0, 0), "host_lr": 0.02, "seed_lr": 0.005, "isolation": Isolation.STRAIGHT_THROUGH}
    return task._replace(blueprints=TOKEN_BLUEPRINTS, settings=task.settings | settings)


def digits_now() -> esper.Task:
    """The preset as it is, but for the rates: at its own, rounding grows in a sixth of the networks until float32 and
    float64 part, whoever computes.
    """
    task = digits()
    return task._replace(settings=task.settings | {"host_lr": 0.01, "seed_lr": 0.01})


SHAPES = {"digits": digits_v1, "cifar": cifar, "digits-now": digits_now, "chars": chars_v1}
"""By the names of cases: "digits-now" is the preset as it is, the bypasses beside its host included."""


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
            state.seeds.params[kind[:, number] == blueprint, _columns(slot, blueprint)].numpy()
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
    structure, host, chosen = engine.structure, engine.structure.host, engine.config
    if chosen.host_optimizer != chosen.seed_optimizer:
        raise ValueError(f"{config.shape}: {chosen.host_optimizer} and {chosen.seed_optimizer}; expected one optimizer")
    plain = ("host_lr", "seed_lr", "momentum", "host_clip", "seed_clip", "alpha_target")
    fields = {name: name for name in (*plain, "adam_beta1", "adam_beta2", "adam_epsilon")}
    fields |= {f"{role}_decay": f"{role}_weight_decay" for role in ("host", "seed")}
    return NetworkSpec(
        name=config.shape,
        precision=config.precision,
        seed=config.seed,
        shared=config.shared,
        input_shape=host.input_shape,
        num_classes=host.num_outputs,
        channels=tuple(site.channels for site in host.sites.values()),
        slots=tuple(slot.target - 1 for slot in structure.slots),
        sources=tuple(slot.source - 1 for slot in structure.slots),
        isolation=chosen.isolation.value,
        optimizer=chosen.host_optimizer,
        blueprints=tuple(blueprint.name for blueprint in structure.blueprints),
        numbers=RateHypers(**{name: _exact(engine.hypers.get(source)) for name, source in fields.items()}),
        host_layouts=tuple(_layout(block.layout) for block in host.blocks),
        seed_layouts=tuple(tuple(_layout(each) if each else () for each in slot.layouts) for slot in structure.slots),
        host_flops=tuple(block.flops for block in host.blocks),
    )


def _columns(slot: Slot, blueprint: int) -> slice:
    """Columns of the seed arena that a blueprint uses in a slot; none where it does not fit."""
    return slot.blueprint_columns(blueprint) if blueprint in slot.offers else slice(0)


def _exact(value: Tensor) -> float:
    """A hyperparameter as a number; one that differs between environments has none."""
    return float(value.item())


def _layout(layout: Any) -> Layout:
    return tuple((param.name, param.shape) for param in layout.params)
