"""Who is on the frontier: static networks of a range of sizes, composites trained jointly, and networks that grow.

All are Esper hosts with or without slots, trained by the same engine: static ones wait, a composite has its seeds
FOSSILIZED from the first step on, and a grown one germinates them at the first decision, lets them learn their own
objective, and makes them permanent as soon as the life cycle allows. Scripts ask no gate whether a seed is worth it
(``UNGATED``): what they are measured against has no such choice either.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from esper.engine import Engine
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import CONV_BYPASSES
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import BOTTLENECK
from esper.kasmina.host import Host
from esper.kasmina.seeding import Seeds, place_seeds
from esper.kasmina.token_bypasses import TOKEN_BYPASSES
from esper.kasmina.transformer import transformer_host
from esper.leyline.actions import Blend, Codec
from esper.leyline.config import Isolation, SampleOrder
from esper.leyline.learners import learners_of, parts
from esper.leyline.stages import Stage
from esper.leyline.state import Snapshot, State, lock
from esper.runtime.tasks import TASKS, Task
from esper.tamiyo.policies import Policy, from_mask
from esper.tamiyo.scripted import grow, wait

STATIC, JOINT, GROWN, POLICY, PRUNED, PEER = "static", "joint", "grown", "policy", "pruned", "gromo"
"""Kinds of contender."""

BYPASS = "input:logits"
"""The slot in which scripts grow."""

UNGATED: dict[str, Any] = {"min_improvement": -100.0, "min_contribution": -100.0, "min_gradient_ratio": 0.0}
"""Gates that ask nothing of a seed but its age and sound gradients."""

OWN: dict[str, Any] = {"sample_order": SampleOrder.INDEPENDENT, "blends": (Blend.LINEAR,)}
"""Every environment draws its own minibatches, the same under every contender: environments are repetitions."""


FULL = (4, 8, 16, 32)
"""Channels of a static network's first block."""

LARGE = 500
"""Numbers of a sample beyond which ``--quick`` tries fewer sizes, and one rate."""


class Contender(NamedTuple):
    """A network that is trained, and what happens to it meanwhile.

    Attributes:
      name: of the row, unique.
      kind: one of the six above.
      task: host, blueprints, settings and data.
      policy: of the codec.
      start: (engine, fresh state) -> the state that training starts from.
      partner: for a grown network the composite of the same parts.
    """

    name: str
    kind: str
    task: Task
    policy: Callable[[Codec], Policy] = lambda codec: from_mask("wait", wait(codec))
    start: Callable[[Engine, State], State] = lambda engine, state: state
    partner: str = ""


class Field(NamedTuple):
    """What is tried on a kind of task.

    Attributes:
      hosts: static networks, by size.
      start: the host that grows: the preset's; for datasets on disk two narrow blocks, unless its own is asked for.
      kinds: seeds that scripts grow, each by itself.
      rates: of hosts and seeds alike; each contender has the best of them.
      pruned: widths that static networks of two blocks, twice as wide, are pruned to.
    """

    hosts: tuple[Host, ...]
    start: Host
    kinds: tuple[Blueprint, ...]
    rates: tuple[float, ...]
    pruned: tuple[int, ...] = ()


def field_of(task: Task, quick: bool, own_host: bool = False) -> Field:
    """Sizes, seeds and rates for the kind of data that a task has; ``own_host``: the task's own host grows."""
    field = _of_tokens(task, quick) if task.data.has_tokens else _of_images(task, quick)
    if not own_host:
        return field
    others = tuple(host for host in field.hosts if host.name != task.host.name)
    return field._replace(hosts=(*others, task.host), start=task.host)


def _of_tokens(task: Task, quick: bool) -> Field:
    outputs, (length,) = task.data.num_classes, task.data.input_shape
    full = ((0, 32), (0, 64), (1, 4), (1, 8), (1, 16), (1, 32), (2, 16), (2, 32))
    sizes = ((0, 32), (1, 16), (1, 32)) if quick else full
    hosts = tuple(transformer_host(outputs, length, layers, 4, width) for layers, width in sizes)
    return Field(hosts, task.host, TOKEN_BYPASSES[: 1 if quick else None], (0.005, 0.01, 0.02))


