"""The engine: what happens in one environment step, in order. The only place where all subsystems meet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.kasmina import arena, lifecycle, metrics
from esper.kasmina.network import Network, seed_sizes
from esper.kasmina.plan import make_plan
from esper.leyline.actions import Codec
from esper.leyline.config import Config
from esper.leyline.events import Transition
from esper.leyline.hypers import HyperParams
from esper.leyline.state import Bank, State, Vault
from esper.leyline.streams import Stream
from esper.tamiyo.interface import Interface
from esper.tamiyo.observation import column_names, observe
from esper.tolaria.data import Dataset
from esper.tolaria.evaluation import evaluate
from esper.tolaria.governor import govern, initial_governor
from esper.tolaria.optim import MOMENTS
from esper.tolaria.signals import initial_signals, update_signals
from esper.tolaria.training import train_epoch
from esper.utils import rng


def init(network: Network, data: Dataset, seed: int) -> State:
    """A fresh batch of environments.

    Args:
      network: structure.
      data: the task, already on its device and in its precision.
      seed: 0 <= seed < 2**64. Environment i draws the same numbers whatever E is.

    Returns:
      state, batch [E]: hosts drawn anew, every slot DORMANT, nothing seen, the vault holding this very state.
    """
    config, device = network.config, data.train_inputs.device
    dtype, batch = config.precision.dtype, [config.num_envs]
    run_key = rng.key(seed).to(device)
    key = rng.fold_in(run_key, int(Stream.ENVIRONMENT), torch.arange(config.num_envs, device=device))
    params, buffers = arena.init_host(network, key, dtype)
    zero = key.new_zeros(config.num_envs)
    host_moments = params.new_zeros(config.num_envs, MOMENTS[config.host_optimizer], params.shape[1])
    host = Bank(params=params, moments=host_moments, steps=zero.clone(), batch_size=batch)
    width = network.num_seed_params
    seeds = Bank(
        params=params.new_zeros(config.num_envs, width),
        moments=params.new_zeros(config.num_envs, MOMENTS[config.seed_optimizer], width),
        steps=key.new_zeros(config.num_envs, config.num_slots),
        batch_size=batch,
    )
    return State(
        key=key,
        order_key=rng.fold_in(run_key, int(Stream.ORDER)).repeat(config.num_envs, 1),
        rounds=zero.clone(),
        epoch=zero.clone(),
        host=host,
        buffers=buffers,
        slots=lifecycle.empty_slots(config.num_envs, config.num_slots, dtype, device),
        seeds=seeds,
        signals=initial_signals(config, data.num_classes, device),
        governor=initial_governor(config, device),
        vault=Vault(host=host.clone(), buffers=buffers.clone(), seeds=seeds.clone(), batch_size=batch),
        batch_size=batch,
    )


def step(
    network: Network, hypers: HyperParams, state: State, data: Dataset, action: Tensor
) -> tuple[State, Transition]:
    """One decision and one epoch, for every environment.

    Args:
      network: structure.
      hypers: numbers.
      state: [E].
      data: the task.
      action: int64 [E]; indices into ``network.codec``.

    Returns:
      the next state, and everything that happened. Laws: the input state keeps its bits; environments do not
      influence each other; the same arguments give the same bits. Making the plan is the one synchronisation.
    """
    accuracy = state.signals.val_accuracy
    slots, deed = lifecycle.apply_action(network, hypers, state.slots, action, accuracy)
    state = state.replace(slots=slots)

    plan = make_plan(network, slots)
    state = arena.sow(network, state, plan)
    state, epoch = train_epoch(network, hypers, state, plan, data)
    evaluation = evaluate(network, hypers, state, plan.census, data)

    slots = metrics.record(hypers, state.slots, epoch, evaluation)
    slots, life = lifecycle.tick(network, hypers, slots, evaluation.accuracy)
    state = state.replace(slots=slots, epoch=state.epoch + 1, rounds=state.rounds + 1)

    state, judgement = govern(network, hypers, state, plan, epoch, evaluation)
    signals = update_signals(hypers, state.signals, epoch, evaluation, keep=judgement.rolled_back)
    return state.replace(signals=signals), Transition(deed, epoch, evaluation, life, judgement)


def reset(network: Network, state: State, data: Dataset, fresh: Tensor, seed: int) -> State:
    """Start some environments anew.

    Args:
      network: structure.
      state: [E].
      data: the task.
      fresh: bool [E]; which.
      seed: of the new environments; environment i gets the numbers that ``init(seed)`` would give it.

    Returns:
      state. The others keep their bits. What belongs to the run (``order_key``, ``rounds``) goes on.
    """
    start = init(network, data, seed).replace(order_key=state.order_key, rounds=state.rounds)
    leaves = {
        name: torch.where(fresh.reshape(-1, *(1,) * (leaf.dim() - 1)), start.get(name), leaf)
        for name, leaf in state.items(include_nested=True, leaves_only=True)
    }
    renewed = state.copy()
    renewed.update(leaves)
    return renewed


@dataclass(frozen=True)
class Engine:
    """A task bound to a batch: the pure functions above with their static arguments filled in.

    Attributes:
      network: structure, codec and (compiled) units.
      hypers: numbers.
      data: the task on its device.
    """

    network: Network
    hypers: HyperParams
    data: Dataset

    @property
    def config(self) -> Config:
        """The run's structure."""
        return self.network.config

    @property
    def codec(self) -> Codec:
        """All actions."""
        return self.network.codec

    def init(self, seed: int) -> State:
        """A fresh batch of environments; see ``esper.engine.init``."""
        return init(self.network, self.data, seed)

    def step(self, state: State, action: Tensor) -> tuple[State, Transition]:
        """One decision and one epoch; see ``esper.engine.step``."""
        return step(self.network, self.hypers, state, self.data, action)

    def reset(self, state: State, fresh: Tensor, seed: int) -> State:
        """Start some environments anew; see ``esper.engine.reset``."""
        return reset(self.network, state, self.data, fresh, seed)

    def observe(self, state: State) -> Tensor:
        """What a policy sees, float32 [E, O]; see ``esper.tamiyo.observation``."""
        growth = seed_sizes(self.network, state.slots).sum(1) / self.network.host.num_params
        return observe(self.config, state, growth, len(self.network.blueprints))

    @property
    def interface(self) -> Interface:
        """What a policy sees and says here."""
        return Interface(tuple(self.columns), self.codec)

    @property
    def columns(self) -> list[str]:
        """Names of the observation's columns."""
        return column_names(self.config, self.codec.blueprint_names)

    def mask(self, state: State) -> Tensor:
        """Which actions are legal, bool [E, A]; exactly those that ``step`` would not refuse."""
        return lifecycle.refusals(self.network, self.hypers, state.slots)[0] == 0
