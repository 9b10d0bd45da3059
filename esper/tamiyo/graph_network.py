"""Weights that read a network of any size: messages between points and slots, and scores of slots and seeds.

Every weight is shared by all points, by all slots or by all seeds. How many there are, and which, is said by tables
that are no parameters; see ``esper.tamiyo.host_graph``.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.leyline.actions import NONE, TARGETS, Blend, Codec, Op
from esper.leyline.config import Config
from esper.tamiyo.actor_critic import ActorCriticConfig, guarded, head_of
from esper.tamiyo.amp import widened
from esper.tamiyo.host_graph import POINT_FEATURES, SEED_FEATURES, HostGraph, flows
from esper.tamiyo.logits import joint_logits
from esper.tamiyo.observation import CONTEXT, column_names

ROUNDS = 2
"""Times that every node hears of its neighbours."""

SEEN_EPOCHS = 5
"""Epochs of the histories that are read, the latest; how many an observation has is a task's affair."""

_SLOT = "slot0."


def _names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    every = column_names(Config(num_envs=1, slots=(0,), history=SEEN_EPOCHS), (), tuple(CONTEXT))
    own = tuple(name.removeprefix(_SLOT) for name in every if name.startswith(_SLOT))
    return tuple(name for name in every if not name.startswith(_SLOT)), own


WHOLE_COLUMNS, SLOT_COLUMNS = _names()
"""What is read of an environment and of a slot, by name; which blueprint a slot holds is read by its features."""


class Tables(NamedTuple):
    """Where a task's numbers are, and what its network is; no parameter is among them.

    O is the number of its columns; column O stands for one that it does not have, and is 0.
    """

    whole: Tensor  # int64 [G]; columns of the environment
    slots: Tensor  # int64 [S, C]; columns of every slot
    held: Tensor  # int64 [S, K]; columns of the flags that say which blueprint a slot holds
    points: Tensor  # float32 [P, POINT_FEATURES]
    seeds: Tensor  # float32 [S, K, SEED_FEATURES]
    before: Tensor  # float32 [N, N]; means over the nodes whose features flow into one, N = P + S
    after: Tensor  # float32 [N, N]; means over the nodes that a node's features flow into


def tables_of(columns: Sequence[str], codec: Codec, graph: HostGraph) -> Tables:
    """The tables of a task, on the graph's device."""
    place, device = {name: index for index, name in enumerate(columns)}, graph.slots.device

    def find(rows: list[list[str]], width: int) -> Tensor:
        found = [[place.get(name, len(place)) for name in row] for row in rows]
        return torch.tensor(found, dtype=torch.int64, device=device).reshape(len(rows), width)

    slots, kinds = range(graph.slots.shape[0]), codec.blueprint_names
    arrives = flows(graph).float()
    return Tables(
        find([list(WHOLE_COLUMNS)], len(WHOLE_COLUMNS))[0],
        find([[f"slot{slot}.{name}" for name in SLOT_COLUMNS] for slot in slots], len(SLOT_COLUMNS)),
        find([[f"slot{slot}.blueprint={kind}" for kind in kinds] for slot in slots], len(kinds)),
        graph.points,
        graph.seeds,
        *(each / each.sum(1, keepdim=True).clamp(min=1) for each in (arrives, arrives.T)),
    )


class MessageRound(nn.Module):
    """One round of messages: nodes [..., N, H] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.before, self.after = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)

    def forward(self, nodes: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Add what a node makes of itself, of the mean of those before it and of the mean of those after it."""
        heard = self.own(nodes) + self.before(before @ nodes) + self.after(after @ nodes)
        return nodes + torch.relu(self.norm(heard))


class GraphEncoder(nn.Module):
    """What the memory sees, and what every slot is: observation [..., O] to [..., F] and [..., S, F].

    Laws: a row that holds NaN or infinities gives finite numbers and leaves the other rows' bits alone; slots in
    another order give the slots' rows in that order, and the same [..., F] up to rounding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole = nn.Linear(len(WHOLE_COLUMNS), width)
        self.point = nn.Linear(len(POINT_FEATURES), width)
        self.slot = nn.Linear(len(SLOT_COLUMNS) + len(SEED_FEATURES), width)
        self.norm = nn.LayerNorm(width)
        self.rounds = nn.ModuleList(MessageRound(width) for _ in range(ROUNDS))
        self.pool = nn.Linear(3 * width, width)
        self.pool_norm = nn.LayerNorm(width)

    def forward(self, tables: Tables, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Look up, embed, send messages, pool."""
        seen = nn.functional.pad(guarded(observation).to(self.whole.weight.dtype), (0, 1))
        whole, points = self.whole(seen[..., tables.whole]), self.point(tables.points)
        held = (seen[..., tables.held].unsqueeze(-1) * tables.seeds).sum(-2)  # a flag at most is 1
        slots = self.slot(torch.cat((seen[..., tables.slots], held), dim=-1))
        nodes = torch.cat((points.expand(*whole.shape[:-1], *points.shape), slots), dim=-2)
        nodes = torch.relu(self.norm(nodes + whole.unsqueeze(-2)))
        for messages in self.rounds:
            nodes = messages(nodes, tables.before, tables.after)
        pooled = torch.cat((whole, nodes.mean(-2), nodes.amax(-2)), dim=-1)
        return torch.relu(self.pool_norm(self.pool(pooled))), nodes[..., points.shape[0] :, :]


