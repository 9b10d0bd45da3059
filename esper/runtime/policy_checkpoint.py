"""Learners as named tensors, and back: what a checkpoint of a training run holds, and where it lies.

A checkpoint holds two learners: as it was after its last round, and, with ``BEST_PART`` before every name, as it was
after the round that ended the best rounds in a row, unless that is the same one.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Op
from esper.leyline.config import Precision
from esper.nissa.sinks import METRICS, digest_of
from esper.simic.adam import place_of
from esper.simic.offline.learner import OfflineLearner
from esper.simic.ppo import Learner
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.decision_columns import decisions_seen
from esper.tamiyo.interface import Interface, PolicyNetwork, Translation, from_table, translate
from esper.tamiyo.networks import build_policies
from esper.tamiyo.policies import Policy, learned_policy
from esper.urza import series
from esper.urza.checkpoint import Checkpoint, CheckpointError, load
from esper.urza.series import Moment
from esper.utils.documents import shown

MOMENTS = ("exp_avg", "exp_avg_sq", "step")

SERIES = "checkpoints"
"""Folder of a run directory, a checkpoint for each of the last rounds that were written."""

ARCHIVES = {"latest": "checkpoint.npz", "best": "best.npz"}
"""Files of a run directory of format 1, by what they hold."""

WHICH = tuple(ARCHIVES)

BEST_PART = "best."

KINDS = {"settings": dict, "done": int, "interface": dict}
"""What the table of a training run's checkpoint holds at least, and of what kind that is."""

FURTHER = {"begun": list, "returns": list, "best": int | float | None, "best_round": int, "beside": dict}
FURTHER |= {"blueprints": list}
"""What it holds since format 2."""

logger = logging.getLogger("esper")


AnyLearner = Learner | OfflineLearner


def _critics(learner: AnyLearner) -> dict[str, Tensor]:
    """What is learned beside the policy, with its targets, by name."""
    if not isinstance(learner, OfflineLearner):
        return {}
    return dict(chain(learner.critics.named_parameters(), learner.critics.named_buffers()))


def _parameters(learner: AnyLearner) -> list[Parameter]:
    """What the optimizer changes, in its order."""
    return [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]


def learner_tensors(learner: AnyLearner) -> dict[str, Tensor]:
    """Copies of parameters and Adam's moments by name."""
    tensors = {f"policy.{name}": value for name, value in learner.policy.state_dict().items()}
    tensors |= {f"critics.{name}": value for name, value in _critics(learner).items()}
    for index, parameter in enumerate(_parameters(learner)):
        state = learner.optimizer.state.get(parameter, {})
        tensors |= {f"adam.{index}.{name}": torch.as_tensor(state[name]) for name in MOMENTS if name in state}
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def restore_policy(policy: ActorValueOperator, loaded: Checkpoint) -> None:
    """Put a checkpoint's parameters into a policy of the same sizes.

    Raises:
      CheckpointError: a tensor is missing or of another shape.
    """
    _restore(policy.state_dict(), "policy", loaded)


@torch.no_grad()
def _restore(own: Mapping[str, Tensor], part: str, loaded: Checkpoint) -> None:
    """Put a part of a checkpoint into tensors, all of them or none."""
    for name, value in own.items():
        found = loaded.tensors.get(f"{part}.{name}")
        if found is None or found.shape != value.shape:
            shape = None if found is None else list(found.shape)
            raise CheckpointError(f"checkpoint: {part}.{name} has shape {shape}; expected {list(value.shape)}")
    for name, value in own.items():
        value.copy_(loaded.tensors[f"{part}.{name}"])


def restore_learner(learner: AnyLearner, loaded: Checkpoint) -> None:
    """Put a checkpoint into a learner of the same sizes.

    Raises:
      CheckpointError: a tensor is missing or of another shape.
    """
    restore_policy(learner.policy, loaded)
    _restore(_critics(learner), "critics", loaded)
    for index, parameter in enumerate(_parameters(learner)):
        names = [name for name in MOMENTS if f"adam.{index}.{name}" in loaded.tensors]
        if names:
            learner.optimizer.state[parameter] = {
                name: loaded.tensors[f"adam.{index}.{name}"].to(place_of(learner.optimizer, name, parameter), copy=True)
                for name in names
            }
    learner.done = int(loaded.table["done"])


def load_run(path: Path, which: str = "latest") -> Checkpoint:
    """Read a checkpoint of a training run.

    Args:
      path: a run directory, of which the newest checkpoint that can be read counts, or one checkpoint.
      which: of ``WHICH``.

    Raises:
      CheckpointError: not readable, or a checkpoint of something else.
    """
    path, loaded = _find(path, which)
    _expect_run(path, loaded)
    best = loaded.table.get("best_round", loaded.table["done"])
    if which == "latest" or best == loaded.table["done"]:
        return loaded
    part = {name.removeprefix(BEST_PART): value for name, value in loaded.tensors.items() if name.startswith(BEST_PART)}
    return Checkpoint(part, loaded.table | {"done": best})


