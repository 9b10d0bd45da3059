"""Tuning a schedule common to a population: by forward-mode hypergradients, and by random search.

Hypergradients: Franceschi et al. 2017, "Forward and Reverse Gradient-Based Hyperparameter Optimization". Environments
are independent, so one tangent through a whole life carries another direction in every environment; the directions are
the rows of a two-level orthogonal design (Plackett & Burman 1946), which gives the mean gradient with respect to all H
numbers in one pass.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from bench.hyper_life import KNOTS, Bench, Space, live, ramp_of, spread
from esper.engine import Engine
from esper.kasmina.optimizers import Rates
from esper.kasmina.optimizers.adam import update
from esper.utils import rng

RATE_STEP, ALPHA_STEP = 0.3, 0.1
"""First steps of Adam, in ln(rate) and in alpha; they fall linearly to a tenth."""

SEARCH_SEED, TUNE_SEED = 500_000, 1_000_000
"""Seeds of the environments in which candidates are compared, and of those of the first outer step."""

OUTLIER = 5.0
"""A slope counts at most so many times the median of its pass."""


def directions(num_envs: int, num_numbers: int, dtype: torch.dtype) -> Tensor:
    """Rows of signs, a direction for every environment, whose columns are orthogonal: ``V' V = E I``.

    Args:
      num_envs: E, a power of two.
      num_numbers: H <= E.
      dtype: of the result.

    Returns:
      [E, H]: the first columns of Sylvester's Hadamard matrix, ``(-1) ** popcount(e & h)``.

    Raises:
      ValueError: E is no power of two, or less than H.
    """
    if num_envs < num_numbers or num_envs & (num_envs - 1):
        raise ValueError(f"{num_envs} environments: expected a power of two of at least {num_numbers}")
    signs = [[1 - 2 * ((env & number).bit_count() % 2) for number in range(num_numbers)] for env in range(num_envs)]
    return torch.tensor(signs, dtype=dtype)


def loss_of(engine: Engine, bench: Bench, space: Space, seed: int, points: Tensor) -> Tensor:
    """Loss on the tuning samples at the end of every environment's life, nats [E], of points [E, H]."""
    return live(engine, space.script, spread(space, points), engine.init(seed), bench.tuning).losses.mean(1)


class Hypergradient(NamedTuple):
    """What one pass found."""

    loss: float  # nats; mean over environments
    gradient: Tensor  # [H]; nats per unit of each number
    slopes: Tensor  # [E]; each environment's derivative along its own direction


def hypergradient(bench: Bench, space: Space, point: Tensor, seed: int) -> Hypergradient:
    """The gradient of the mean tuning loss, from one forward pass with one tangent.

    With slopes ``s_e = v_e . g_e`` and ``V' V = E I``, ``V' s / E`` is the mean of the ``g_e`` where they agree; where
    they differ its error has the variance ``sum_h var(g_h) / E``, as a sample of E / H environments per number has.
    Slopes are limited (``OUTLIER``), and count 0 where they are not finite: a life near divergence has slopes of any
    size.

    Args:
      bench: E environments.
      space: H numbers.
      point: [H].
      seed: of the environments.
    """
    count = bench.eager.config.num_envs
    along = directions(count, point.shape[0], point.dtype)
    function = partial(loss_of, bench.eager, bench, space, seed)
    losses, slopes = jvp(  # type: ignore[misc]
        function, (point.expand(count, -1).clone(),), (along,)
    )
    slopes = torch.nan_to_num(slopes, 0.0, 0.0, 0.0)
    limit = OUTLIER * slopes.abs().median()
    return Hypergradient(float(losses.mean()), along.T @ slopes.clamp(-limit, limit) / count, slopes)


class Tuned(NamedTuple):
    """A schedule that was found; tuning losses on the way to it, nats; processor seconds; slopes of the first pass."""

    point: Tensor  # [H]
    losses: list[float]
    seconds: float
    first_slopes: list[float]


