"""Stage 5: how long a form takes and what memory it needs, beside the same module as a plain torch network."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.tezzeret.stages.forms import BlueprintForm, Goal, Subject
from esper.tezzeret.stages.inputs import batch_of, goal_of, numbers_of
from esper.tezzeret.stages.plain import PlainModule
from esper.utils.resident import held, peak, restart_peak

SAMPLES = 32
"""Of the batch that is timed, of one network."""


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
      warm: runs that are not counted.
      runs: runs that are.
      budget: seconds that the counted runs of one measurement may take; at least three are made.
    """

    warm: int = 3
    runs: int = 30
    budget: float = 0.3


class Timing(NamedTuple):
    """Milliseconds.

    Attributes:
      median, p95: of the runs.
    """

    median: float
    p95: float


def profile(
    form: BlueprintForm,
    subject: Subject,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    effort: Effort | None = None,
) -> dict[str, float]:
    """Times and memory of one network and a batch of ``SAMPLES``.

    Args:
      form: what was compiled.
      subject: the blueprint and its sites.
      dtype, device: where it runs; by default float32 on the CPU.
      effort: how much is measured.

    Returns:
      by name: milliseconds of inference and of training (forward and gradients), median and 95th percentile; bytes at
      the most above what was held before; ratios to a plain torch network's medians.
    """
    place, effort = device or torch.device("cpu"), effort or Effort()
    numbers = numbers_of(subject, 1, dtype, place)
    batch = batch_of(subject, "normal", SAMPLES, 1, numbers.params)
    row = (numbers.params, numbers.buffers, batch.x)
    goal = goal_of(subject, form.infer(*row), batch.targets)
    plain = PlainModule(subject, numbers.params, numbers.buffers, batch.x[0])
    infer = time_of(lambda: form.infer(*row), place, effort)
    train = time_of(lambda: form.train(*row, goal), place, effort)
    plain_infer = time_of(lambda: _plainly(plain, batch.x[0]), place, effort)
    plain_train = time_of(_trained_plainly(plain, batch.x[0], goal, bool(subject.vocabulary)), place, effort)
    return {
        "infer_ms": infer.median,
        "infer_p95_ms": infer.p95,
        "train_ms": train.median,
        "train_p95_ms": train.p95,
        "peak_bytes": _peak(lambda: form.train(*row, goal), place),
        "infer_ratio": infer.median / plain_infer.median,
        "train_ratio": train.median / plain_train.median,
    }


def time_of(run: Callable[[], object], device: torch.device, effort: Effort) -> Timing:
    """How long a run takes."""
    taken, spent = list[float](), 0.0
    for number in range(effort.warm + effort.runs):
        _wait(device)
        begun = time.perf_counter()
        run()
        _wait(device)
        if number < effort.warm:
            continue
        taken.append(time.perf_counter() - begun)
        spent += taken[-1]
        if len(taken) >= 3 and spent > effort.budget:
            break
    ordered = sorted(taken)
    return Timing(1e3 * ordered[len(ordered) // 2], 1e3 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(run: Callable[[], object], device: torch.device) -> int:
    before = held(device, collect=False)
    restart_peak(device, collect=False)
    run()
    return max(0, peak(device) - before)


@torch.no_grad()
def _plainly(plain: PlainModule, x: Tensor) -> Tensor:
    y: Tensor = plain(x)
    return y


def _trained_plainly(plain: PlainModule, x: Tensor, goal: Goal, is_tokens: bool) -> Callable[[], object]:
    """Forward and backward as everybody writes it, with the gradient of the input where there is one."""

    def run() -> object:
        given = x if is_tokens else x.clone().requires_grad_()
        logits = F.linear(plain(given).flatten(1), goal.weight)
        loss = F.cross_entropy(logits, goal.targets[0])
        wanted = [*plain.own, *([] if is_tokens else [given])]
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    return run
