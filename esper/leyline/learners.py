"""Learners: all that training changes, as plain tensors; what goes into a backend and comes out of it.

They are the parts of ``State`` of the same names. A NamedTuple of tensors passes through every transformation of
``torch.func``.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from esper.leyline.state import ParamState, State


class Weights(NamedTuple):
    """Parameters of n rows with their optimizer state."""

    params: Tensor  # [n, P]
    moments: Tensor  # [n, M, P]
    steps: Tensor  # int64 [n], or [n, S] of all slots; optimizer steps taken


class Learners(NamedTuple):
    """Hosts and seeds of E environments."""

    host: Weights  # [E, P]
    buffers: Tensor  # [E, N]
    seeds: Weights  # [E, Q], steps [E, S]
    seed_buffers: Tensor  # [E, R]


class Holder(Protocol):
    """What holds learners: a state, or its snapshot."""

    host: ParamState
    buffers: Tensor
    seeds: ParamState
    seed_buffers: Tensor


def learners_of(state: Holder) -> Learners:
    """The learners in a state or a snapshot."""

    def weights(part: ParamState) -> Weights:
        return Weights(part.params, part.moments, part.steps)

    return Learners(weights(state.host), state.buffers, weights(state.seeds), state.seed_buffers)


def parts(learners: Learners) -> dict[str, ParamState | Tensor]:
    """The fields of a state or a snapshot that hold learners."""
    batch = learners.host.params.shape[:1]
    host, seeds = (ParamState(**part._asdict(), batch_size=batch) for part in (learners.host, learners.seeds))
    return {"host": host, "buffers": learners.buffers, "seeds": seeds, "seed_buffers": learners.seed_buffers}


def with_learners(state: State, learners: Learners) -> State:
    """The state with other learners."""
    return state.replace(**parts(learners))
