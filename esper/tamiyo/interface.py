"""Interfaces: what a policy sees and says, so that one policy can play tasks of different slots and blueprints.

Columns are matched by name, actions by what they mean. A column that a task does not have is 0 throughout (an absent
slot has no stage at all, where a dormant one has ``stage=DORMANT``); an action that it does not have is never legal.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import NONE, Action, Blend, Codec, Op, build_codec
from esper.tamiyo.host_graph import HostGraph


class PolicyNetwork(Enum):
    """What a learned policy's weights know.

    ``RECURRENT``: columns and actions by name, all that its interface has. ``GRAPH``: points, slots and seeds by what
    they are, of any task. ``MLP``: as ``RECURRENT``, of this moment only: a small baseline without memory.
    """

    RECURRENT = "recurrent"
    GRAPH = "graph"
    MLP = "mlp"


class Interface(NamedTuple):
    """Columns of the observation by name, and actions.

    Attributes:
      columns: O names.
      codec: A actions.
      graph: of the network that is decided on, for policies that know seeds by what they are; None of an interface
        that is of no single task.
    """

    columns: tuple[str, ...]
    codec: Codec
    graph: Callable[[], HostGraph] | None = None

    def to(self, device: torch.device | None) -> "Interface":
        """The same with the codec's columns on a device."""
        return self._replace(codec=self.codec.to(device))


class Translation(NamedTuple):
    """Between a policy's interface and a task's own.

    Attributes:
      columns: int64 [O]; for each column of the policy the task's, or the task's number of columns where it has none.
      actions: int64 [A]; for each action of the policy the task's, or the task's number of actions.
      own_actions: int64 [A']; for each action of the task the policy's, or the policy's number of actions.
    """

    columns: Tensor
    actions: Tensor
    own_actions: Tensor

    def observation(self, own: Tensor) -> Tensor:
        """What the policy sees of a task's observation: [..., O'] to [..., O]."""
        return _padded(own, 0.0)[..., self.columns]

    def mask(self, own: Tensor) -> Tensor:
        """Which of the policy's actions are legal: bool [..., A'] to [..., A]."""
        return _padded(own, False)[..., self.actions]

    def action(self, chosen: Tensor) -> Tensor:
        """The task's index of the policy's action; one past its last, which it refuses, where it has no such action and
        where the index is none of the policy's.
        """
        size, none = self.actions.shape[0], self.own_actions.shape[0]
        own = self.actions[chosen.clamp(0, size - 1)]
        return torch.where((chosen < 0) | (chosen >= size), none, own)

    def log_probs(self, chosen: Tensor) -> Tensor:
        """A distribution over the policy's actions as one over the task's: [..., A] to [..., A']."""
        return _padded(chosen, -torch.inf)[..., self.own_actions]


def _padded(values: Tensor, fill: float | bool) -> Tensor:
    """One more entry, for what is not there."""
    return torch.cat((values, values.new_full((*values.shape[:-1], 1), fill)), dim=-1)


def common(interfaces: Sequence[Interface]) -> Interface:
    """The interface of a policy for several tasks: every column and every action that any of them has.

    Law: of one interface it is that interface.
    """
    if len(interfaces) == 1:
        return interfaces[0]
    columns = tuple(dict.fromkeys(chain.from_iterable(interface.columns for interface in interfaces)))
    names = tuple(dict.fromkeys(chain.from_iterable(interface.codec.blueprint_names for interface in interfaces)))
    meanings = [meaning for interface in interfaces for meaning in meanings_of(interface.codec)]
    slots = 1 + max(action.slot for action, _ in meanings)
    offers = tuple(
        tuple(sorted({names.index(name) for action, name in meanings if action.slot == slot and name is not None}))
        for slot in range(slots)
    )
    blends = tuple(sorted({Blend(action.blend) for action, name in meanings if name is not None}))
    retarget = any(action.op is Op.RETARGET for action, _ in meanings)
    return Interface(columns, build_codec(offers, blends, names, retarget))


def meanings_of(codec: Codec) -> list[tuple[Action, str | None]]:
    """Every action apart from the number of its blueprint, and the blueprint's name."""
    names = codec.blueprint_names
    return [
        (action._replace(blueprint=NONE), None if action.blueprint == NONE else names[action.blueprint])
        for action in codec.actions
    ]


def translate(policy: Interface, task: Interface) -> Translation:
    """How a policy of one interface plays a task of another.

    It lies on the task's device.

    Laws: of an interface with itself, everything is returned as it is; ``action`` of what ``mask`` allows is legal.
    """
    device = task.codec.op.device
    columns = {name: index for index, name in enumerate(task.columns)}
    theirs, ours = meanings_of(policy.codec), meanings_of(task.codec)
    to_task = {meaning: index for index, meaning in enumerate(ours)}
    to_policy = {meaning: index for index, meaning in enumerate(theirs)}
    return Translation(
        torch.tensor([columns.get(name, len(columns)) for name in policy.columns], device=device),
        torch.tensor([to_task.get(meaning, len(ours)) for meaning in theirs], device=device),
        torch.tensor([to_policy.get(meaning, len(theirs)) for meaning in ours], device=device),
    )


def to_table(interface: Interface) -> dict[str, list[object]]:
    """An interface as JSON-able lists."""
    actions: list[object] = [_entry(action) for action in interface.codec.actions]
    return {
        "columns": list(interface.columns),
        "actions": actions,
        "blueprints": list(interface.codec.blueprint_names),
    }


def _entry(action: Action) -> list[int]:
    """An action as numbers; a target only of those that have one, as tables were before there was any."""
    numbers = list(map(int, action))
    return numbers if action.target != NONE else numbers[:-1]


def from_table(table: dict[str, list[object]]) -> Interface:
    """The interface that ``to_table`` wrote. Law: ``to_table(from_table(t)) == t``."""
    actions = [Action(*entry) for entry in table["actions"]]  # type: ignore[misc]
    names = tuple(map(str, table["blueprints"]))
    placed = [action for action in actions if action.slot != NONE]
    slots = 1 + max((action.slot for action in placed), default=NONE)
    offers = tuple(
        tuple(sorted({action.blueprint for action in placed if action.slot == slot and action.blueprint != NONE}))
        for slot in range(slots)
    )
    blends = tuple(sorted({Blend(action.blend) for action in placed if action.blend != NONE}))
    retarget = any(action.op == Op.RETARGET for action in actions)
    return Interface(tuple(map(str, table["columns"])), build_codec(offers, blends, names, retarget))
