"""What the definition keeps between a minibatch's forward pass and its gradient, in bytes.

``torch.func`` refuses hooks of saved tensors. So a minibatch is run through torch's own graph, unit by unit, under
``torch.autograd.graph.saved_tensors_hooks``; the units are the definition's. What two units keep of one storage counts
once; the numbers that are trained do not count.
"""

from typing import Any

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.tezzeret import eager
from esper.tezzeret.batches import Batch
from esper.tezzeret.units import Pull, Unit, recomputed


class Kept:
    """A way of calling units that adds up what they keep; ``again``: where they are computed again.

    Attributes:
      storages: what is kept, by its place in memory.
    """

    def __init__(self, again: bool) -> None:
        self.again, self.storages, self.trained = again, dict[int, Tensor](), set[int]()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(kept.untyped_storage().nbytes() for kept in self.storages.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self.trained:
            self.storages[place] = tensor.detach()
        return tensor

    def __call__(self, unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> tuple[Any, Any, Pull | None]:
        """As ``esper.tezzeret.units.Call``."""
        if not wrt:
            return recomputed(unit, arguments, wrt)
        if unit.name[0] in ("block", "seed", "gate"):
            self.trained.add(arguments[0].untyped_storage().data_ptr())
        if self.again:
            for argument in arguments:
                self._keep(argument)
            return recomputed(unit, arguments, wrt)
        leaves = [each.detach().requires_grad_(place in wrt) for place, each in enumerate(arguments)]
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
            value, aux = unit.run(*leaves)
        aux = aux.detach() if isinstance(aux, Tensor) else aux

        def pull(grad: Tensor) -> dict[int, Tensor]:
            found = torch.autograd.grad(value, [leaves[place] for place in wrt], grad, materialize_grads=True)
            return dict(zip(wrt, found, strict=True))

        return value.detach(), aux, pull


def bytes_kept(engine: Engine, state: State, batch: Batch) -> int:
    """Bytes that one minibatch of an engine's definition keeps for its gradient."""
    structure, table = engine.structure, take_table(state.slots)
    kept = Kept(structure.config.recompute)
    plan = eager.plan(structure, table, state.key.device)
    eager.minibatch_step(structure, engine.hypers, plan, learners_of(state), state.slots.alpha, batch, kept)
    return kept.size


def first_batch(engine: Engine, state: State) -> Batch:
    """The first samples of the training part, for every environment the same."""
    samples = engine.data.train.take(slice(0, engine.config.batch_size)).samples
    inputs, targets = (each.expand(state.batch_size[0], *each.shape) for each in samples)
    return Batch(inputs, targets, state.key)
