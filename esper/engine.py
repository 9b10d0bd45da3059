"""The engine: what happens in one environment step, in order. The only place where all subsystems meet."""

from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from esper.kasmina import arena, lifecycle, metrics
from esper.kasmina.counterfactuals import list_effects
from esper.kasmina.graph import graph_of
from esper.kasmina.refusals import legal
from esper.kasmina.slot_table import take_table
from esper.kasmina.structure import Structure, seed_sizes
from esper.leyline.actions import Codec
from esper.leyline.config import Config
from esper.leyline.contexts import draw_context
from esper.leyline.events import Performance, Transition
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights, learners_of, parts, with_learners
from esper.leyline.state import Snapshot, State, lock
from esper.leyline.streams import Stream
from esper.nissa.public_operations import public
from esper.tamiyo.interface import Interface
from esper.tamiyo.observation import STANDARD, Scales, column_names, observe
from esper.tezzeret import modules
from esper.tezzeret.backend import Backend
from esper.tolaria.data import Dataset
from esper.tolaria.evaluation import evaluate, measure
from esper.tolaria.governor import govern, initial_governor
from esper.tolaria.signals import initial_signals, remember_decision, update_signals
from esper.tolaria.training import train_epoch
from esper.tolaria.variations import own_hypers
from esper.utils import rng


def init(structure: Structure, data: Dataset, seed: int, numbers: Tensor | None = None) -> State:
    """A fresh batch of environments.

    Args:
      structure: what the networks are.
      data: the task, already on its device and in its precision.
      seed: 0 <= seed < 2**64. Environment i draws the same numbers whatever E is.
      numbers: int64 [E]; the environments' numbers i; None: 0 to E - 1.

    Returns:
      state, batch [E]: hosts drawn anew, every slot DORMANT, nothing seen, the snapshot holding this very state.
    """
    config, device = structure.config, data.train.inputs.device
    if numbers is None:
        numbers = torch.arange(config.num_envs, device=device)
    count = numbers.shape[0]
    run_key = rng.key(seed).to(device)
    key = rng.fold_in(run_key, int(Stream.ENVIRONMENT), numbers.to(device))
    learners, zero = _fresh_learners(structure, key), key.new_zeros(count)
    state = State(
        key=key,
        order_key=rng.fold_in(run_key, int(Stream.ORDER)).repeat(count, 1),
        rounds=zero.clone(),
        epoch=zero.clone(),
        context=draw_context(data.variation, key, config.precision.dtype),
        slots=lifecycle.empty_slots(count, config.num_slots, config.precision.dtype, device),
        signals=initial_signals(config, count, data.num_classes, device),
        governor=initial_governor(config, count, device),
        snapshot=Snapshot(**parts(learners), batch_size=[count]).clone(),
        **parts(learners),
        batch_size=[count],
    )
    return lock(state)


def _fresh_learners(structure: Structure, key: Tensor) -> Learners:
    """Hosts drawn anew, and empty arenas for their seeds."""
    dtype, count = structure.config.precision.dtype, key.shape[0]
    params, buffers = arena.init_host(structure.host, key, dtype)
    seeds = params.new_zeros(count, structure.num_seed_params)
    steps = key.new_zeros(count, structure.config.num_slots)
    return Learners(
        host=Weights(params, structure.host_optimizer.init(params), key.new_zeros(count)),
        buffers=buffers,
        seeds=Weights(seeds, structure.seed_optimizer.init(seeds), steps),
        seed_buffers=params.new_zeros(count, structure.num_seed_buffers),
    )


