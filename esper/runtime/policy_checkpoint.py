"""Learners as named tensors, and back: what a checkpoint of a training run holds."""

from pathlib import Path

import torch
from torch import Tensor
from torchrl.modules import ActorValueOperator

from esper.simic.adam import place_of
from esper.simic.ppo import Learner
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.interface import Interface, from_table, translate
from esper.tamiyo.policies import Policy, learned_policy
from esper.urza.checkpoint import Checkpoint, CheckpointError, load

MOMENTS = ("exp_avg", "exp_avg_sq", "step")

CHECKPOINTS = {"latest": "checkpoint.npz", "best": "best.npz"}
"""Files of a run directory by what they hold."""


def learner_tensors(learner: Learner) -> dict[str, Tensor]:
    """Parameters and Adam's moments by name."""
    tensors = {f"policy.{name}": value for name, value in learner.policy.state_dict().items()}
    for index, parameter in enumerate(learner.policy.parameters()):
        state = learner.optimizer.state.get(parameter, {})
        tensors |= {f"adam.{index}.{name}": torch.as_tensor(state[name]) for name in MOMENTS if name in state}
    return tensors


def restore_policy(policy: ActorValueOperator, loaded: Checkpoint) -> None:
    """Put a checkpoint's parameters into a policy of the same sizes.

    Raises:
      CheckpointError: a tensor is missing or of another shape.
    """
    own = policy.state_dict()
    for name, value in own.items():
        found = loaded.tensors.get(f"policy.{name}")
        if found is None or found.shape != value.shape:
            shape = None if found is None else list(found.shape)
            raise CheckpointError(f"checkpoint: policy.{name} has shape {shape}; expected {list(value.shape)}")
    policy.load_state_dict({name: loaded.tensors[f"policy.{name}"] for name in own})


def restore_learner(learner: Learner, loaded: Checkpoint) -> None:
    """Put a checkpoint into a learner of the same sizes.

    Raises:
      CheckpointError: a tensor is missing or of another shape.
    """
    restore_policy(learner.policy, loaded)
    for index, parameter in enumerate(learner.policy.parameters()):
        names = [name for name in MOMENTS if f"adam.{index}.{name}" in loaded.tensors]
        if names:
            learner.optimizer.state[parameter] = {
                name: loaded.tensors[f"adam.{index}.{name}"].to(place_of(learner.optimizer, name, parameter), copy=True)
                for name in names
            }
    learner.done = int(loaded.table["done"])


def load_run(path: Path) -> Checkpoint:
    """Read a checkpoint of a training run.

    Raises:
      CheckpointError: not readable, or a checkpoint of something else.
    """
    loaded = load(path)
    if not {"settings", "done", "interface"} <= loaded.table.keys():
        raise CheckpointError(f"checkpoint {path}: holds {', '.join(loaded.table)}; expected one of a training run")
    return loaded


def load_policy(loaded: Checkpoint, task: Interface, greedy: bool) -> Policy:
    """The policy of a training run as a policy of a task, be it another than it was trained on.

    Args:
      loaded: from ``load_run``.
      task: what the task shows and takes; columns and actions that the policy does not know are left alone.
      greedy: take the likeliest action instead of drawing one.

    Raises:
      CheckpointError: its tensors do not fit its settings.
    """
    settings, own = loaded.table["settings"], from_table(loaded.table["interface"])
    sizes = ActorCriticConfig(*(settings[name] for name in ("features", "lstm", "head") if name in settings))
    policy = build_actor_critic(sizes, own.codec, len(own.columns), settings["seed"])
    restore_policy(policy, loaded)
    policy = policy.to(task.codec.op.device)
    return learned_policy(policy, sizes.lstm, greedy, translate(own, task))