def tune(bench: Bench, space: Space, steps: int, say: Callable[[str], None]) -> Tuned:
    """Descend by Adam within the bounds, in fresh environments at each step.

    Args:
      bench: E environments.
      space: from its start.
      steps: outer steps.
      say: takes a line of progress.
    """
    began, point = time.process_time(), space.start
    moments, taken = point.new_zeros(point.shape[0], 2, 1), torch.zeros(point.shape[0], dtype=torch.int64)
    sizes = torch.full_like(point, RATE_STEP)
    sizes[-space.sizes[2] :] = ALPHA_STEP
    losses, first = list[float](), list[float]()
    for step in range(steps):
        found = hypergradient(bench, space, point, TUNE_SEED + step)
        rates = adam_rates(sizes * (1 - 0.9 * step / max(steps - 1, 1)))
        moved, moments, taken = update(found.gradient.unsqueeze(1), point.unsqueeze(1), moments, taken, rates)
        point = torch.clamp(moved.squeeze(1), space.low, space.high)
        losses.append(found.loss)
        first = first or found.slopes.tolist()
        say(f"outer step {step + 1}/{steps}: tuning loss {found.loss:.4f}, |gradient| {found.gradient.norm():.3f}")
    return Tuned(point, losses, time.process_time() - began, first)


def adam_rates(sizes: Tensor) -> Rates:
    """Adam's numbers with a step size [H] for each number. Gradients are noisy and few: memories of 5 and 20 steps."""

    def same(value: float) -> Tensor:
        return sizes.new_full((1, 1), value)

    return Rates(sizes.unsqueeze(1), same(0.0), same(math.inf), same(0.0), same(0.8), same(0.95), same(1e-8))


Draw = Callable[[Space, Tensor], Tensor]
"""A candidate of random search: (space, key int64 [2]) -> point [H]."""


def draw_all(space: Space, key: Tensor) -> Tensor:
    """Every number for itself, uniform between its bounds."""
    shares = rng.uniform(key, tuple(space.start.shape), dtype=space.start.dtype)
    return space.low + shares * (space.high - space.low)


def draw_few(space: Space, key: Tensor) -> Tensor:
    """Five numbers that a person would search over: a rate of hosts and one of seeds (log-uniform between the bounds),
    an exponential decay of both to a share of 0.01 to 1 (log-uniform), steepness of the ramp 1 to 30 (log-uniform),
    target alpha 0.5 to 1 (uniform).
    """
    host, seed, decay, steep, target = rng.uniform(key, (5,), dtype=space.start.dtype)
    fall = math.log(0.01) * decay * torch.linspace(0, 1, KNOTS, dtype=space.start.dtype)
    first = [space.low[at] + share * (space.high[at] - space.low[at]) for at, share in ((0, host), (KNOTS, seed))]
    alphas = ramp_of(space.script, torch.exp(math.log(30.0) * steep), 0.5 + 0.5 * target)
    return torch.clamp(torch.cat((first[0] + fall, first[1] + fall, alphas)), space.low, space.high)


class Trial(NamedTuple):
    """A candidate and its mean loss on the tuning samples, nats."""

    point: Tensor
    loss: float


def search(bench: Bench, space: Space, draw: Draw, trials: int, say: Callable[[str], None]) -> list[Trial]:
    """Live all candidates in the same environments, with the fastest backend.

    Args:
      bench: E environments.
      space: H numbers.
      draw: gives candidates.
      trials: how many. The first n of more are the n of fewer.
      say: takes a line of progress.
    """
    count, found = bench.fast.config.num_envs, list[Trial]()
    for number in range(trials):
        point = draw(space, rng.fold_in(rng.key(SEARCH_SEED), number))
        losses = loss_of(bench.fast, bench, space, SEARCH_SEED, point.expand(count, -1))
        found.append(Trial(point, float(losses.mean())))
        if (number + 1) % 50 == 0:
            say(f"trial {number + 1}/{trials}: best tuning loss {best(found).loss:.4f}")
    return found


def best(trials: list[Trial]) -> Trial:
    """The trial with the least loss; one that is not finite is none."""
    return min(trials, key=lambda trial: trial.loss if math.isfinite(trial.loss) else math.inf)


class Costs(NamedTuple):
    """Processor seconds of one life of all environments: with a tangent, without, and in the fastest backend."""

    tangent: float
    plain: float
    fast: float


def measure_costs(bench: Bench, space: Space, tangent: float, repeats: int) -> Costs:
    """Time lives without a tangent in turn, after one of each; medians of ``repeats``."""
    points = space.start.expand(bench.eager.config.num_envs, -1)
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for engine, times in zip((bench.eager, bench.fast), seconds, strict=True):
            began = time.process_time()
            loss_of(engine, bench, space, SEARCH_SEED, points)
            if turn:
                times.append(time.process_time() - began)
    return Costs(tangent, *(sorted(times)[len(times) // 2] for times in seconds))
