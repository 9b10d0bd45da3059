"""Environments whose seeds in training learn by an objective of their own, and whose slots may be bypasses.

Such a seed descends the loss of the network as if it were on at its target alpha, all else given: a second pass through
what lies behind its slot, from detached features and with constant parameters, in which no other seed in training takes
part. Batch statistics there are the pass's own, and no running ones move. A bypass reads at one point of the host and
is added at a later one.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.modules import ActiveSlot, Environment, Role, conv, mix, seed_module
from bench.workload import NetworkSpec

INPUT = -1
"""The point before the first block; the others have the number of the block they lie behind."""

BYPASSES = {"conv4x2": 4, "conv8x2": 8, "conv16x2": 16, "conv32x2": 32}
"""Channels of the first of two blocks."""


def bypass_module(name: str, into: int, num_classes: int) -> nn.Sequential:
    """A bypass from images to logits: two blocks like those of a host, then mean and a linear head."""
    if name not in BYPASSES:
        raise ValueError(f"bypass_module: blueprint {name!r} has no rendering here")
    parts: list[nn.Module] = []
    for out in (BYPASSES[name], 2 * BYPASSES[name]):
        parts += [conv(into, out, 3), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        into = out
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, num_classes))


def constant_twin(module: nn.Module) -> nn.Module:
    """The same map by the same storage, whose parameters have no gradient and whose batch norms keep no statistics."""
    memo = {id(param): nn.Parameter(param.detach(), requires_grad=False) for param in module.parameters()}
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return twin


class PointSlot(ActiveSlot):
    """An active seed in a slot between two points.

    Attributes:
      source: the point where a bypass reads; None: the seed reads where it acts.
    """

    def __init__(self, seed: nn.Module, role: Role, as_leaf: bool, source: int | None) -> None:
        super().__init__(seed, role, as_leaf)
        self.source = source

    def grow(self, x: Tensor) -> Tensor:
        """What the seed gives, from what it reads."""
        isolated = self.training and self.role.isolated and x.requires_grad
        return self.seed(x.detach().requires_grad_(self.as_leaf) if isolated else x)

    def join(self, h: Tensor, s: Tensor, alpha: float) -> Tensor:
        """What leaves the slot, if the seed gives s."""
        return mix(h, s, alpha) if self.source is None else torch.add(h, s, alpha=alpha)

    def form(self) -> tuple[object, ...]:
        """Equal for slots that one graph can serve."""
        return *super().form(), self.source


class Trace(NamedTuple):
    """What a pass of the network as it is leaves.

    Attributes:
      before: per part of the path, the features before it.
      grown: by part, what its seed gave.
      points: by point, the features there.
    """

    before: list[Tensor]
    grown: dict[int, Tensor]
    points: dict[int, Tensor]


class ObjectiveEnvironment(Environment):
    """A host with its active seeds, of which those in training learn by their own objectives.

    Attributes:
      twins: by part of the path, its constant twin, wherever an objective may pass.
    """

    def make_slot(self, structure: NetworkSpec, slot: int, name: str, role: Role, as_leaf: bool) -> PointSlot:
        """A slot with a seed of a blueprint."""
        source, target = structure.sources[slot], structure.slots[slot]
        if source == target:
            return PointSlot(seed_module(name, structure.channels[target]), role, as_leaf, None)
        if source != INPUT or target != len(structure.channels):
            raise ValueError(f"{structure.name}, slot {slot}: expected a bypass from the input to the logits")
        return PointSlot(bypass_module(name, structure.input_shape[0], structure.num_classes), role, False, source)

    def share(self) -> None:
        """Make the twins, of the storage that there is now."""
        self.twins = nn.ModuleDict()
        training = [index for index, _ in self.slots if self.path[index].role.training]
        for index in range(min(training, default=len(self.path)) + 1, len(self.path)):
            if index not in training:
                self.twins[str(index)] = constant_twin(self.plain(index))

    def plain(self, index: int) -> nn.Module:
        """The block or the seed of a part of the path."""
        part = self.path[index]
        return part.seed if isinstance(part, PointSlot) else part

    def trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """Logits, and the way to them. Seeds in training are run while the network trains."""
        trace = Trace([], {}, {INPUT: x})
        for index, part in enumerate(self.path):
            trace.before.append(x)
            if not isinstance(part, PointSlot):
                x = part(x)
            elif self.training or not part.role.training:
                s = part.grow(x if part.source is None else trace.points[part.source])
                trace.grown[index] = s
                x = x if part.role.training else part.join(x, s, part.role.alpha)
            trace.points[self.blocks[index]] = x
        return x, trace

    def behind(self, index: int, x: Tensor, trace: Trace) -> Tensor:
        """Logits if x left a slot, with no other seed in training; the parameters are constant while training.

        What a bypass gives that reads before the slot's target is as the network saw it.
        """
        target = self.blocks[index]
        points = trace.points | {target: x}
        for number in range(index + 1, len(self.path)):
            part = self.path[number]
            run = self.twins[str(number)] if self.training and str(number) in self.twins else self.plain(number)
            if not isinstance(part, PointSlot):
                x = run(x)
            elif not part.role.training:
                if part.source is None:
                    s = run(x)
                else:
                    s = trace.grown[number].detach() if part.source < target else run(points[part.source])
                x = part.join(x, s, part.role.alpha)
            points[self.blocks[number]] = x
        return x

    def switched_on(self, index: int, trace: Trace) -> Tensor:
        """Logits of the network with a seed in training at its target alpha."""
        part, h, grown = self.path[index], trace.before[index].detach(), trace.grown
        s = grown[index] if index in grown else part.grow(h if part.source is None else trace.points[part.source])
        return self.behind(index, part.join(h, s, part.role.target), trace)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, C, H, W]."""
        return self.trace(x)[0]

    def losses(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """The network's mean cross-entropy, then the objective of each seed in training."""
        logits, trace = self.trace(inputs)
        training = [index for index, _ in self.slots if self.path[index].role.training]
        own = [F.cross_entropy(self.switched_on(index, trace), targets) for index in training]
        return [F.cross_entropy(logits, targets), *own]

    def score(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Correct predictions as it is, then with each active slot switched; what is unchanged is not run again."""
        logits, trace = self.trace(inputs)
        switched = [
            self.switched_on(index, trace)
            if self.path[index].role.training
            else self.behind(index, trace.before[index], trace)
            for index, _ in self.slots
        ]
        return [(each.argmax(-1) == targets).sum() for each in (logits, *switched)]
