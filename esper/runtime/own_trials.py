"""Rewards, policies and tasks of the user's own, watched while they run and tried before anything is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.host import Host
from esper.leyline.config import ConfigError
from esper.leyline.state import State, lock
from esper.runtime.own import PREFIX, called, is_own, load
from esper.runtime.rollout import policy_input
from esper.runtime.task import Task
from esper.simic.reward_terms import EnvStep
from esper.simic.rewards import OwnReward, RewardMode, RewardParams, reward
from esper.tamiyo.policies import Account, Decision, Diagnostics, Policy, PolicyInput
from esper.utils import rng
from esper.utils.documents import shown
from esper.utils.purity import PurityError, untouched

SEEN = ("params", "before", "after", "event")
"""What of an ``EnvStep`` a reward could write into."""


def check_task(name: str, task: Task) -> None:
    """What of a task's own is not looked at before an evaluation.

    Raises:
      ConfigError: its script, its rival or its rewards; one line.
    """
    kinds, rival, host = [each.name for each in task.blueprints], task.rival, task.host
    if not isinstance(task.rewards, Mapping) or "gamma" in task.rewards:
        raise ConfigError(f"task {name!r}: rewards: expected numbers by name, but for gamma, which is --gamma")
    for script in (task.script, *(each.kind for each in task.scripts)):
        if script and script not in kinds:
            raise ConfigError(f"task {name!r}: script = {script!r}: expected one of {', '.join(kinds)}")
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
        given = (step.params, step.before, step.after, step.event)
        with _only_read("--reward", name, dict(zip(SEEN, given, strict=True)), bits=not named):
            terms = called("--reward", name, function, step)
        epoch = step.after.epoch
        good = isinstance(terms, dict) and terms and all(isinstance(key, str) for key in terms)
        if not good or not all(_is_real(term, epoch.shape, epoch.device) for term in terms.values()):
            found = {key: _kind(term) for key, term in terms.items()} if isinstance(terms, dict) else _kind(terms)
            expected = f"a dict of names to tensors {list(epoch.shape)} on {epoch.device}"
            raise ConfigError(f"--reward = {name!r}: gave {found}; expected {expected}")
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
    tried = list[bool]()

    def init(num_envs: int) -> Any:
        return called(place, name, policy.init, num_envs, doing="init")

    def act(memory: Any, seen: PolicyInput) -> tuple[Any, Decision]:
        with _only_read(place, name, seen, bits=not tried):
            gave = called(place, name, policy.act, memory, seen, doing="act")
        tried.append(True)
        fault = _fault(gave, seen.mask)
        if fault is not None:
            raise ConfigError(f"{place} = {name!r}: act gave {fault}")
        return cast(tuple[Any, Decision], gave)

    return Policy(name, init, act)


def _fault(gave: Any, mask: Tensor) -> str | None:
    """What is wrong with what a policy gave, and what is expected, for a mask [E, A]; None if nothing is."""
    (count, size), place = mask.shape, mask.device
    if not isinstance(gave, tuple) or len(gave) != 2 or not isinstance(gave[1], Decision):
        return f"{_kind(gave)}; expected its memory and a Decision, as a pair"
    action, seen, account = gave[1]
    if not (isinstance(action, Tensor) and action.dtype == torch.int64 and _is_at(action, (count,), place)):
        return f"an action that is {_kind(action)}; expected int64 tensor [{count}] on {place}"
    if not (account is None or isinstance(account, Account)):
        return f"an account that is {_kind(account)}; expected None or Account"
    if seen is None:
        return None
    if not isinstance(seen, Diagnostics):
        return f"diagnostics that are {_kind(seen)}; expected None or Diagnostics"
    for field, value, shape in (("value", seen.value, (count,)), ("log_probs", seen.log_probs, (count, size))):
        if not (isinstance(value, Tensor) and value.is_floating_point() and _is_at(value, shape, place)):
            return f"{field} that is {_kind(value)}; expected floating tensor {list(shape)} on {place}"
    return None


@contextmanager
def _only_read(place: str, name: str, given: Any, bits: bool) -> Iterator[None]:
    """A context in which one's own function may not write into what it was given; see ``untouched``."""
    try:
        with untouched(f"{place} = {name!r}", given, bits):
            yield
    except PurityError as error:
        raise ConfigError(str(error)) from None


@torch.no_grad()
def try_step(engine: Engine, mode: RewardMode | OwnReward, params: RewardParams, names: tuple[str, str]) -> None:
    """Wait for a first and for a last step and reward them, so that what is the user's own fails before anything is
    written.

    Args:
      engine: what is played.
      mode, params: the reward.
      names: of the task and of the reward.

    Raises:
      ConfigError: a step or its reward fails, or the first reward is not finite.
    """
    before, last = engine.init(0), engine.config.horizon - 1
    after, terms = _step(engine, mode, params, names[0], before, "first step")
    broken = [f"{name} {shown(term.tolist())}" for name, term in terms.items() if not bool(term.isfinite().all())]
    if broken:
        raise ConfigError(
            f"--reward = {names[1]!r}: gave {', '.join(broken)} after a first step; expected finite numbers"
        )
    if last > 0:
        ending = lock(after.replace(epoch=torch.full_like(after.epoch, last)))
        _step(engine, mode, params, names[0], ending, "last step")


def _step(
    engine: Engine, mode: RewardMode | OwnReward, params: RewardParams, task: str, before: State, doing: str
) -> tuple[State, dict[str, Tensor]]:
    """The state after waiting, and the terms of the reward."""
    after, event = called("task", task, engine.step, before, torch.zeros_like(before.epoch), doing=doing)
    return after, reward(mode, params, engine.structure, before, after, event).terms


def _is_real(term: Any, shape: torch.Size, device: torch.device) -> bool:
    return isinstance(term, Tensor) and not term.is_complex() and _is_at(term, shape, device)


def _is_at(tensor: Tensor, shape: Sequence[int], device: torch.device) -> bool:
    return tensor.shape == tuple(shape) and tensor.device == device


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    place = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}{place}"
