"""A small network without a kink, and a case of it: what is drawn, and the numbers that derivatives are taken of.

Convolution and average pooling, a wide layer, a head; each with or without batch norm, the head tied to an earlier
matrix or not. Three seeds: a residual branch, one that ends in a batch norm, and a bypass with a batch norm.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import arena
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, HostBlock, Tie
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, linear, track
from esper.kasmina.layout import Param, Params, constant
from esper.kasmina.objectives import cross_entropy, mean_squared_error
from esper.kasmina.site import Site, conv_site, vector_site
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import Structure, build_structure
from esper.leyline.actions import NONE, Blend
from esper.leyline.config import Config, Isolation, Precision
from esper.leyline.hypers import HyperParams, build_hypers
from esper.leyline.learners import Learners, Weights
from esper.leyline.stages import ACTIVE, Stage
from esper.tezzeret.batches import Batch
from esper.utils import rng

E, B, V, CLASSES = 3, 5, 6, 3
F64 = torch.float64
SHAPE, CONV, VECTOR = (1, 4, 4), conv_site(2, 2, 2), vector_site(3)


def drawn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return rng.normal(rng.key(seed), shape, F64)


def _weight(name: str, *shape: int) -> Param:
    return Param(name, shape, "normal", 0.6)


def _norm(name: str, width: int) -> tuple[tuple[Param, ...], tuple[Param, ...]]:
    weights = constant(f"{name}.weight", (width,), 1.0), constant(f"{name}.bias", (width,), 0.1)
    return weights, (constant(f"{name}.mean", (width,), 0.0), constant(f"{name}.variance", (width,), 1.0))


def _normed(name: str, params: Params, buffers: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    weights = params[f"{name}.weight"], params[f"{name}.bias"]
    held = buffers[f"{name}.mean"], buffers[f"{name}.variance"]
    if not train:
        return apply_batch_norm(x, *weights, *held), buffers
    y, *seen = batch_norm(x, *weights)
    return y, {f"{name}.mean": track(held[0], seen[0]), f"{name}.variance": track(held[1], seen[1])}


def _pair(run: Any) -> tuple[Any, Any]:
    """The forms of training and of inference of (params, buffers, x, train) -> (y, new buffers)."""
    return (lambda p, b, x, key: run(p, b, x, True)), (lambda p, b, x: run(p, b, x, False)[0])


def _conv_block(norm: bool) -> HostBlock:
    weights, buffers = _norm("norm", 2) if norm else ((), ())

    def run(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
        y, new = conv2d(x, p["conv"]), b
        y, new = _normed("norm", p, b, y, train) if norm else (y, new)
        y = F.gelu(y).unflatten(-1, (2, 2)).mean(-1).unflatten(-2, (2, 2)).mean(-2)
        return y, new

    return HostBlock((_weight("conv", 2, 1, 3, 3), *weights), buffers, *_pair(run), CONV, 1)


def wide_block(norm: bool) -> HostBlock:
    """A wide layer, and a matrix that a head may be tied to."""

    weights, buffers = _norm("norm", 3) if norm else ((), ())

    def run(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
        y, new = linear(x.flatten(2), p["in"], p["bias"]), b
        y, new = _normed("norm", p, b, y, train) if norm else (y, new)
        return linear(F.gelu(y), p["mix"]), new

    params = _weight("in", 3, 8), _weight("bias", 3), _weight("mix", 3, 3)
    return HostBlock((*params, *weights), buffers, *_pair(run), VECTOR, 1)


def head(tied: bool) -> HostBlock:
    """The logits."""

    def run(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
        del train
        y = F.gelu(linear(x, p["mix"])) if tied else x
        return linear(y, p["head"], p["bias"]), b

    ties = (Tie(1, _weight("mix", 3, 3)),) if tied else ()
    return HostBlock((_weight("head", CLASSES, 3), _weight("bias", CLASSES)), (), *_pair(run), None, 1, ties)


def smooth_host(norm: bool, tied: bool) -> Host:
    """Three blocks; points ``input``, ``block0`` (maps), ``block1`` (vectors), ``logits``."""
    return Host("smooth", SHAPE, CLASSES, (_conv_block(norm), wide_block(norm), head(tied)))


def _size(site: Site) -> int:
    return torch.Size(site.shape).numel()


def _branch(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    del train
    y = linear(torch.tanh(linear(x.flatten(2), p["in"])), p["out"])
    return x + y.reshape(x.shape), b


def _normed_branch(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    y, new = _normed("norm", p, b, linear(x.flatten(2), p["in"]), train)
    return x + F.gelu(y).reshape(x.shape), new


def _bridge(shape: tuple[int, ...]) -> Any:
    def run(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
        y, new = _normed("norm", p, b, linear(x.flatten(2), p["in"]), train)
        return linear(F.gelu(y), p["out"]).unflatten(-1, shape), new

    return run


def _same(source: Site, target: Site) -> bool:
    return source == target


BRANCH = Blueprint(
    "branch",
    _same,
    lambda source, target: (_weight("in", 2, _size(source)), _weight("out", _size(source), 2)),
    *_pair(_branch),
    lambda source, target: 1,
    9.0,
)
NORMED = Blueprint(
    "normed",
    _same,
    lambda source, target: (_weight("in", _size(source), _size(source)), *_norm("norm", _size(source))[0]),
    *_pair(_normed_branch),
    lambda source, target: 1,
    9.0,
    lambda source, target: _norm("norm", _size(source))[1],
)


def bridge(name: str, shape: tuple[int, ...]) -> Blueprint:
    """A bypass to one shape."""
    train, infer = _pair(_bridge(shape))
    size = torch.Size(shape).numel()
    return Blueprint(
        name,
        lambda source, target: source != target and target.shape == shape,
        lambda source, target: (_weight("in", 2, _size(source)), *_norm("norm", 2)[0], _weight("out", size, 2)),
        train,
        infer,
        lambda source, target: 1,
        9.0,
        lambda source, target: _norm("norm", 2)[1],
        is_bypass=True,
    )


BLUEPRINTS = (BRANCH, NORMED, bridge("bridge", (3,)))


class SmoothCase(NamedTuple):
    """What is drawn of a case, beside its numbers."""

    slots: tuple[int | str, ...] = (0, "block0:block1", 1)
    norm: bool = True
    tied: bool = True
    optimizers: tuple[str, str] = ("sgd", "sgd")
    isolation: Isolation = Isolation.STRAIGHT_THROUGH
    squares: bool = False
    clip: float = 0.7


def build(choice: SmoothCase, host: Host | None = None) -> tuple[Structure, HyperParams]:
    """Structure and numbers; ``adam_epsilon`` is large, so that Adam's root does not make differences coarse."""
    config = Config(
        num_envs=E,
        slots=choice.slots,
        blends=(Blend.LINEAR, Blend.GATED),
        batch_size=B,
        eval_batch_size=V,
        host_optimizer=choice.optimizers[0],
        seed_optimizer=choice.optimizers[1],
        isolation=choice.isolation,
        precision=Precision.FLOAT64,
    )
    objective = mean_squared_error() if choice.squares else cross_entropy(label_smoothing=0.1)
    structure = build_structure(
        config, host or smooth_host(choice.norm, choice.tied), BLUEPRINTS, objective, torch.device("cpu")
    )
    rates = [0.3 if name == "sgd" else 0.03 for name in choice.optimizers]
    numbers: dict[str, Any] = {"host_lr": rates[0] * torch.linspace(0.3, 1.0, E, dtype=F64)}
    numbers |= {"seed_lr": rates[1] * torch.linspace(1.3, 0.7, E, dtype=F64)}
    numbers |= {"adam_epsilon": 0.05, "host_weight_decay": 0.02, "seed_weight_decay": 0.01, "alpha_target": 0.8}
    numbers |= {"adam_beta2": 0.9, "host_clip": choice.clip, "seed_clip": choice.clip}
    return structure, build_hypers(numbers, E, F64, torch.device("cpu"))


