"""The graph policy: a learned policy whose weights fit every task, as stock TorchRL modules.

    points, slots, seeds -> messages -> LSTM over the whole -> heads over slots and seeds -> logits, state_value

It has the keys, the memory and the sizes of the recurrent policy (``esper.tamiyo.actor_critic``). How many points,
slots and blueprints there are, their order and their names are no part of its weights: one set of weights plays all
tasks, also those that it was not trained on.
"""

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Codec, Op
from esper.tamiyo.actor_critic import (
    ACTION_GAIN,
    VALUE_GAIN,
    ActorCriticConfig,
    ValueHead,
    compose,
    initialise,
    rescale,
)
from esper.tamiyo.amp import NarrowLSTM, narrowing
from esper.tamiyo.graph_network import GraphEncoder, GraphHeads, Places, Tables, places_of, tables_of
from esper.tamiyo.interface import Interface
from esper.utils import rng

_STREAM = 0x7A3171
"""Folded into the seed's key, apart from the recurrent policy's and the engine's streams."""


class GraphSeeing(nn.Module):
    """An encoder on one task: observation [..., O] to what the memory sees and what the slots are."""

    def __init__(self, encoder: GraphEncoder, tables: Tables) -> None:
        super().__init__()
        self.encoder = encoder
        for name, table in tables._asdict().items():
            self.register_buffer(f"table_{name}", table, persistent=False)

    @narrowing
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """See ``GraphEncoder``."""
        tables = Tables(*(self.get_buffer(f"table_{name}") for name in Tables._fields))
        found: tuple[Tensor, Tensor] = self.encoder(tables, observation)
        return found


class GraphDeciding(nn.Module):
    """Heads on one task: slots, hidden and mask to the logits of its actions."""

    seeds: Tensor

    def __init__(self, heads: GraphHeads, codec: Codec, seeds: Tensor) -> None:
        super().__init__()
        self.heads, self.codec = heads, codec
        self.register_buffer("seeds", seeds, persistent=False)
        for name, table in places_of(codec, seeds.shape[0], heads.num_ops)._asdict().items():
            self.register_buffer(f"place_{name}", table, persistent=False)

    @narrowing
    def forward(self, slots: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """See ``GraphHeads``."""
        places = Places(*(self.get_buffer(f"place_{name}") for name in Places._fields))
        logits: Tensor = self.heads((self.codec, places, self.seeds), slots, hidden, mask)
        return logits


def build_graph_policies(
    config: ActorCriticConfig, tasks: Sequence[Interface], seed: int, ops: Sequence[Op] | None = None
) -> tuple[ActorValueOperator, ...]:
    """A graph policy as it plays each of several tasks.

    Args:
      config: sizes; ``features`` is the width of nodes as well.
      tasks: at least one; each of an engine, with a ``graph``.
      seed: 0 <= seed < 2**64; the parameters are a pure function of it and the sizes.
      ops: operations that it knows, those of every task at least; None: those of the tasks.

    Returns:
      per task, an actor and critic with the keys of ``build_actor_critic``. All have the same parameters: the names
      and shapes of their state do not depend on the task, and who trains one trains all.

    Raises:
      ValueError: a task without a graph, or a seed that is out of range.

    Laws: torch's global generator is untouched; one environment's non-finite observation changes no other's output and
    makes none non-finite; slots or blueprints in another order give the same decisions in that order, up to rounding.
    """
    key = rng.fold_in(rng.key(seed), _STREAM)
    ops = ops or max((task.codec.ops for task in tasks), key=len)
    with torch.random.fork_rng(devices=[]):  # constructors draw; what they draw is overwritten
        encoder, heads, value = GraphEncoder(config.features), GraphHeads(config, ops), ValueHead(config)
        lstm, norm = NarrowLSTM(config.features, config.lstm, batch_first=True), nn.LayerNorm(config.lstm)
    initialise(nn.ModuleList((encoder, lstm, norm, heads, value)), key)
    asked = [heads.target[-1]] if heads.target else []
    for last in (heads.op[-1], heads.slot.out, heads.seed.out, heads.blend[-1], *asked):
        rescale(last, ACTION_GAIN)
    rescale(value.head[-1], VALUE_GAIN)

    def on(task: Interface) -> ActorValueOperator:
        if task.graph is None:
            raise ValueError("graph policy: an interface without a graph; expected an engine's own")
        tables = tables_of(task.columns, task.codec, task.graph().to(task.codec.op.device))
        seeing = TensorDictModule(
            GraphSeeing(encoder, tables), in_keys=["observation"], out_keys=["_features", "_slots"]
        )
        deciding = TensorDictModule(
            GraphDeciding(heads, task.codec, tables.seeds),
            in_keys=["_slots", "_hidden", "action_mask"],
            out_keys=["logits"],
        )
        return compose(seeing, lstm, norm, deciding, value)

    return tuple(map(on, tasks))