def load_run_to_play(path: Path, which: str = "latest") -> Checkpoint:
    """Like ``load_run``; that rounds and checkpoint of a run directory are not those of one run is said in a line.

    Raises:
      CheckpointError: as ``load_run``.
    """
    newest, rounds = load_run(path), path / METRICS
    recorded, done = newest.table.get("metrics"), newest.table["done"]
    if recorded is not None and rounds.exists() and digest_of(rounds, done) != recorded:
        logger.warning(
            "%s: not the %d rounds of the newest checkpoint beside it: altered, or the checkpoint is another run's",
            rounds,
            done,
        )
    return newest if which == "latest" else load_run(path, which)


def _expect_run(path: Path, loaded: Checkpoint) -> None:
    """Raise unless a checkpoint is one of a training run."""
    if not KINDS.keys() <= loaded.table.keys():
        raise CheckpointError(f"checkpoint {path}: holds {', '.join(loaded.table)}; expected one of a training run")
    for name, kind in (KINDS | FURTHER).items():
        if name in loaded.table and not isinstance(loaded.table[name], kind):
            found = shown(loaded.table[name])
            raise CheckpointError(f"checkpoint {path}: {name} is {found}; expected one of a training run")


def _find(path: Path, which: str) -> tuple[Path, Checkpoint]:
    def check(moment: Moment, loaded: Checkpoint) -> None:
        place = series.member(path / SERIES, moment)
        _expect_run(place, loaded)
        if loaded.table["done"] != moment.rounds:
            raise CheckpointError(f"checkpoint {place}: of {loaded.table['done']} rounds; expected what its name says")

    if (path / SERIES).is_dir():
        found = series.newest(path / SERIES, logger.warning, check)
        if found is not None:
            return found
    old = path / ARCHIVES[which]
    return (old, load(old)) if old.exists() else (path, load(path))


def load_policy(loaded: Checkpoint, task: Interface, greedy: bool, strict: bool = False) -> Policy:
    """The policy of a training run as a policy of a task, be it another than it was trained on.

    Args:
      loaded: from ``load_run``.
      task: what the task shows and takes. A recurrent policy leaves alone the columns and actions that it does not
        know; a graph policy knows them all, but for operations that there were not where it was trained.
      greedy: take the likeliest action instead of drawing one.
      strict: see ``learned_policy``.

    Raises:
      CheckpointError: its tensors do not fit its settings, it knows no seed of the task, or it was made to see more
        or fewer decisions than the task shows.
    """
    settings, own = loaded.table["settings"], from_table(loaded.table["interface"])
    sizes = ActorCriticConfig(*(settings[name] for name in ("features", "lstm", "head") if name in settings))
    sizes = replace(sizes, precision=Precision(settings.get("precision", sizes.precision.value)))
    network = network_of(loaded)
    ops = own.codec.ops
    seen = task._replace(codec=task.codec.limited(ops)) if network is PolicyNetwork.GRAPH else own
    (policy,) = build_policies(network, sizes, [seen], settings["seed"], ops)
    restore_policy(policy, loaded)
    policy = policy.to(task.codec.op.device)
    translation = translate(seen, task)
    _expect_known(translation, task, settings)
    _expect_same_memory(seen, task, settings)
    return learned_policy(policy, sizes.lstm, greedy, translation, strict)


def network_of(loaded: Checkpoint) -> PolicyNetwork:
    """What network a run's policy is.

    Raises:
      CheckpointError: one that is not known here.
    """
    name = loaded.table["settings"].get("policy_network", PolicyNetwork.RECURRENT.value)
    known = [network.value for network in PolicyNetwork]
    if name not in known:
        raise CheckpointError(f"checkpoint: policy_network {name!r}; expected one of {', '.join(known)}")
    return PolicyNetwork(name)


def _expect_known(translation: Translation, task: Interface, settings: dict[str, Any]) -> None:
    """Raise unless the policy could grow something in the task, if anybody can."""
    grows = task.codec.op == int(Op.GERMINATE)
    known = translation.own_actions < len(translation.actions)
    if bool(grows.any()) and not bool((grows & known).any()):
        raise CheckpointError(
            f"policy of {settings.get('task', 'another task')}: a recurrent one, which knows slots and blueprints by "
            "name, and none of this task's; expected a run with --room-for this task, or with --policy-network graph"
        )


def _expect_same_memory(seen: Interface, task: Interface, settings: dict[str, Any]) -> None:
    """Raise unless the task shows as many decisions as the policy was made to see: none shown would mean none taken."""
    mine, theirs = decisions_seen(seen.columns), decisions_seen(task.columns)
    if mine != theirs:
        raise CheckpointError(
            f"policy of {settings.get('task', 'another task')}: sees the last {mine} decisions, and the task shows "
            f"{theirs}; expected --engine decision_history={mine}"
        )
