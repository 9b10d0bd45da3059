"""Objectives: what a network is trained for, as pure functions of outputs and targets, one number per prediction.

A loss is what training descends; the mean over a minibatch is taken by the caller. A score is what a person reads:
its mean times 100 is the percentage of gates, rewards and reports. Equal builders with equal arguments return the
same object, so that a structure that holds an objective compares equal, too.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.leyline.config import ConfigError

Measure = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, B, ..., C], targets) -> [n, B, ...], per prediction."""


class Objective(NamedTuple):
    """A loss with its score."""

    name: str
    loss: Measure  # nats or squared units; lower is better
    score: Measure  # at most 1; higher is better
    guess_loss: Callable[[int], float]  # C outputs -> mean loss of knowing nothing


MOST_SQUARES = 10.0
"""Squared error, in variances of the targets, beyond which a prediction's score falls no more."""


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where arg max outputs = target, else 0; the mean is the accuracy.

    Args:
      outputs: [n, B, ..., C].
      targets: int64 [n, B, ...].
    """
    return (outputs.argmax(-1) == targets).to(outputs.dtype)


def cross_entropy(label_smoothing: float = 0.0, class_weights: tuple[float, ...] | None = None) -> Objective:
    """-(1 - a) w_y ln p_y - a / C sum_c w_c ln p_c with p = softmax(outputs); ``F.cross_entropy`` per prediction.

    Label smoothing a is Szegedy et al. 2016's. Targets are classes; the score is ``hits``. To know nothing is p_c =
    1/C, whose loss is ln C times the mean weight (classes being equally frequent).

    Args:
      label_smoothing: a, 0 to 1.
      class_weights: w, one for each class, >= 0 and not all 0; None: 1. They scale losses: the plain mean over a
        minibatch is sum w_y l / B, where ``F.cross_entropy``'s own mean is sum w_y l / sum w_y. So give weights of
        mean 1, and the step does not depend on which classes a minibatch happens to hold.

    Raises:
      ConfigError: a number out of range; later, from ``guess_loss``, another number of weights than of classes.
    """
    smoothing, weights = float(label_smoothing), None if class_weights is None else tuple(map(float, class_weights))
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"cross_entropy.label_smoothing = {label_smoothing!r}: expected 0 to 1")
    if weights is not None and not (all(0 <= w < math.inf for w in weights) and any(weights)):
        raise ConfigError(f"cross_entropy.class_weights = {class_weights!r}: expected finite numbers >= 0, not all 0")
    return _cross_entropy(smoothing, weights)


@functools.cache
def _cross_entropy(smoothing: float, weights: tuple[float, ...] | None) -> Objective:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        # with few classes, a softmax across samples fills vector registers; one along the classes does not
        logits = outputs.movedim(-1, 1)
        # filled on the device: a tensor made from numbers of the host would wait for it
        weight = None if weights is None else torch.cat([outputs.new_full((1,), number) for number in weights])
        return F.cross_entropy(logits, targets, weight, reduction="none", label_smoothing=smoothing)

    def guess_loss(num_outputs: int) -> float:
        if weights is None:
            return math.log(num_outputs)
        if len(weights) != num_outputs:
            raise ConfigError(
                f"cross_entropy.class_weights: {len(weights)} numbers; expected {num_outputs}, one a class"
            )
        return math.log(num_outputs) * sum(weights) / num_outputs

    return Objective("cross_entropy", loss, hits, guess_loss)


def mean_squared_error(scale: float | None = None) -> Objective:
    """1/C sum_c (outputs_c - t_c)^2; ``F.mse_loss`` per prediction, the mean over its C components.

    Two kinds of targets, told apart by ``scale``:

    - None: classes, int64 [n, B, ...]; t is one-hot (Hui & Belkin 2021; no softmax). The score is ``hits``. To know
      nothing is t_c = 1/C, whose loss is (C - 1) / C^2.
    - a number: vectors, floating [n, B, ..., C]. The score is 1 - min(loss / scale, ``MOST_SQUARES``); its mean is
      the coefficient of determination R^2 (1 = perfect, 0 = no better than the targets' mean) if ``scale`` is the
      variance of the targets, as long as no prediction is off by more than sqrt(10) = 3.2 standard deviations. Worse
      ones count as that, so that a few of them, or a network that diverges, cannot outweigh all others: the score is
      between -9 and 1. To know nothing is to predict the mean, whose loss is ``scale``.

    Args:
      scale: variance of the targets, the mean over their components, in squared units; 1 if they are standardised.

    Raises:
      ConfigError: ``scale`` is not a positive number; later, from loss and score, targets of the other kind.
    """
    if scale is None:
        return _squares_of_classes()
    if not 0 < scale < math.inf:
        raise ConfigError(f"mean_squared_error.scale = {scale!r}: expected a finite number > 0, the targets' variance")
    return _squares_of_vectors(float(scale))


@functools.cache
def _squares_of_classes() -> Objective:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        _check(outputs, targets)
        classes = torch.arange(outputs.shape[-1], device=outputs.device)
        wanted = (targets.unsqueeze(-1) == classes).to(outputs.dtype)
        return (outputs - wanted).square().mean(-1)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        _check(outputs, targets)
        return hits(outputs, targets)

    def _check(outputs: Tensor, targets: Tensor) -> None:
        if targets.is_floating_point() or targets.shape != outputs.shape[:-1]:
            found = f"targets {targets.dtype} {list(targets.shape)}"
            expected = f"classes {list(outputs.shape[:-1])} (for vectors, state their variance: scale)"
            raise ConfigError(f"mean_squared_error: {found}; expected {expected}")

    return Objective("mean_squared_error", loss, score, lambda num_outputs: (num_outputs - 1) / num_outputs**2)


@functools.cache
def _squares_of_vectors(scale: float) -> Objective:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point() or targets.shape != outputs.shape:
            found = f"targets {targets.dtype} {list(targets.shape)}"
            expected = f"vectors {list(outputs.shape)} (for classes, no scale)"
            raise ConfigError(f"mean_squared_error: {found}; expected {expected}")
        return (outputs - targets).square().mean(-1)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - (loss(outputs, targets) / scale).clamp(max=MOST_SQUARES)

    return Objective("mean_squared_error", loss, score, lambda num_outputs: scale)
