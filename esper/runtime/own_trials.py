"""Rewards, policies and tasks of the user's own, watched while they run and tried before anything is written."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.host import Host
from esper.leyline.config import ConfigError
from esper.runtime.own import PREFIX, called, is_own, load
from esper.runtime.rollout import policy_input
from esper.runtime.tasks import Task
from esper.simic.reward_terms import EnvStep
from esper.simic.rewards import OwnReward, RewardMode, RewardParams, reward
from esper.tamiyo.policies import Decision, Policy, PolicyInput
from esper.utils import rng
from esper.utils.documents import shown


def check_task(name: str, task: Task) -> None:
    """What of a task's own is not looked at before an evaluation.

    Raises:
      ConfigError: its script, its rival or its rewards; one line.
    """
    kinds, rival, host = [each.name for each in task.blueprints], task.rival, task.host
    if not isinstance(task.rewards, Mapping) or "gamma" in task.rewards:
        raise ConfigError(f"task {name!r}: rewards: expected numbers by name, but for gamma, which is --gamma")
    if task.script and task.script not in kinds:
        raise ConfigError(f"task {name!r}: script = {task.script!r}: expected one of {', '.join(kinds)}")
    if rival is not None and not isinstance(rival, Host):
        raise ConfigError(f"task {name!r}: rival: found a {type(rival).__name__}; expected a Host")
    if rival is not None and (rival.input_shape, rival.num_outputs) != (host.input_shape, host.num_outputs):
        found = f"{rival.input_shape} to {rival.num_outputs} outputs"
        expected = f"{host.input_shape} to {host.num_outputs}, as the host's are"
        raise ConfigError(f"task {name!r}: rival: maps {found}; expected {expected}")


def own_reward(name: str, function: Callable[..., Any]) -> OwnReward:
    """A reward of the user's own that says in one line what is wrong with what it gives.

    Finite it need not be: a network may diverge, and what is not finite teaches nothing. Its terms are named alike in
    every step.
    """
    named = list[Any]()

    def earned(step: EnvStep) -> dict[str, Tensor]:
        terms = called("--reward", name, function, step)
        shape = step.after.epoch.shape
        good = isinstance(terms, dict) and terms and all(isinstance(key, str) for key in terms)
        if not good or not all(_is_real(term, shape) for term in terms.values()):
            found = {key: _kind(term) for key, term in terms.items()} if isinstance(terms, dict) else _kind(terms)
            raise ConfigError(f"--reward = {name!r}: gave {found}; expected a dict of names to tensors {list(shape)}")
        if named and named != list(terms):
            raise ConfigError(f"--reward = {name!r}: gave {list(terms)}; expected {named} as in the first step")
        named[:] = terms
        return cast(dict[str, Tensor], terms)

    return earned


def own_policy(engine: Engine, place: str, name: str) -> Policy:
    """A policy of the user's own: what their function of the engine returns. It has decided once, on trial.

    Returns:
      the policy, which says in one line what is wrong with what it does.

    Raises:
      ConfigError: the name means no such function, or it fails, or the policy's first decision does.
    """
    if not is_own(name):
        raise ConfigError(f"{place} = {name!r}: expected {PREFIX}module:name")
    found = load(place, name)
    made = callable(found) and not isinstance(found, Policy)
    policy = called(place, name, found, engine) if made else found
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"{place} = {name!r}: found a {type(policy).__name__}; expected a function from an engine to a Policy"
        )
    policy, count = _watched(place, name, policy), engine.config.num_envs
    policy.act(policy.init(count), policy_input(engine, engine.init(0), rng.fold_in(rng.key(0), torch.arange(count))))
    return policy


def _watched(place: str, name: str, policy: Policy) -> Policy:
    def init(num_envs: int) -> Any:
        return called(place, name, policy.init, num_envs, doing="init")

    def act(memory: Any, seen: PolicyInput) -> tuple[Any, Decision]:
        gave, count = called(place, name, policy.act, memory, seen, doing="act"), seen.mask.shape[0]
        decision = gave[1] if isinstance(gave, tuple) and len(gave) == 2 else gave
        action = decision.action if isinstance(decision, Decision) else decision
        sound = isinstance(action, Tensor) and action.dtype == torch.int64 and action.shape == (count,)
        if decision is gave or action is decision or not sound:
            expected = f"its memory and a Decision of an int64 tensor [{count}]"
            raise ConfigError(f"{place} = {name!r}: act gave {_kind(action)}; expected {expected}")
        return gave

    return Policy(name, init, act)


@torch.no_grad()
def try_step(engine: Engine, mode: RewardMode | OwnReward, params: RewardParams, names: tuple[str, str]) -> None:
    """Wait for one step and reward it, so that what is the user's own fails before anything is written.

    Args:
      engine: what is played.
      mode, params: the reward.
      names: of the task and of the reward.

    Raises:
      ConfigError: the step or its reward fails, or the reward is not finite.
    """
    before = engine.init(0)
    after, event = called("task", names[0], engine.step, before, torch.zeros_like(before.epoch), doing="first step")
    terms = reward(mode, params, engine.structure, before, after, event).terms
    broken = [f"{name} {shown(term.tolist())}" for name, term in terms.items() if not bool(term.isfinite().all())]
    if broken:
        raise ConfigError(
            f"--reward = {names[1]!r}: gave {', '.join(broken)} after a first step; expected finite numbers"
        )


def _is_real(term: Any, shape: torch.Size) -> bool:
    return isinstance(term, Tensor) and term.shape == shape and not term.is_complex()


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
