"""What an epoch teaches about the seeds, written into their slots."""

import torch

from esper.leyline.events import Epoch, Evaluation
from esper.leyline.hypers import HyperParams, over
from esper.leyline.stages import ACTIVE, LIVE, MERGED, Stage, is_in
from esper.leyline.state import Slots


def record(hypers: HyperParams, slots: Slots, epoch: Epoch, evaluation: Evaluation) -> Slots:
    """Write contribution, prospect, improvement and gradient health of this epoch.

    Args:
      hypers: memory of the gradient ratio.
      slots: [E, S]; in the stages in which the epoch was trained.
      epoch: gradients.
      evaluation: effects of the slots.

    Returns:
      slots. An environment whose validation was not finite keeps its old measurements. The first gradient ratio of
      a seed is taken as it is, later ones enter a moving average.
    """
    sane = evaluation.finite.unsqueeze(1)
    taken = evaluation.measured & sane
    merged = taken & is_in(slots.stage, MERGED)
    training = taken & (slots.stage == int(Stage.TRAINING))
    alive = is_in(slots.stage, LIVE) & sane
    active = is_in(slots.stage, ACTIVE) & epoch.finite.unsqueeze(1)
    first = (slots.stage == int(Stage.TRAINING)) & (slots.stage_age == 0)
    memory = over(hypers.gradient_memory, 1)
    ratio = torch.where(
        first, epoch.health.seed_ratio, memory * slots.gradient_ratio + (1 - memory) * epoch.health.seed_ratio
    )
    gain = evaluation.accuracy.unsqueeze(1) - slots.stage_accuracy
    return slots.replace(
        contribution=torch.where(merged, evaluation.effect, slots.contribution),
        contribution_error=torch.where(merged, evaluation.effect_error, slots.contribution_error),
        measured=slots.measured | merged,
        prospect=torch.where(training, evaluation.effect, slots.prospect),
        prospect_error=torch.where(training, evaluation.effect_error, slots.prospect_error),
        evaluations=slots.evaluations + (taken & alive),
        improvement=torch.where(alive, gain, slots.improvement),
        gradient_norm=torch.where(active, epoch.health.seed_norm, slots.gradient_norm),
        gradient_ratio=torch.where(active, ratio, slots.gradient_ratio),
        healthy=torch.where(active, epoch.health.seed_healthy, slots.healthy),
    )