def step(
    structure: Structure, backend: Backend, hypers: HyperParams, state: State, data: Dataset, action: Tensor
) -> tuple[State, Transition]:
    """One decision and one epoch, for every environment.

    Args:
      structure: what the networks are.
      backend: how they are run.
      hypers: numbers.
      state: [E].
      data: the task; its test part is not read.
      action: int64 [E]; indices into ``structure.codec``.

    Returns:
      the next state, and everything that happened. Laws: the input state keeps its bits; environments do not
      influence each other; the same arguments give the same bits.
    """
    hypers, accuracy = own_hypers(hypers, state.context, data.variation), state.signals.val_accuracy
    slots, result = lifecycle.apply_action(structure, hypers, state.slots, action, accuracy)
    state = state.replace(slots=slots)

    table = take_table(slots)
    lists = arena.list_seeds(structure, table), list_effects(table)
    plan, (fresh, places) = backend.plan_with(table, state.key.device, lists)
    learners = arena.write_seeds(structure, learners_of(state), state.key, state.epoch, fresh)
    state, epoch = train_epoch(structure.config, backend, hypers, with_learners(state, learners), plan, data)
    evaluation = evaluate(backend, hypers, state, table, plan, data, places)

    slots = metrics.record(hypers, state.slots, epoch, evaluation) if table.any_held else state.slots
    slots, life = lifecycle.tick(structure.config, hypers, slots, evaluation.accuracy)
    state = state.replace(slots=slots, epoch=state.epoch + 1, rounds=state.rounds + 1)

    state, judgement = govern(structure, hypers, state, table.any_held, epoch, evaluation)
    signals = update_signals(hypers, state.signals, epoch, evaluation, keep=judgement.rolled_back)
    signals = remember_decision(structure.config, signals, result)
    return lock(state.replace(signals=signals)), Transition(result, epoch, evaluation, life, judgement)


def reset(
    structure: Structure, state: State, data: Dataset, fresh: Tensor, seed: int, numbers: Tensor | None = None
) -> State:
    """Start some environments anew.

    Args:
      structure: what the networks are.
      state: [E].
      data: the task.
      fresh: bool [E]; which.
      seed: of the new environments; environment i gets the numbers that ``init(seed)`` would give it.
      numbers: int64 [E]; the environments' numbers i; None: 0 to E - 1.

    Returns:
      state. The others keep their bits. What belongs to the run (``order_key``, ``rounds``) goes on.
    """
    numbers = torch.arange(fresh.shape[0], device=fresh.device) if numbers is None else numbers
    start = init(structure, data, seed, numbers).replace(order_key=state.order_key, rounds=state.rounds)
    leaves = {
        name: torch.where(fresh.reshape(-1, *(1,) * (leaf.dim() - 1)), start.get(name), leaf)
        for name, leaf in state.items(include_nested=True, leaves_only=True)
    }
    renewed = state.copy()
    renewed.update(leaves)
    return lock(renewed)


def expect_rows(place: str, value: object, dtype: torch.dtype, count: int | None) -> None:
    """Raise ``ValueError``, one line, unless a value is a tensor [E] of a dtype; ``count`` None: of any E."""
    if isinstance(value, Tensor) and value.dtype == dtype and value.dim() == 1 and count in (None, len(value)):
        return
    found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    wanted = f"{dtype} [{'E' if count is None else count}]"
    raise ValueError(f"{place}: found {found}; expected a tensor {wanted}, one for each environment")


