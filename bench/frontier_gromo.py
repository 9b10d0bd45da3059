"""A peer that grows widths: perceptrons of ``gromo`` (on PyPI), by TINY or GradMax, on the same steps and data.

One hidden layer of relus on the flattened image starts with ``START`` units. At evenly spaced epochs of the first two
thirds it gets as many again until it has the width asked for: statistics over an epoch's minibatches, new units from
them as the papers say (TINY: Verbockhaven et al. 2024; GradMax: Evci et al. 2022, both in ``gromo``'s words), and their
scale by a line search on those minibatches. SGD with Esper's momentum, weight decay and clipping; its moments start
anew where the layer has grown. FLOPs are those of training, and of the passes over minibatches that growing needs.

Install it with ``pip install gromo``; without it this contender is left out.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from bench.frontier_contenders import PEER, Contender
from bench.frontier_flops import FLOPS, Spent
from bench.frontier_play import Played, Point, Study, best
from esper.leyline.config import Config
from esper.leyline.hypers import numbers
from esper.utils import rng

START = 4
"""Hidden units before anything has grown."""

SCALES = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Scales of new units that the line search tries."""

RULES: dict[str, dict[str, bool]] = {
    "TINY": {"compute_delta": False, "use_covariance": True, "use_projection": True},
    "GradMax": {
        "compute_delta": False,
        "use_covariance": False,
        "alpha_zero": True,
        "use_projection": False,
        "ignore_singular_values": True,
    },
}
"""Arguments of ``compute_optimal_updates`` as its own documentation gives them."""


class MissingPeerError(ImportError):
    """``gromo`` cannot be imported."""


class Plan(NamedTuple):
    """One perceptron: by which rule it grows, to how many hidden units, when, and how fast it learns."""

    rule: str
    width: int
    growing: frozenset[int]
    rate: float


def growing_mlp() -> Any:
    """The class of ``gromo``.

    Raises:
      MissingPeerError: it is not installed.
    """
    try:
        from gromo.containers.growing_mlp import GrowingMLP  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPeerError(f"gromo is not there ({error}); pip install gromo") from None
    return GrowingMLP


def growth_epochs(width: int, epochs: int) -> frozenset[int]:
    """Before which epochs the layer grows, to reach a width by two thirds of the run."""
    times = -(-width // START) - 1
    return frozenset(round((index + 1) * 2 * epochs / 3 / (times + 1)) for index in range(times))


def minibatches(study: Study, config: Config, number: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's minibatches, drawn by a key as Esper's environments draw theirs."""
    data = study.task.data.train
    key = rng.fold_in(rng.key(study.seed), number, epoch)
    order = rng.permutation(key, data.size)[: config.steps_per_epoch * config.batch_size]
    for index in order.split(config.batch_size):
        yield data.inputs[index], data.targets[index]


def grow(model: Any, rule: str, batches: list[tuple[Tensor, Tensor]], units: int) -> None:
    """Add units to the hidden layer."""
    model.init_computation()
    for inputs, targets in batches:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets, reduction="sum").backward()
        model.update_computation()
    model.compute_optimal_updates(maximum_added_neurons=units, **RULES[rule])
    model.reset_computation()
    model.dummy_select_update()
    layer, losses = model.currently_updated_layer, []
    for scale in SCALES:
        layer.scaling_factor = scale
        with torch.no_grad():
            losses.append(sum(float(F.cross_entropy(model.extended_forward(x), y)) for x, y in batches))
    layer.scaling_factor = SCALES[losses.index(min(losses))]
    model.apply_change()


def _optimizer(model: nn.Module, rate: float) -> torch.optim.SGD:
    momentum, decay = (numbers()[name].default for name in ("momentum", "host_weight_decay"))
    return torch.optim.SGD(model.parameters(), rate, momentum=momentum, weight_decay=decay)


def train(study: Study, config: Config, number: int, plan: Plan) -> tuple[nn.Module, list[float], Spent]:
    """One perceptron from its start to its end: the model, validation accuracy in pp by epoch, and FLOPs [1]."""
    data, clip = study.task.data, numbers()["host_clip"].default
    features, classes = torch.Size(data.input_shape).numel(), data.num_classes
    model = growing_mlp()(features, classes, START, 1, activation=nn.ReLU())
    curve, forward, backward, validation = list[float](), 0.0, 0.0, 0.0
    optimizer = _optimizer(model, plan.rate)
    for epoch in range(study.epochs):
        batches = list(minibatches(study, config, number, epoch))
        samples = sum(len(targets) for _, targets in batches)
        if epoch in plan.growing:
            hidden = model.layers[0].out_features
            flops = FLOPS * samples * hidden * (features + classes)
            grow(model, plan.rule, batches, min(START, plan.width - hidden))
            wider = FLOPS * samples * model.layers[0].out_features * (features + classes)
            forward, backward = forward + flops + len(SCALES) * wider, backward + 2 * flops
            optimizer = _optimizer(model, plan.rate)
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        flops = FLOPS * samples * model.layers[0].out_features * (features + classes)
        forward, backward = forward + flops, backward + 2 * flops
        validation += flops * data.validation.size / samples
        curve.append(accuracy(model, data.validation)[0])
    spent = Spent(*(torch.tensor([part], dtype=torch.float64) for part in (forward, backward, 0.0, validation)))
    return model, curve, spent


def accuracy(model: nn.Module, part: Any) -> tuple[float, float]:
    """Accuracy in pp and loss in nats on a part of the data."""
    with torch.no_grad():
        outputs = model(part.inputs)
    hits = (outputs.argmax(1) == part.targets).double()
    return 100 * float(hits.mean()), float(F.cross_entropy(outputs, part.targets))


def play_gromo(study: Study, config: Config, rule: str, width: int) -> Point:
    """N perceptrons at every rate, grown by a rule to a width; the best rate by validation.

    Raises:
      MissingPeerError: ``gromo`` is not installed.
    """
    growing_mlp()
    begun, found, sizes, tests, costs = time.perf_counter(), [], [], [], []
    for rate in study.rates:
        for number in range(study.envs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(study.seed * study.envs + number)  # noqa: TID251, it draws from the global generator
                plan = Plan(rule, width, growth_epochs(width, study.epochs), rate)
                model, curve, spent = train(study, config, number, plan)
            found.append(curve)
            sizes.append(float(sum(parameter.numel() for parameter in model.parameters())))
            tests.append(accuracy(model, study.task.data.test))
            costs.append(spent)
    scores = torch.tensor(tests, dtype=torch.float64)
    spent = Spent(*(torch.cat(parts) for parts in zip(*costs, strict=True)))
    curves = torch.tensor(found, dtype=torch.float64).mT
    played = Played(torch.tensor(sizes, dtype=torch.float64), curves, scores[:, 0], scores[:, 1], spent)
    named = Contender(f"gromo {rule}, {START} to {width} hidden units", PEER, study.task)
    return best(named, study, played, time.perf_counter() - begun)
