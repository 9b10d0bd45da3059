"""Events: what the step's functions report beside the new state. Plain tensors, [E] or [E, S] unless said."""

from typing import NamedTuple

from torch import Tensor


class ActionResult(NamedTuple):
    """What became of the decisions."""

    action: Tensor  # int64 [E]; as requested
    op: Tensor  # int64 [E]; Op carried out, WAIT where refused
    slot: Tensor  # int64 [E]; -1 without one
    refusal: Tensor  # int64 [E]; Refusal
    failed: Tensor  # int64 [E]; Check bits of the gate that refused


class Health(NamedTuple):
    """Gradients of an epoch's last minibatch, before clipping."""

    host_norm: Tensor  # [E]; L2
    vanishing: Tensor  # [E]; fraction of the host's parameter tensors below the threshold
    exploding: Tensor  # [E]; fraction above
    seed_norm: Tensor  # [E, S]; 0 without an active seed
    seed_ratio: Tensor  # [E, S]; (seed norm / sqrt(seed size)) / (host norm / sqrt(host size))
    seed_healthy: Tensor  # bool [E, S]; finite and no tensor exploding


class Epoch(NamedTuple):
    """Training of one epoch."""

    loss: Tensor  # [E]; nats, mean over minibatches
    accuracy: Tensor  # [E]; pp
    finite: Tensor  # bool [E]; losses, gradients and parameters all finite
    health: Health


class Evaluation(NamedTuple):
    """Validation, with every slot's contribution or prospect."""

    loss: Tensor  # [E]; nats
    accuracy: Tensor  # [E]; pp
    class_accuracy: Tensor  # [E, C]; pp
    finite: Tensor  # bool [E]; loss finite
    effect: Tensor  # [E, S]; pp: contribution of merged seeds, prospect of seeds in TRAINING, else 0
    effect_error: Tensor  # [E, S]; standard error of the paired difference
    measured: Tensor  # bool [E, S]


class Performance(NamedTuple):
    """How well networks do on samples."""

    loss: Tensor  # [E]; nats
    accuracy: Tensor  # [E]; pp


class Life(NamedTuple):
    """Stages before and after the clock."""

    before: Tensor  # int64 [E, S]
    after: Tensor  # int64 [E, S]


class Judgement(NamedTuple):
    """What the governor did."""

    verdict: Tensor  # int64 [E]; Verdict
    rolled_back: Tensor  # bool [E]
    culled: Tensor  # bool [E, S]; seeds removed by the rollback


class Transition(NamedTuple):
    """Everything one environment step reports."""

    result: ActionResult
    epoch: Epoch
    evaluation: Evaluation
    life: Life
    judgement: Judgement
