"""The loss of environments' networks as a function of their parameters, by the definition, for whoever looks around it.

Whatever backend runs them, it is the definition that is differentiated: no other gives derivatives.
"""

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.counterfactuals import no_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.environments import select
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.leyline.streams import Stream
from esper.nissa.loss_landscape import Loss, curvature, sharpness
from esper.nissa.profiles import Profile
from esper.tezzeret import eager
from esper.utils import rng

SAMPLES = 256
"""Validation samples that are looked at, the first ones, at most."""


def validation_loss(engine: Engine, state: State, count: int) -> tuple[Loss, Tensor]:
    """The validation loss as a function of all parameters.

    Args:
      engine: whose environments they are.
      state: [E].
      count: of the first n environments.

    Returns:
      the loss, [n, P + Q] -> [n], of hosts' parameters with those of the seed arena behind them; columns of the arena
      that hold no seed change nothing. And where the environments stand.
    """
    state = select(state, torch.arange(min(count, state.batch_size[0]), device=state.key.device))
    definition = eager.build(engine.structure, state.key.device)
    hypers = engine.hypers.apply(lambda number: number[: state.batch_size[0]] if number.dim() else number)
    plan, learners = definition.plan(take_table(state.slots), state.key.device), learners_of(state)
    samples = tuple(part[:SAMPLES] for part in engine.data.validation.samples)
    wanted, width = no_changes(engine.config.num_slots), learners.host.params.shape[1]

    def loss(params: Tensor) -> Tensor:
        host, seeds = params[:, :width], params[:, width:]
        held = learners._replace(host=learners.host._replace(params=host), seeds=learners.seeds._replace(params=seeds))
        found = definition.evaluate(hypers, plan, held, state.slots.alpha, samples, wanted)  # type: ignore[arg-type]
        return found.losses.mean(1)

    return loss, torch.cat((learners.host.params, learners.seeds.params), 1)


def landscape(engine: Engine, state: State, profile: Profile) -> dict[str, Tensor]:
    """What a profile asks of the loss around where the first environments stand: by name [n]."""
    loss, params = validation_loss(engine, state, profile.landscape)
    key, found = rng.fold_in(state.key[0], int(Stream.LANDSCAPE), state.epoch[0]), dict[str, Tensor]()
    directions, start = rng.split(key)
    if profile.samples:
        found["sharpness"] = sharpness(loss, params, directions, profile.samples, profile.scale)
    if profile.curvature:
        around = curvature(loss, params, start, profile.curvature)
        found |= {"curvature": around.eigenvalue, "curvature_residual": around.residual}
    return found
