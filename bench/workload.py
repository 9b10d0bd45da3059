"""The work that every contender does, as numbers in one file: plain numpy, so that no contender needs another's code.

A *workload* is one environment step of E environments: k SGD steps of every host and its active seeds, then validation
with one counterfactual per active seed. ``bench.draw`` writes it from an Esper state; contenders read it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of tensors that lie side by side in a flat row, in order."""


class RateHypers(NamedTuple):
    """Hyperparameters of torch.optim's SGD with momentum, or Adam, behind clipping by norm, host and seeds apart."""

    host_lr: float
    seed_lr: float
    host_decay: float
    seed_decay: float
    momentum: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    host_clip: float
    seed_clip: float
    alpha_target: float


class NetworkSpec(NamedTuple):
    """What a contender must build."""

    name: str  # of the shape
    precision: str  # "float32" or "float64"
    seed: int  # of the draw
    shared: bool  # whether all environments see the same minibatches
    input_shape: tuple[int, ...]  # (C, H, W), or (T,) of tokens
    num_classes: int
    channels: tuple[int, ...]  # per block: 3x3 convolution, batch norm, relu, 2x2 maximum; of tokens, the embedding
    slots: tuple[int, ...]  # per slot, the block after which it acts; the last is the head
    sources: tuple[int, ...]  # per slot, the block after which it reads; -1: the input; another than in slots: a bypass
    isolation: str  # "straight_through" or "objective"
    optimizer: str  # "sgd" or "adam"
    blueprints: tuple[str, ...]
    numbers: RateHypers
    host_layouts: tuple[Layout, ...]  # per block, then the head
    seed_layouts: tuple[tuple[Layout, ...], ...]  # per slot, per blueprint
    host_flops: tuple[int, ...]  # multiply-adds of one sample's forward pass, per block, then the head

    @property
    def takes_tokens(self) -> bool:
        """Whether inputs are tokens, with a prediction at every position."""
        return len(self.input_shape) == 1


class Workload(NamedTuple):
    """One environment step. G epochs of minibatches are drawn: the first is timed, all of them are compared."""

    structure: NetworkSpec
    train_inputs: Array  # [N, C, H, W], or [N, T]
    train_targets: Array  # [N], or [N, T]
    val_inputs: Array  # [V, C, H, W], or [V, T]
    val_targets: Array  # [V], or [V, T]
    indices: Array  # [G, E, k, B], or [G, 1, k, B] where the minibatches are shared
    kind: Array  # [E, S]; index of the blueprint, -1 without an active seed
    training: Array  # bool [E, S]; the seed learns behind the host: output h, gradient by ``isolation``
    isolated: Array  # bool [E, S]; the seed reads detached features
    alpha: Array  # [E, S]; weight of a seed that does not train behind the host
    host: Array  # [E, P]; stages side by side
    seeds: tuple[tuple[Array, ...], ...]  # per slot, per blueprint [n, P_k]; rows ascend as in ``rows``

    @property
    def num_envs(self) -> int:
        """Environments E."""
        return self.host.shape[0]

    @property
    def num_slots(self) -> int:
        """Slots S."""
        return self.kind.shape[1]

    @property
    def steps(self) -> int:
        """SGD steps k of an epoch."""
        return self.indices.shape[2]

    def rows(self, slot: int, blueprint: int) -> Array:
        """Environments that hold a blueprint in a slot."""
        return np.flatnonzero(self.kind[:, slot] == blueprint)


ARRAYS = ("train_inputs", "train_targets", "val_inputs", "val_targets", "indices")
ROWS = ("kind", "training", "isolated", "alpha", "host")


def save(workload: Workload, path: Path) -> None:
    """Write a workload to an ``.npz``."""
    arrays = {name: getattr(workload, name) for name in (*ARRAYS, *ROWS)}
    for slot, groups in enumerate(workload.seeds):
        arrays |= {f"seeds.{slot}.{blueprint}": group for blueprint, group in enumerate(groups)}
    np.savez(path, structure=np.array(json.dumps(workload.structure)), **arrays)


def load(path: Path) -> Workload:
    """Read a workload that ``save`` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        fields = dict(zip(NetworkSpec._fields, _tuples(json.loads(archive["structure"].item())), strict=True))
        structure = NetworkSpec(**fields | {"numbers": RateHypers(*fields["numbers"])})
        seeds = tuple(
            tuple(archive[f"seeds.{slot}.{blueprint}"] for blueprint in range(len(structure.blueprints)))
            for slot in range(len(structure.slots))
        )
        return Workload(structure, **{name: archive[name] for name in (*ARRAYS, *ROWS)}, seeds=seeds)


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def take(workload: Workload, envs: slice) -> Workload:
    """The work of some environments only."""
    part = {name: getattr(workload, name)[envs] for name in ROWS}
    indices = workload.indices if workload.structure.shared else workload.indices[:, envs]
    chosen = np.zeros(workload.num_envs, dtype=bool)
    chosen[envs] = True
    seeds = tuple(
        tuple(group[chosen[workload.rows(slot, blueprint)]] for blueprint, group in enumerate(groups))
        for slot, groups in enumerate(workload.seeds)
    )
    return workload._replace(**part, indices=indices, seeds=seeds)


def flops(workload: Workload) -> int:
    """Floating-point operations that the hosts of one step need, two per multiply-add; seeds are not counted.

    A training step takes three times the forward pass, less the gradient with respect to the inputs; validation is
    one forward pass without counterfactuals.
    """
    forward = sum(workload.structure.host_flops)
    samples = workload.steps * workload.indices.shape[3]
    per_env = samples * (3 * forward - workload.structure.host_flops[0]) + len(workload.val_targets) * forward
    return 2 * workload.num_envs * per_env
