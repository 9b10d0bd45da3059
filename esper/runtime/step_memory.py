"""What a step works with: bytes of an environment, while it learns and while it is validated.

They are found by running a minibatch and a validation of two and of four environments, and noting at every operation
which tensors are alive. What grows from two to four is the environments' own; it grows on in a straight line.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from esper.engine import Engine
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.seeding import draw_seeds, place_seeds
from esper.kasmina.slot_table import SlotTable, take_table
from esper.leyline.actions import BLENDS
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.tezzeret import eager
from esper.tezzeret.batches import batch_at
from esper.tolaria.training import draw_batches
from esper.tolaria.variations import own_hypers
from esper.urza.states import tensors_of
from esper.utils.torch_private import DispatchMode
from esper.utils.tree import leaves_of

FEW, MORE = 2, 4
"""Environments that are run."""

LEARNS, SHOWS = Stage.TRAINING, Stage.BLENDING
"""Stages whose seeds take most: of a minibatch, with objective passes of their own, and of a validation."""

Work = Callable[[Engine, HyperParams, State, SlotTable], None]
"""A piece of work of a step."""


class StepMemory(NamedTuple):
    """Bytes that an environment works with at most, beside its state.

    Attributes:
      backward: in a minibatch, with all that is kept for the gradient.
      forward: in a validation with its counterfactuals.
    """

    backward: int
    forward: int

    @property
    def most(self) -> int:
        """Of both: they follow each other."""
        return max(self)


class Alive(DispatchMode):
    """A context that notes after every operation how many bytes of new tensors are alive.

    Attributes:
      most: bytes at most.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        """Begin; the memory of ``known`` tensors does not count."""
        super().__init__()
        self.most = 0
        self._known = {ref.cdata: ref for ref in (StorageWeakRef(tensor.untyped_storage()) for tensor in known)}
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        ref = StorageWeakRef(storage)
        if ref.cdata in self._known:
            return
        self._found = {place: each for place, each in self._found.items() if not each[0].expired()}
        if ref.cdata not in self._found:
            self._found[ref.cdata] = ref, storage.nbytes()
            self.most = max(self.most, sum(size for _, size in self._found.values()))


def step_memory(engine: Engine) -> StepMemory:
    """What an environment works with whose slots all hold seeds of the kind that takes most.

    Args:
      engine: of any number of environments; its numbers are common to all of them.

    What runs is the engine's backend where nothing need be compiled for it, else the definition, which keeps more.
    """
    backend = engine.backend
    if backend.name != "native":
        backend = eager.build(engine.structure, engine.data.train.targets.device)
    engine = replace(engine, backend=backend)
    kinds = range(len(engine.structure.blueprints)) if engine.structure.slots else (0,)
    return StepMemory(*(_growth(engine, work, stage, kinds) for work, stage in ((_learn, LEARNS), (_validate, SHOWS))))


def _growth(engine: Engine, work: Work, stage: Stage, kinds: Sequence[int]) -> int:
    """Bytes by which a piece of work grows with an environment, of the kind of seed that takes most."""
    low, kind = max((_alive_in(work, engine, seeded(engine, FEW, kind, stage)), kind) for kind in kinds)
    high = _alive_in(work, engine, seeded(engine, MORE, kind, stage))
    return max(0, high - low) // (MORE - FEW)


def seeded(engine: Engine, count: int, kind: int, stage: Stage) -> State:
    """A state [count] with seeds of one kind in all slots, where it fits; their blends have gates, if any have."""
    config = replace(engine.config, num_envs=count)
    blend = max(config.blends, key=lambda each: BLENDS[each].gated)
    seeds = draw_seeds(replace(engine.structure, config=config), 1.0, (kind,), (stage,), (blend,), 0)
    device = engine.data.train.targets.device
    return place_seeds(engine.structure, engine.init(0, torch.arange(count, device=device)), seeds)


def _alive_in(work: Work, engine: Engine, state: State) -> int:
    """Bytes that are alive at most in a piece of work of all environments of a state, beside the state."""
    hypers = own_hypers(engine.hypers, state.context, engine.data.variation)
    table = take_table(state.slots)
    with Alive(list(tensors_of(state).values())) as alive:
        work(engine, hypers, state, table)
    return alive.most


def _learn(engine: Engine, hypers: HyperParams, state: State, table: SlotTable) -> None:
    """A minibatch."""
    batch = batch_at(engine.structure, draw_batches(engine.config, state, engine.data), 0)
    plan = engine.backend.plan(table, state.key.device)
    engine.backend.minibatch_step(hypers, plan, learners_of(state), state.slots.alpha, batch)


def _validate(engine: Engine, hypers: HyperParams, state: State, table: SlotTable) -> None:
    """As many samples as lie side by side, twice: while the second are on their way, the first have left their mark."""
    plan, few = engine.backend.plan(table, state.key.device), slice(2 * engine.config.eval_batch_size)
    samples, wanted = engine.data.validation.take(few).samples, single_changes(table)
    engine.backend.evaluate(hypers, plan, learners_of(state), state.slots.alpha, samples, wanted)
