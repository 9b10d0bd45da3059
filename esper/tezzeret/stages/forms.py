"""Forms of a blueprint between two sites: what runs when it is computed, as two functions of plain tensors.

The eager form is the definition. The others are the things themselves, as the backends run them: the programs of the
native library, the functions that Inductor compiled. All are asked alike, so that one can be held against another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.layout import Layout, Params
from esper.kasmina.site import Site
from esper.tezzeret.blueprints import Document, blueprint_of
from esper.tezzeret.blueprints.site_words import pair_of
from esper.utils import rng


class Subject(NamedTuple):
    """A blueprint between two sites; see ``subject_of``.

    Attributes:
      blueprint: the kind of seed.
      source: where it reads.
      target: where it acts; equal to ``source`` at one point.
      is_bypass: whether the two are different points.
      layout: the row of its trained tensors.
      buffer_layout: the row of its buffers.
    """

    blueprint: Blueprint
    source: Site
    target: Site
    is_bypass: bool
    layout: Layout
    buffer_layout: Layout

    @property
    def vocabulary(self) -> int:
        """How many tokens there are; 0: it reads features."""
        return self.target.channels if self.source.kind == "tokens" else 0

    def keys(self, like: Tensor) -> Tensor | None:
        """Keys of as many networks as there are rows, where training draws random numbers; int64 [n, 2]."""
        if not self.blueprint.draws:
            return None
        return rng.fold_in(rng.key(7), torch.arange(like.shape[0])).to(like.device)


def subject_of(blueprint: Blueprint, source: Site, target: Site | None = None) -> Subject:
    """A blueprint at a site, or as a bypass between two."""
    acts = source if target is None else target
    rows = (blueprint.layout(source, acts), blueprint.buffer_layout(source, acts))
    return Subject(blueprint, source, acts, target is not None, *rows)


def subject_at(document: Document, site: str) -> Subject:
    """A document at a site, or between two, in words.

    Raises:
      ConfigError: no such site, or the document is not for it.
    """
    source, target = pair_of(site)
    return subject_of(blueprint_of(document), source, target if document.bypass else None)


class Goal(NamedTuple):
    """What gradients are taken of: the cross-entropy of a linear map of what a blueprint gives.

    Attributes:
      weight: [M, size of the output]; the same for all networks.
      targets: int64 [n, B].
    """

    weight: Tensor
    targets: Tensor


class Trained(NamedTuple):
    """What training says of a minibatch; gradients are those of every network's mean loss.

    Attributes:
      losses: [n, B]; nats.
      params: [n, P].
      inputs: [n, B, *source.shape]; None where it reads tokens.
      buffers: [n, R]; the new ones.
    """

    losses: Tensor
    params: Tensor
    inputs: Tensor | None
    buffers: Tensor


class BlueprintForm(NamedTuple):
    """A blueprint between two sites, ready to run.

    Attributes:
      backend: whose form it is.
      infer: (params [n, P], buffers [n, R], x [n, B, *source.shape]) -> y [n, B, *target.shape].
      train: (params, buffers, x, goal) -> what training says.
      facts: what there is to say of it, for metadata.
      code: what another process can take in place of compiling it; empty if there is nothing.
    """

    backend: str
    infer: Callable[[Tensor, Tensor, Tensor], Tensor]
    train: Callable[[Tensor, Tensor, Tensor, Goal], Trained]
    facts: dict[str, Any]
    code: bytes = b""


def losses_of(y: Tensor, goal: Goal) -> Tensor:
    """[n, B]; nats."""
    logits = F.linear(y.flatten(2), goal.weight)
    return F.cross_entropy(logits.flatten(0, 1), goal.targets.flatten(), reduction="none").reshape(goal.targets.shape)


def flat(layout: Layout, named: Params, like: Tensor) -> Tensor:
    """Named tensors as rows; empty ones where there are none."""
    parts = [named[param.name].flatten(1) for param in layout.params]
    return torch.cat(parts, dim=1) if parts else like[:, :0]


def eager_form(subject: Subject) -> BlueprintForm:
    """The definition, operation by operation."""
    blueprint, layout, held = subject.blueprint, subject.layout, subject.buffer_layout

    def infer(params: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        return blueprint.infer(layout.views(params), held.views(buffers), x)

    def train(params: Tensor, buffers: Tensor, x: Tensor, goal: Goal) -> Trained:
        keys = subject.keys(params)

        def run(row: Tensor, features: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            y, new = blueprint.train(layout.views(row), held.views(buffers), features, keys)
            losses = losses_of(y, goal)
            return losses.mean(1).sum(), (losses, flat(held, new, row))

        places = (0,) if subject.vocabulary else (0, 1)
        grads, (losses, new) = torch.func.grad(run, argnums=places, has_aux=True)(params, x)
        return Trained(losses, grads[0], grads[1] if len(grads) > 1 else None, new)

    return BlueprintForm("eager", infer, train, {"operations": "one by one"})