@dataclass(frozen=True, repr=False)
class Engine:
    """A task bound to a batch: the pure functions above with their static arguments filled in.

    States of any number of environments can be given, not only of ``config.num_envs``; see
    ``esper.leyline.environments``.

    Attributes:
      structure: what the networks are.
      backend: how they are run.
      hypers: numbers.
      data: the task on its device.
      scales: units of what a policy sees.
    """

    structure: Structure
    backend: Backend
    hypers: HyperParams
    data: Dataset
    scales: Scales = STANDARD

    def __repr__(self) -> str:
        return f"Engine({self.structure.host.name}, {self.config.num_envs} environments, {self.backend.name})"

    @public("engine.describe")
    def describe(self) -> tuple[str, ...]:
        """What runs where, a line each (see ``Backend.describe``); the last says what data there are."""
        return (*self.backend.describe(), self.data.describe())

    @property
    def config(self) -> Config:
        """The run's structure."""
        return self.structure.config

    @property
    def codec(self) -> Codec:
        """All actions."""
        return self.structure.codec

    @public("engine.init")
    def init(self, seed: int, numbers: Tensor | None = None) -> State:
        """A fresh batch of environments; see ``esper.engine.init``.

        Raises:
          ValueError: no such seed, or numbers that are no int64 tensor [E].
        """
        if numbers is not None:
            expect_rows("init: numbers", numbers, torch.int64, None)
        return init(self.structure, self.data, seed, numbers)

    @public("engine.step")
    def step(self, state: State, action: Tensor) -> tuple[State, Transition]:
        """One decision and one epoch; see ``esper.engine.step``.

        Raises:
          ValueError: an action that is no int64 tensor [E], or a state that does not fit. A number in it that is no
            action is refused with a code, as an illegal one is.
        """
        expect_rows("step: action", action, torch.int64, self._fit(state))
        return step(self.structure, self.backend, self.hypers, state, self.data, action)

    @public("engine.test")
    def test(self, state: State) -> Performance:
        """Loss and accuracy [E] on the test part, of every network as it stands: for reports, never for decisions."""
        self._fit(state)
        return measure(self.backend, self.hypers, state, self.data.test)

    @public("engine.network_of")
    def network_of(self, state: State, env: int) -> nn.Module:
        """What has grown in an environment: a module of plain PyTorch, on the state's device.

        Host, seeds that reach the output (blended or fossilized), their gates and weights. Outputs are those of the
        environment, and so is further training with the same optimizer: gradients stop where they do now, alphas stay
        as they are. Its class is made of source that imports torch alone; ``state_dict`` and ``torch.export`` take it.

        Args:
          state: [E].
          env: which, 0 <= env < E.

        Raises:
          ConfigError: a part that draws random numbers in its own way, or does what no graph can say.
          IndexError: no such environment.
        """
        self._size(state)
        return modules.network_of(self.structure, state, env)

    @public("engine.reset")
    def reset(self, state: State, fresh: Tensor, seed: int, numbers: Tensor | None = None) -> State:
        """Start some environments anew; see ``esper.engine.reset``.

        Raises:
          ValueError: ``fresh`` that is no bool tensor [E], or no such seed.
        """
        expect_rows("reset: fresh", fresh, torch.bool, self._size(state))
        return reset(self.structure, state, self.data, fresh, seed, numbers)

    @public("engine.observe")
    def observe(self, state: State) -> Tensor:
        """What a policy sees, float32 [E, O]; see ``esper.tamiyo.observation``."""
        self._size(state)
        growth = seed_sizes(self.structure, state.slots).sum(1) / self.structure.host.num_params
        seen = self.data.variation.seen
        return observe(self.config, state, growth, len(self.structure.blueprints), self.scales, seen)

    @property
    def interface(self) -> Interface:
        """What a policy sees and says here."""
        return Interface(tuple(self.columns), self.codec, partial(graph_of, self.structure))

    @property
    def columns(self) -> list[str]:
        """Names of the observation's columns."""
        return column_names(self.config, self.codec.blueprint_names, self.data.variation.seen)

    @public("engine.mask")
    def mask(self, state: State) -> Tensor:
        """Which actions are legal, bool [E, A]; exactly those that ``step`` would not refuse."""
        self._fit(state)
        return legal(self.structure, self.hypers, state.slots)

    @cached_property
    def _swept(self) -> tuple[str, int] | None:
        """A hyperparameter that has a value for every environment, and how many."""
        sizes = ((name, number.shape[0]) for name, number in self.hypers.items() if number.dim())
        return next(sizes, None)

    def _size(self, state: State) -> int:
        """The number of environments of what must be a state."""
        if len(getattr(state, "batch_size", ())) != 1:
            raise ValueError(f"state: found {type(state).__name__}; expected a State [E], as init and step return it")
        return int(state.batch_size[0])

    def _fit(self, state: State) -> int:
        """The number of environments of a state: any, if every hyperparameter [E] has as many values."""
        num_envs = self._size(state)
        if self._swept is not None and self._swept[1] != num_envs:
            name, count = self._swept
            raise ValueError(f"hypers.{name} has {count} values, the state {num_envs} environments; expected as many")
        return num_envs
