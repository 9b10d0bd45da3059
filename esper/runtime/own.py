"""What users wrote themselves, by its place: ``py:module:name`` wherever a task, a reward or a policy is named.

A module is imported because the command names it. A name that a run or a file of settings recorded is not reason
enough, since they may be a stranger's: see ``recorded``.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor

from esper.engine import Engine
from esper.leyline.config import ConfigError
from esper.runtime.rollout import policy_input
from esper.simic.reward_terms import EnvStep
from esper.simic.rewards import OwnReward, RewardMode, RewardParams, reward
from esper.tamiyo.policies import Decision, Policy, PolicyInput
from esper.utils import rng
from esper.utils.documents import shown

PREFIX = "py:"


NAMES = ("task", "room_for", "reward", "policy")
"""Settings that may name something of the user's own."""


def is_own(name: str) -> bool:
    """Whether a name is a module's and a thing's in it."""
    return name.startswith(PREFIX)


def load(place: str, name: str) -> Any:
    """The thing that a name means; its module is imported, from the working directory or wherever Python looks.

    Args:
      place: what messages call the setting, such as ``--task``.
      name: ``py:module:name``.

    Raises:
      ConfigError: not of that form, no such module or name, or the module cannot be imported; one line.
    """
    module, colon, attribute = name.removeprefix(PREFIX).partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise ConfigError(f"{place} = {name!r}: expected {PREFIX}module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a module does while it is imported
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{place} = {name!r}: {said[:200]}; expected a module that can be imported") from None
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{place} = {name!r}: {module} has no {attribute!r}; expected a name that it has{hint}")
    return getattr(found, attribute)


def called(place: str, name: str, function: Callable[..., Any], *arguments: Any, doing: str = "") -> Any:
    """What a user's own function gives.

    Args:
      place, name: as in ``load``.
      function: what was loaded.
      arguments: what it is called with.
      doing: what a message says of the call, if not how many arguments it had.

    Raises:
      ConfigError: it cannot be called so, or fails; one line, with its own words. Esper's errors pass.
    """
    try:
        return function(*arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever a function does
        doing = doing or f"called with {len(arguments)} argument{'s' * (len(arguments) != 1)}"
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{place} = {name!r}: {doing}: {said[:200]}") from error


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


def recorded(place: str, name: str, source: str = "the run") -> str:
    """A name, or names with commas between, that a run or a file recorded, if it asks for nothing to be imported.

    Raises:
      ConfigError: it does; the line says how the command names it.
    """
    if any(is_own(part) for part in name.split(",")):
        raise ConfigError(f"{place}: {source} recorded {name!r}, which imports a module; expected {place} {name}")
    return name


def expect_nothing_imported(values: Mapping[str, Any], path: str) -> None:
    """Raise ``ConfigError`` if a file of settings, which may be a stranger's, asks for a module."""
    for name in NAMES:
        recorded(f"--{name.replace('_', '-')}", str(values.get(name, "")), path)
