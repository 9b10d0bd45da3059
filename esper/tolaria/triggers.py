"""When to operate: three policies that are ready to use, and the table from decisions to operations.

A trigger looks at what is known of a batch of hosts and says what is to be done, if anything. All hosts of a batch have
one structure, so it decides for all of them: on the mean over environments, or where all agree.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad

from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.tezzeret.surgery import (
    AddSkip,
    Anatomy,
    Learned,
    Log,
    ModifyLayer,
    Operation,
    RemoveLayer,
    Rewire,
    Samples,
    SurgeryRules,
    layers_of,
    surgery,
)
from esper.tezzeret.surgery.forward import Forward
from esper.tezzeret.surgery.layers import Layer, width_of
from esper.tezzeret.surgery.measure import hits, losses, paired
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tezzeret.surgery.places import inserted


class Watched(NamedTuple):
    """What a trigger sees.

    Attributes:
      state: [E]; signals and slots.
      body: what all hosts compute.
      learned: what each has learned.
      samples: to try hosts on.
      log: reports of earlier operations.
    """

    state: State
    body: Anatomy
    learned: Learned
    samples: Samples
    log: Log

    @property
    def epoch(self) -> int:
        """Now."""
        return int(self.state.epoch.max())

    @property
    def inputs(self) -> Tensor:
        """The samples' inputs for every host."""
        return self.samples.inputs.expand(len(self.learned.steps), *self.samples.inputs.shape)


class SurgeryDecision(NamedTuple):
    """What is to be done.

    Attributes:
      kind: one of ``DECISIONS``.
      layer: which; of a fossil, the number of its slot.
      other: a second layer; of a new one, its name.
      why: a line on what was seen.
    """

    kind: str
    layer: str
    other: str = ""
    why: str = ""


class Trigger(Protocol):
    """When to do what."""

    def __call__(self, watched: Watched) -> SurgeryDecision | None:
        """What is to be done now, if anything."""


def _width(body: Anatomy, name: str) -> int:
    return width_of(body, layers_of(body)[name])