def table_of(structure: Structure, stages: Any, kinds: Any, gated: Any) -> SlotTable:
    """A table of slots [E, S]; ``kinds`` are taken modulo what a slot offers."""
    stage, kind, gate = (torch.as_tensor(part).reshape(E, len(structure.slots)) for part in (stages, kinds, gated))
    offers = [torch.tensor(slot.offers) for slot in structure.slots]
    held = torch.stack([offer[column % offer.numel()] for offer, column in zip(offers, kind.unbind(1), strict=True)], 1)
    blend = torch.where(gate.bool(), int(Blend.GATED), int(Blend.LINEAR))
    empty = stage == int(Stage.DORMANT)
    return SlotTable(stage.numpy(), *(torch.where(empty, NONE, part).numpy() for part in (held, blend)))


def used(structure: Structure, table: SlotTable) -> Tensor:
    """Which columns of the seed arena active seeds and their gates use, bool [E, Q]."""
    found = torch.zeros(E, structure.num_seed_params, dtype=torch.bool)
    for env, number in zip(*table.within(ACTIVE).nonzero(), strict=True):
        slot = structure.slots[number]
        found[env, slot.blueprint_columns(int(table.blueprint[env, number]))] = True
        found[env, slot.gate_columns] = True
    return found


def learners_at(structure: Structure, table: SlotTable, seed: int) -> Learners:
    """Learners some steps old, with drawn numbers where anything is in use."""

    def moments(weights: Tensor, count: int, stream: int) -> Tensor:
        found = 0.2 * drawn(stream, weights.shape[0], count, weights.shape[1])
        return found if count == 1 else torch.stack((found[:, 0], 0.05 + found[:, 1].square()), 1)

    host, held = arena.init_host(structure.host, rng.fold_in(rng.key(seed), torch.arange(E)), F64)
    mask, seeds = used(structure, table), 0.5 * drawn(seed + 1, E, structure.num_seed_params)
    counts = structure.host_optimizer.num_moments, structure.seed_optimizer.num_moments
    own = torch.where(mask.unsqueeze(1), moments(seeds, counts[1], seed + 3), 0.0)
    steps = 2 + torch.arange(E * len(structure.slots)).reshape(E, -1)
    return Learners(
        Weights(host, moments(host, counts[0], seed + 2), 2 + torch.arange(E)),
        held + 0.1 * drawn(seed + 4, *held.shape).abs(),
        Weights(torch.where(mask, seeds, 0.0), own, steps),
        0.5 + 0.1 * drawn(seed + 5, E, structure.num_seed_buffers).abs(),
    )


def batch_of(seed: int) -> Batch:
    """A minibatch, each environment's own."""
    targets = (rng.uniform(rng.key(seed + 1), (E, B)) * CLASSES).long()
    return Batch(drawn(seed, E, B, *SHAPE), targets)