class Places(NamedTuple):
    """Where an action's scores are."""

    slot: Tensor  # int64 [A]; Op and slot in [S, N], the last + 1 where it takes none
    seed: Tensor  # int64 [A]; pair and operation in [M, 2], the last + 1 where it takes none
    blend: Tensor  # int64 [A]; Blend, the last + 1 where it takes none
    target: Tensor  # int64 [A]; of TARGETS, the last + 1 where it takes none
    pair_slot: Tensor  # int64 [M]; slots of the pairs of slot and blueprint that actions name
    pair_kind: Tensor  # int64 [M]; their blueprints


def places_of(codec: Codec, num_slots: int, num_ops: int) -> Places:
    """The places of a codec's actions, on its device, in the scores of heads for N operations."""
    device = codec.op.device
    pairs = sorted({(action.slot, action.blueprint) for action in codec.actions if action.blueprint != NONE})
    number = {pair: index for index, pair in enumerate(pairs)}
    seeds = [
        2 * number[action.slot, action.blueprint] + (action.op == Op.CHANGE_BLUEPRINT)
        if action.blueprint != NONE
        else 2 * len(pairs)
        for action in codec.actions
    ]
    slots, kinds = torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2).unbind(1)
    return Places(
        torch.where(codec.slot == NONE, num_slots * num_ops, codec.slot * num_ops + codec.op),
        torch.tensor(seeds, dtype=torch.int64, device=device),
        torch.where(codec.blend == NONE, len(Blend), codec.blend),
        torch.where(codec.target == NONE, len(TARGETS), codec.target),
        slots,
        kinds,
    )


class PartScores(nn.Module):
    """Scores of things that several parts describe: a linear map of each, relu of the sum, a linear map.

    The last has no bias: only differences between the things count.
    """

    def __init__(self, parts: Sequence[int], width: int, scores: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(part, width) for part in parts)
        self.out = nn.Linear(width, scores, bias=False)

    def forward(self, *given: tuple[Tensor, Tensor | None]) -> Tensor:
        """Score n things: [..., n, scores].

        Args:
          given: per part, [..., m, size] with the row of each thing, int64 [n]; None where m is n or 1.
        """
        terms = [layer(part) for layer, (part, _) in zip(self.parts, given, strict=True)]
        found = [term if rows is None else term[..., rows, :] for term, (_, rows) in zip(terms, given, strict=True)]
        scores: Tensor = self.out(torch.relu(sum(found)))
        return scores


class GraphHeads(nn.Module):
    """Logits of all actions: slots [..., S, F], hidden [..., H] and mask bool [..., A] to [..., A].

    An operation is chosen by what is remembered alone; a slot also by what it is, for every operation apart; a
    blueprint also by what it is there.
    """

    def __init__(self, config: ActorCriticConfig, ops: Sequence[Op]) -> None:
        super().__init__()
        self.num_ops = len(ops)
        self.op = head_of(config, len(ops))
        self.slot = PartScores((config.lstm, config.features), config.head, len(ops))
        self.seed = PartScores((config.lstm, config.features, len(SEED_FEATURES)), config.head, 2)
        self.blend = head_of(config, len(Blend))
        self.target = head_of(config, len(TARGETS)) if Op.RETARGET in ops else None

    def forward(self, task: tuple[Codec, Places, Tensor], slots: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Score operations and arguments, then factor; ``task``: actions, their places, and ``Tables.seeds``."""
        codec, places, seeds = task
        remembered = hidden.unsqueeze(-2)
        kinds = seeds[places.pair_slot, places.pair_kind]
        slot = self.slot((remembered, None), (slots, None))
        seed = self.seed((remembered, None), (slots, places.pair_slot), (kinds, None))
        parts = [(slot.flatten(-2), places.slot), (seed.flatten(-2), places.seed), (self.blend(hidden), places.blend)]
        if self.target is not None:
            parts.append((self.target(hidden), places.target))
        arguments = [nn.functional.pad(widened(scores), (0, 1))[..., index] for scores, index in parts]
        return joint_logits(codec, self.op(hidden), reduce(add, arguments), mask)
