"""The second opinion of the gates: one environment at a time, eagerly, in float64, without grouping, lanes or plans.

Training is autograd and ``torch.optim`` on one network; a counterfactual is a validation with an alpha set by hand.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from esper.engine import Engine
from esper.kasmina import arena, reference
from esper.kasmina.structure import Structure, build_network
from esper.leyline.actions import BLENDS, Blend
from esper.leyline.config import Config, Optimizer, Precision
from esper.leyline.hypers import HyperParams
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.leyline.state import Slots, State
from esper.tolaria import optim
from esper.tolaria.data import Dataset
from esper.tolaria.training import sample_indices


class Single(NamedTuple):
    """One environment on its own, in float64 on the CPU."""

    network: Network
    hypers: HyperParams
    data: Dataset
    state: State


def single(engine: Engine, state: State, env: int) -> Single:
    """Cut one environment out of a batch."""

    def cut(leaf: Tensor) -> Tensor:
        leaf = leaf.cpu()
        return leaf.double() if leaf.is_floating_point() else leaf

    config = Config(**(vars(engine.config) | {"num_envs": 1, "precision": Precision.FLOAT64}))
    network = build_network(config, engine.network.host, engine.network.blueprints, torch.device("cpu"))
    hypers = engine.hypers.apply(lambda leaf: cut(leaf if leaf.dim() == 0 else leaf[env]))
    row = state[env : env + 1].apply(cut)
    return Single(network, hypers, engine.data.to("cpu", torch.float64), row)


def _optimizer(
    kind: Optimizer, leaf: nn.Parameter, rate: Tensor, decay: Tensor, h: HyperParams
) -> torch.optim.Optimizer:
    lr, weight_decay = float(rate), float(decay)
    if kind is Optimizer.SGD:
        return torch.optim.SGD([leaf], lr=lr, momentum=float(h.momentum), weight_decay=weight_decay)
    betas, eps = (float(h.adam_beta1), float(h.adam_beta2)), float(h.adam_epsilon)
    return torch.optim.Adam([leaf], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def _trained(one: Single) -> list[tuple[nn.Parameter, torch.optim.Optimizer, float, slice | None]]:
    """What trains, each with its optimizer, clip and columns of the seed arena (None: the host)."""
    config, h, slots = one.network.config, one.hypers, one.state.slots
    host = nn.Parameter(one.state.host.params.clone())
    learners = [(host, _optimizer(config.host_optimizer, host, h.host_lr, h.host_weight_decay, h), float(h.host_clip))]
    columns: list[slice | None] = [None]
    for slot in range(config.num_slots):
        stage, kind, blend = (int(leaf[0, slot]) for leaf in (slots.stage, slots.blueprint, slots.blend))
        parts = [arena.blueprint_columns(one.network, slot, kind)] if Stage(stage) in ACTIVE else []
        if Stage(stage) in MERGED and BLENDS[Blend(blend)].gated:
            parts.append(arena.gate_columns(one.network, slot))
        for part in parts:
            leaf = nn.Parameter(one.state.seeds.params[:, part].clone())
            step = _optimizer(config.seed_optimizer, leaf, h.seed_lr, h.seed_weight_decay, h)
            learners.append((leaf, step, float(h.seed_clip)))
            columns.append(part)
    return [(*learner, part) for learner, part in zip(learners, columns, strict=True)]


def epoch_loss(engine: Engine, state: State, env: int) -> float:
    """Mean training loss of one environment over an epoch that starts at ``state``, nats.

    The optimizers start fresh, so the state's moments must be 0.
    """
    one = single(engine, state, env)
    network, config, data = one.network, one.network.config, one.data
    learners = _trained(one)
    indices = sample_indices(config, one.state, data.train_targets.shape[0]).reshape(config.steps_per_epoch, -1)
    total = 0.0
    for step, rows in enumerate(indices):
        host, arena_row = learners[0][0], one.state.seeds.params.clone()
        for leaf, _, _, columns in learners[1:]:
            assert columns is not None
            arena_row[:, columns] = leaf
        logits = reference.train_logits(
            network, one.state.slots, host, one.state.buffers, arena_row, data.train_inputs[rows].unsqueeze(0)
        )
        loss = F.cross_entropy(logits.flatten(0, -2), data.train_targets[rows].flatten())
        for leaf, _, _, _ in learners:
            leaf.grad = None
        loss.backward()
        factor = float(optim.schedule(one.hypers, one.state.epoch, step, config.steps_per_epoch, config.horizon))
        for leaf, optimizer, clip, _ in learners:
            if leaf.grad is not None:
                clip_grad_norm_([leaf], clip)
            _step(optimizer, factor)
        total += float(loss.detach())
    return total / config.steps_per_epoch


def _step(optimizer: torch.optim.Optimizer, factor: float) -> None:
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = rate * factor
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate


class Validation(NamedTuple):
    """One environment's validation."""

    loss: float  # nats
    accuracy: float  # pp
    effect: list[float]  # pp per slot; 0 where nothing is measured


def validate(engine: Engine, slots: Slots, state: State, env: int) -> Validation:
    """Validate one environment, and again with every active slot switched by hand.

    Args:
      engine: structure and data.
      slots: [E, S]; stages and alphas.
      state: [E]; parameters and buffers.
      env: which environment.
    """
    one = single(engine, state.replace(slots=slots), env)
    loss, accuracy = _score(one, one.state.slots)
    effect = []
    for slot in range(one.network.config.num_slots):
        stage = Stage(int(one.state.slots.stage[0, slot]))
        other = _score(one, switched(one, slot))[1] if stage in ACTIVE else accuracy
        effect.append(other - accuracy if stage is Stage.TRAINING else accuracy - other)
    return Validation(loss, accuracy, effect)


def switched(one: Single, slot: int) -> Slots:
    """The slots with one of them switched by hand: a seed in TRAINING to its target alpha, any other to 0."""
    own = one.state.slots
    alpha, stage = own.alpha.clone(), own.stage.clone()
    training = int(stage[0, slot]) == int(Stage.TRAINING)
    alpha[0, slot] = float(one.hypers.alpha_target) if training else 0.0
    if training:
        stage[0, slot] = int(Stage.FOSSILIZED)
    return own.replace(alpha=alpha, stage=stage)


def logits_of(one: Single, slots: Slots, inputs: Tensor) -> Tensor:
    """Logits in inference form: inputs [B, ...] -> [B, ..., C]."""
    network, h = one.network, inputs.unsqueeze(0)
    params = arena.split_stages(network, one.state.host.params)
    buffers = arena.split_buffers(network, one.state.buffers)
    with torch.no_grad():
        for index, infer in enumerate(network.units.infer):
            h = infer(params[index], buffers[index], h)
            for slot in network.slots_after(index):
                h = reference.through_slot(network, slot, slots, one.state.seeds.params, h)
    return h.squeeze(0)


def _score(one: Single, slots: Slots) -> tuple[float, float]:
    """Loss in nats and accuracy in pp of the whole validation set at once."""
    logits, targets = logits_of(one, slots, one.data.val_inputs).flatten(0, -2), one.data.val_targets.flatten()
    hits = (logits.argmax(-1) == targets).double().mean()
    return float(F.cross_entropy(logits, targets)), 100 * float(hits)
