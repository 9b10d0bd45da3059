"""State: everything that evolves, as typed TensorDicts.

Immutable by law: no function writes into its input, and what leaves a function of the engine is locked.
E environments, S slots, P host parameters, Q seed parameters (the arenas of all slots side by side), M optimizer
moments, C classes, H history, D decisions that are remembered, W window of the governor, R buffers of seeds.
Accuracies, improvements and contributions are percentage points (0 to 100); losses are nats; ages are epochs.
"""

from typing import Any, NotRequired, Self, TypeVar

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.contexts import EnvContext
from esper.utils.torch_private import replaced


class Fields(TypedTensorDict):
    """Fields by name."""

    def replace(self, *given: Any, **fields: Any) -> Self:
        """An open copy in which some fields are others, as ``TensorDict.replace`` gives it; its parts are open too."""
        quick = None if given else replaced(self, fields)
        return super().replace(*given, **fields) if quick is None else quick


class ParamState(Fields):
    """Parameters with their optimizer state."""

    params: Tensor  # [E, P] or [E, Q]
    moments: Tensor  # [E, M, P] or [E, M, Q]; M as the optimizer needs: 1 for SGD, 2 for Adam
    steps: Tensor  # int64 [E] for the host, [E, S] for the seeds; optimizer steps taken


class Slots(Fields):
    """The slots, batch [E, S]. An empty slot's blueprint, blend and target are -1 and its numbers 0."""

    stage: Tensor  # int64; Stage
    blueprint: Tensor  # int64; index into the blueprints, -1 when empty
    blend: Tensor  # int64; Blend, -1 when empty
    alpha: Tensor  # weight of the seed in the output, [0, 1]
    target: Tensor  # the weight that RETARGET asked for, [0, 1]; -1: none did, so that of the hyperparameters
    ramp: Tensor  # int64; steps of the alpha ramp done
    age: Tensor  # int64; epochs since germination
    stage_age: Tensor  # int64; epochs in the present stage
    evaluations: Tensor  # int64; measurements in the present stage
    measured: Tensor  # bool; whether `contribution` holds a measurement of this seed
    contribution: Tensor  # pp; validation accuracy lost when this slot's alpha is 0
    contribution_error: Tensor  # pp; standard error of the paired difference
    prospect: Tensor  # pp; validation accuracy gained if alpha were at its target (TRAINING only)
    prospect_error: Tensor  # pp; standard error of the paired difference
    birth_accuracy: Tensor  # pp; validation accuracy at germination
    stage_accuracy: Tensor  # pp; validation accuracy when the present stage began
    improvement: Tensor  # pp; validation accuracy gained since the present stage began
    gradient_norm: Tensor  # L2 norm of the seed's gradient
    gradient_ratio: Tensor  # seed/host gradient norm per parameter, moving average
    healthy: Tensor  # bool; gradients finite and not exploding
    in_snapshot: Tensor  # bool; the snapshot holds a copy of this seed


class Signals(Fields):
    """What a decision may look at beside the slots, batch [E]."""

    train_loss: Tensor  # nats, mean over the epoch's minibatches
    train_accuracy: Tensor  # pp
    val_loss: Tensor  # nats
    val_accuracy: Tensor  # pp
    class_accuracy: Tensor  # pp [E, C]
    loss_delta: Tensor  # nats; positive = improvement
    accuracy_delta: Tensor  # pp; positive = improvement
    best_accuracy: Tensor  # pp; best so far
    best_loss: Tensor  # nats; best so far, +inf before the first epoch
    plateau: Tensor  # int64; epochs in a row with too small a gain
    stable_run: Tensor  # int64; epochs in a row in which the host counted as stable
    stable: Tensor  # bool; latched once the run was long enough
    epochs_seen: Tensor  # int64; validations so far
    loss_history: Tensor  # nats [E, H]; newest last, 0 where absent (see epochs_seen)
    accuracy_history: Tensor  # pp [E, H]
    gradient_norm: Tensor  # L2 norm of the host's gradient
    vanishing: Tensor  # fraction of the host's tensors whose gradient vanishes
    exploding: Tensor  # fraction of the host's tensors whose gradient explodes
    # int64 [E, D, 3]: Op, slot (-1 without one), refused; newest last, -1 where absent. Not there where D is 0
    decisions: NotRequired[Tensor]  # type: ignore[valid-type]  # mypy knows it of TypedDict alone


def validated(signals: Signals) -> tuple[Tensor, Tensor]:
    """Last validation accuracy [E] in pp and loss [E], for reports; NaN where no epoch has counted yet.

    A network that is not finite from its first epoch on is never validated: the zeros that its signals begin with are
    no measurement.
    """
    seen = signals.epochs_seen > 0
    return torch.where(seen, signals.val_accuracy, torch.nan), torch.where(seen, signals.val_loss, torch.nan)


class Snapshot(Fields):
    """What training last left in good order, batch [E]."""

    host: ParamState
    buffers: Tensor  # [E, N]
    seeds: ParamState
    seed_buffers: Tensor  # [E, R]


class Governor(Fields):
    """What the governor remembers, batch [E]."""

    losses: Tensor  # nats [E, W]; normal validation losses, newest last
    filled: Tensor  # int64; how many of them are set
    spikes: Tensor  # int64; anomalous epochs in a row
    rollbacks: Tensor  # int64; rollbacks so far


class State(Fields):
    """Everything that evolves, batch [E]."""

    key: Tensor  # int64 [E, 2]; the environment's random key
    order_key: Tensor  # int64 [E, 2]; the run's key for shared minibatches, the same in every row
    rounds: Tensor  # int64 [E]; steps since init, the same in every row
    epoch: Tensor  # int64 [E]; decisions taken in this episode
    context: EnvContext
    host: ParamState
    buffers: Tensor  # [E, N]; normalisation statistics of the host
    slots: Slots
    seeds: ParamState
    seed_buffers: Tensor  # [E, R]; normalisation statistics of the seeds, slot by slot
    signals: Signals
    governor: Governor
    snapshot: Snapshot


Tree = TypeVar("Tree", bound=TypedTensorDict)


def lock(tree: Tree) -> Tree:
    """Lock a tensordict with all its parts, and return it: fields cannot be set, updated or deleted any more.

    ``TypedTensorDict.lock_`` alone leaves the parts open. A lock does not stop ``set_``, ``update_``, ``[rows] =`` and
    arithmetic in place, and ``replace`` returns an open copy.
    """
    for name, kind in type(tree).__annotations__.items():
        if isinstance(kind, type) and issubclass(kind, TypedTensorDict):
            lock(tree.get(name))
    return tree.lock_()