DECISIONS: dict[str, Callable[[Anatomy, SurgeryDecision], Operation]] = {
    "add_layer": lambda body, decision: inserted(body, decision.layer, decision.other),
    "remove_layer": lambda body, decision: RemoveLayer(decision.layer),
    "add_neurons": lambda body, decision: ModifyLayer(decision.layer, width=2 * _width(body, decision.layer)),
    "remove_neurons": lambda body, decision: ModifyLayer(decision.layer, width=_width(body, decision.layer) // 2),
    "add_skip": lambda body, decision: AddSkip(decision.layer, decision.other),
    "rewire": lambda body, decision: Rewire(decision.layer, decision.other),
    "remove_fossil": lambda body, decision: RemoveFossil(int(decision.layer)),
}
"""Decision -> operation. One at most doubles or halves a width."""


def planned(body: Anatomy, decision: SurgeryDecision) -> Operation:
    """The operation of a decision.

    Raises:
      ValueError: no such decision or layer; one line.
    """
    if decision.kind not in DECISIONS:
        raise ValueError(f"decision {decision.kind!r}: expected {', '.join(DECISIONS)}")
    known = layers_of(body)
    if decision.kind != "remove_fossil" and decision.layer not in known:
        raise ValueError(f"decision {decision.kind!r}: no layer {decision.layer!r}; expected {', '.join(known)}")
    return DECISIONS[decision.kind](body, decision)


class InsertOnPlateau(NamedTuple):
    """A new layer, once all environments have stalled; one for each plateau.

    Attributes:
      after: the layer behind which it comes; None: the deepest hidden one.
      patience: epochs in a row with too small a gain, in every environment.
    """

    after: str | None = None
    patience: int = 3

    def __call__(self, watched: Watched) -> SurgeryDecision | None:
        """What is to be done now, if anything."""
        stalled, done = int(watched.state.signals.plateau.min()), watched.log.epochs
        is_old = bool(done) and stalled >= watched.epoch - max(done)  # the plateau on which the last operation was done
        hidden = list(layers_of(watched.body))[:-1]
        if stalled < self.patience or is_old or not hidden:
            return None
        name = f"grown{watched.log.count('insert_layer')}"
        return SurgeryDecision("add_layer", self.after or hidden[-1], name, f"no gain for {stalled} epochs")


class PruneIdle(NamedTuple):
    """What contributes nothing goes: the layer, or the fossil, without which least is lost, if that is little enough.

    A layer is probed by its counterfactual, the network without it on the same samples; a fossil by that of every
    validation, its alpha at 0. It goes where what is lost is below the limit by two standard errors.

    Attributes:
      limit: accuracy that may be lost, in percentage points.
    """

    limit: float = 0.5

    def __call__(self, watched: Watched) -> SurgeryDecision | None:
        """What is to be done now, if anything."""
        found = [*layer_contributions(watched).items(), *fossil_contributions(watched.state).items()]
        idle = [(mean, kind, name) for (kind, name), (mean, error) in found if mean + 2 * error < self.limit]
        if not idle:
            return None
        lost, kind, name = min(idle)
        return SurgeryDecision(kind, name, why=f"contributes {lost:.2f} points")


Contributions = dict[tuple[str, str], tuple[float, float]]
"""(decision that removes it, its name) -> accuracy lost without it, and the standard error; percentage points."""

FREE = SurgeryRules(topology=True, removed_per_epoch=10**6, surgeries_per_epoch=10**6, accuracy_loss=101.0)
"""To try what a removal would do."""


def layer_contributions(watched: Watched) -> Contributions:
    """Of every layer that could go: accuracy as it is less that without it, mean over environments, same samples."""
    found: Contributions = {}
    whole = Forward(watched.body.graph)(watched.learned.params, watched.learned.buffers, watched.inputs).output
    right = hits(whole, watched.samples.targets)
    for name in layers_of(watched.body):
        body, learned, report = surgery(watched.body, watched.learned, RemoveLayer(name), watched.samples, FREE)
        if report.done:
            without = Forward(body.graph)(learned.params, learned.buffers, watched.inputs).output
            found["remove_layer", name] = _pooled(*paired(right, hits(without, watched.samples.targets)))
    return found


def fossil_contributions(state: State) -> Contributions:
    """Of every slot that holds a fossil in all environments, as validation measured it."""
    slots, found = state.slots, dict[tuple[str, str], tuple[float, float]]()
    for slot in range(slots.stage.shape[1]):
        fossil = slots.stage[:, slot] == int(Stage.FOSSILIZED)
        if bool(fossil.all()) and bool(slots.measured[:, slot].all()):
            pair = slots.contribution[:, slot], slots.contribution_error[:, slot]
            found["remove_fossil", str(slot)] = _pooled(*pair)
    return found


def _pooled(mean: Tensor, error: Tensor) -> tuple[float, float]:
    """Of the mean over environments."""
    return float(mean.mean()), float(error.square().sum().sqrt() / len(error))


class SkipOnVanishing(NamedTuple):
    """A way around the layers between the first and the last hidden one, where early gradients vanish.

    Attributes:
      ratio: of the first layer's gradient norm to that of the last hidden one, per number, below which it vanishes.
    """

    ratio: float = 1e-3

    def __call__(self, watched: Watched) -> SurgeryDecision | None:
        """What is to be done now, if anything."""
        hidden = list(layers_of(watched.body).values())[:-1]
        if len(hidden) < 3:
            return None
        norms = gradient_norms(watched)
        seen = norms[hidden[0].name] / max(norms[hidden[-1].name], 1e-30)
        target = _alike(watched.body, hidden)
        if seen >= self.ratio or target is None or watched.log.count("add_skip"):
            return None
        return SurgeryDecision("add_skip", hidden[0].name, target, f"early gradients {seen:.1e} of late ones")


def _alike(body: Anatomy, hidden: list[Layer]) -> str | None:
    """The deepest hidden layer with features like the first one's, but for the next."""
    shape = body.graph.nodes[hidden[0].end].shape
    fitting = [each.name for each in hidden[2:] if body.graph.nodes[each.end].shape == shape]
    return fitting[-1] if fitting else None


def gradient_norms(watched: Watched) -> dict[str, float]:
    """Root mean square of every layer's gradient, over environments and the numbers of its weight."""
    forward, learned = Forward(watched.body.graph), watched.learned

    def total(params: dict[str, Tensor]) -> Tensor:
        return losses(forward(params, learned.buffers, watched.inputs).output, watched.samples.targets).sum()

    slopes = grad(total)(dict(learned.params))
    return {
        name: float(torch.linalg.vector_norm(slopes[each.weight]) / slopes[each.weight].numel() ** 0.5)
        for name, each in layers_of(watched.body).items()
    }


TRIGGERS: dict[str, Trigger] = {
    "plateau": InsertOnPlateau(),
    "idle": PruneIdle(),
    "vanishing": SkipOnVanishing(),
}
"""By name, with their defaults."""