def _of_images(task: Task, quick: bool) -> Field:
    shape, outputs = task.data.input_shape, task.data.num_classes
    start = task.host if task.name in TASKS else cnn_host(shape, outputs, 2, 4)
    rates: tuple[float, ...]
    pruned: tuple[int, ...]
    if not quick:
        by_depth, kinds, rates, pruned = {1: FULL, 2: FULL, 3: FULL[:3]}, len(CONV_BYPASSES), (0.03, 0.1, 0.3), FULL[:3]
    else:
        small = math.prod(shape) <= LARGE
        kinds, rates, pruned = (3, (0.05, 0.1, 0.2), (8,)) if small else (2, (0.1,), (4,))
        by_depth = {1: FULL[:kinds], 2: FULL[:kinds]}
    hosts = tuple(cnn_host(shape, outputs, depth, width) for depth, row in by_depth.items() for width in row)
    return Field(hosts, start, CONV_BYPASSES[:kinds], rates, pruned)


def contenders(task: Task, field: Field) -> list[Contender]:
    """Static networks, then every composite beside the network that grows it; last what was shipped first."""
    found = [static(task, host) for host in field.hosts]
    for kind in field.kinds:
        found += [joint(task, field.start, kind), grown(task, field.start, kind)]
    if not task.data.has_tokens:
        found.append(bottlenecks(task, field.start))
    return found


def static(task: Task, host: Host) -> Contender:
    """A host without slots."""
    return Contender(host.name, STATIC, prepared(task, host, (), slots=()))


def joint(task: Task, host: Host, kind: Blueprint) -> Contender:
    """Host and bypass as one network from the first step on."""
    return Contender(f"{host.name} + {kind.name}, joint", JOINT, _bypassed(task, host, kind), start=composite)


def grown(task: Task, host: Host, kind: Blueprint) -> Contender:
    """The same, the bypass germinated at the first decision."""
    name = f"{host.name} + {kind.name}"
    policy = growing(kind)
    return Contender(f"{name}, grown", GROWN, _bypassed(task, host, kind), policy, partner=f"{name}, joint")


def bottlenecks(task: Task, host: Host) -> Contender:
    """The first presets' form: three seeds that keep the shape of the last block's maps, straight-through, gated."""
    last = max(host.sites)
    settings = {"slots": (last,) * 3, "isolation": Isolation.STRAIGHT_THROUGH}
    own = prepared(task, host, (BOTTLENECK,), **settings)
    return Contender(f"{host.name} + 3 bottlenecks, grown", GROWN, own, growing(BOTTLENECK))


def growing(kind: Blueprint) -> Callable[[Codec], Policy]:
    """The script that grows a kind wherever there is room."""
    return lambda codec: from_mask(f"grow {kind.name}", grow(codec, kind.name, Blend.LINEAR))


def _bypassed(task: Task, host: Host, kind: Blueprint) -> Task:
    return prepared(task, host, (kind,), slots=(BYPASS,), isolation=Isolation.OBJECTIVE, **UNGATED)


def prepared(task: Task, host: Host, kinds: tuple[Blueprint, ...], **settings: Any) -> Task:
    """A task's data for another host, with other seeds and settings."""
    return task._replace(host=host, blueprints=kinds, settings=task.settings | OWN | settings)


def composite(engine: Engine, state: State) -> State:
    """Every slot's first blueprint FOSSILIZED at alpha 1, with fresh numbers; also in the governor's snapshot."""
    shape = state.slots.stage.shape
    first = torch.tensor([slot.offers[0] for slot in engine.structure.slots]).expand(shape)
    seeds = Seeds(
        torch.full(shape, int(Stage.FOSSILIZED)),
        first,
        torch.full(shape, int(Blend.LINEAR)),
        torch.ones(shape, dtype=engine.config.precision.dtype),
    )
    placed = place_seeds(engine.structure, state, seeds)
    snapshot = Snapshot(**parts(learners_of(placed)), batch_size=list(shape[:1])).clone()
    held = placed.slots.replace(in_snapshot=torch.ones(shape, dtype=torch.bool))
    return lock(placed.replace(snapshot=snapshot, slots=held))
