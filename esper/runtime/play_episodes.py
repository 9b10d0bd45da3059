"""Playing episodes to be recorded: each a function of the seed and its own number, whoever plays it beside which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.structure import seed_sizes
from esper.leyline.state import State
from esper.nissa.trace import Trace, record, stack
from esper.runtime.mix import Player, Share, log_chances, who_plays
from esper.runtime.rollout import ROLLOUT_STREAM, policy_input
from esper.runtime.run_facts import resolved
from esper.runtime.scene import Scene
from esper.simic.episodes.columns import FLAG, FLOAT, EpisodeColumn, columns_for
from esper.simic.rewards import reward
from esper.simic.utility import own_price
from esper.tamiyo.baselines import legal_log_probs
from esper.tamiyo.interface import to_table
from esper.tamiyo.policies import PolicyInput
from esper.utils import rng

EXPLORATION_STREAM = 0x6E0A
"""Folded into the episode's key for what is explored."""

TRACED = {
    "op": ("|i1", False),
    "slot": ("<i2", False),
    "kind": ("<i2", False),
    "blend": ("|i1", False),
    "failed": ("<i2", False),
    "verdict": ("|i1", False),
    "rolled_back": (FLAG, False),
    "during": ("|i1", True),
    "stage": ("|i1", True),
    "blueprint": ("<i2", True),
    "alpha": (FLOAT, True),
    "effect": (FLOAT, True),
    "effect_error": (FLOAT, True),
}
"""Fields of ``Trace`` that are kept of every step: type, and whether there is a number for each slot."""

MEASURED = ("test_accuracy", "test_loss", "price")
"""Of every episode: pp and nats of the network at its end on the test part, pp per e-fold of parameters."""


ELSEWHERE = ("num_envs", "deterministic", "horizon", "recompute", "decision_history")
"""Fields of ``Config`` that are no facts of all episodes, since no bit depends on them, or are
among them under their own name, or as names of columns."""


class Mix(NamedTuple):
    """Who plays, and how.

    Attributes:
      shares: of the policies.
      players: the same policies, for the scene.
      seed: of the environments and of all draws.
      explore: probability that a decision is drawn as ``random`` draws, whoever's turn it is.
      indices: of the policies in the dataset's manifest.
    """

    shares: Sequence[Share]
    players: Sequence[Player]
    seed: int
    explore: float
    indices: Sequence[int]


def columns_of(scene: Scene, terms: int) -> list[EpisodeColumn]:
    """The columns of a dataset of a scene's episodes; terms is how many a reward has."""
    interface, slots = scene.engine.interface, len(scene.engine.structure.slots)
    traced = [EpisodeColumn(name, "step", kind, (slots,) * each) for name, (kind, each) in TRACED.items()]
    more = [EpisodeColumn("entropy", "step", FLOAT), *traced]
    more += [EpisodeColumn(name, "episode", FLOAT) for name in MEASURED]
    return columns_for(len(interface.columns), interface.codec.size, terms, more)


@torch.no_grad()
def terms_of(scene: Scene) -> list[str]:
    """The names of what a scene's reward is made of, by a step of it."""
    engine = scene.engine
    state = engine.init(0)
    after, event = engine.step(state, torch.zeros_like(state.epoch))
    return list(reward(scene.mode, scene.params, engine.structure, state, after, event).terms)


def facts_of(scene: Scene, terms: Sequence[str]) -> dict[str, Any]:
    """What all episodes of a scene have in common; see ``EpisodesManifest``."""
    numbers, engine = resolved(scene), scene.engine
    config = {name: value for name, value in numbers["config"].items() if name not in ELSEWHERE}
    return {
        "task": scene.rules.task,
        "terms": list(terms),
        "horizon": engine.config.horizon,
        "end": "cut at the horizon: truncated, never terminated",
        "reward": scene.rules.reward,
        "gamma": scene.rules.gamma,
        "interface": to_table(engine.interface),
        "slots": list(engine.structure.slot_names),
        "host_params": engine.structure.host.num_params,
        "tokens": engine.data.has_tokens,
        **{name: numbers[name] for name in ("host", "blueprints", "data", "hypers", "rewards")},
        "config": config,
    }


@torch.no_grad()
def play_episodes(scene: Scene, mix: Mix, first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Play some episodes.

    Args:
      scene: of E environments.
      mix: who plays.
      first: number of the first episode.
      count: how many, 1 to E. The others of the E are played along and left out.

    Returns:
      step columns [count * T, ...] and episode columns [count, ...]. Law: where the engine is strict, an episode's bits
      depend on the seed and its number alone.
    """
    engine, horizon = scene.engine, scene.engine.config.horizon
    numbers = torch.arange(first, first + engine.config.num_envs)
    state = engine.init(mix.seed, numbers)
    device = state.key.device
    keys = rng.fold_in(rng.fold_in(rng.key(mix.seed), ROLLOUT_STREAM), numbers).to(device)
    turn = torch.tensor(who_plays(mix.shares, mix.seed, numbers.tolist()), device=device)
    memories = {index: mix.players[index].policy.init(len(numbers)) for index in sorted(set(turn.tolist()))}
    rows, frames, names = list[dict[str, Tensor]](), list[dict[str, Tensor]](), tuple[str, ...]()
    for number in range(horizon):
        seen = policy_input(engine, state, rng.fold_in(keys, number))
        memories, choice = _decide(scene, mix, memories, turn, seen)
        before = state
        state, event = engine.step(before, choice["action"])
        earned = reward(scene.mode, scene.params, engine.structure, before, state, event)
        frames.append(record(engine.codec, state, event, earned.terms, earned.total))
        names = tuple(earned.terms)
        sizes = seed_sizes(engine.structure, state.slots).sum(1)
        rows.append({"observation": seen.observation, "action_mask": seen.mask, "seed_params": sizes, **choice})
    trace = stack(frames, names, [])
    table = {name: torch.stack([row[name] for row in rows], 1).cpu() for name in rows[0]}
    table["policy"] = torch.tensor(mix.indices)[turn.cpu()].unsqueeze(1).expand(-1, horizon)
    return step_columns(table, trace, count), end_columns(scene, mix.seed, state, numbers, count)


def _decide(
    scene: Scene, mix: Mix, memories: dict[int, Any], turn: Tensor, seen: PolicyInput
) -> tuple[dict[int, Any], dict[str, Tensor]]:
    """One decision in every environment, by whose turn it is, or explored; and how likely it was.

    A policy is not told that its decision was replaced: it sees what came of it.
    """
    whatever = legal_log_probs(scene.engine.codec, seen.mask)
    action = torch.zeros_like(turn)
    chances = torch.full_like(whatever, torch.nan)
    after = {}
    for index, memory in memories.items():
        after[index], decision = mix.players[index].policy.act(memory, seen)
        told, mine = log_chances(mix.players[index], decision, scene, seen.mask), turn == index
        action = torch.where(mine, decision.action, action)
        if told is not None:
            chances = torch.where(mine.unsqueeze(1), told.to(chances.dtype).exp(), chances)
    if mix.explore:
        coin, which = rng.split(rng.fold_in(seen.key, EXPLORATION_STREAM)).unbind(-2)
        explores = rng.uniform(coin, ()) < mix.explore
        action = torch.where(explores, rng.categorical(which, whatever), action)
        chances = (1 - mix.explore) * chances + mix.explore * whatever.exp()
    surprise = torch.where(chances == 0, 0.0, -chances * chances.log())
    probability = chances.gather(1, action.unsqueeze(1)).squeeze(1)
    return after, {"action": action, "probability": probability, "entropy": surprise.sum(1)}


def step_columns(table: dict[str, Tensor], trace: Trace, count: int) -> dict[str, Any]:
    """Step columns of the first environments, episode by episode.

    Args:
      table: those that no trace has, [E, T, ...]: "observation", "action_mask", "action", "probability", "entropy",
        "policy" and "seed_params".
      trace: of the same decisions, [T, E].
      count: of the environments.
    """
    named = {"refusal": "refusal", "val_accuracy": "accuracy", "val_loss": "loss", "reward": "reward", "terms": "terms"}
    traced = {name: getattr(trace, field) for name, field in (named | {name: name for name in TRACED}).items()}
    whole = table | {name: value.transpose(0, 1) for name, value in traced.items()}
    ends = torch.zeros(trace.action.T.shape, dtype=torch.bool)
    whole |= {"terminated": ends, "truncated": ends.index_fill(1, torch.tensor([trace.length - 1]), True)}
    return {name: _numpy(value[:count].flatten(0, 1)) for name, value in whole.items()}


def end_columns(scene: Scene, seed: int, state: State, numbers: Tensor, count: int) -> dict[str, Any]:
    """Episode columns of the first ``count`` environments, whose episodes of one seed ended in a state."""
    engine = scene.engine
    test, horizon = engine.test(state), engine.config.horizon
    columns = {
        "last_observation": engine.observe(state),
        "last_mask": engine.mask(state),
        "number": numbers,
        "seed": torch.full_like(numbers, seed),
        "length": torch.full_like(numbers, horizon),
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "price": own_price(scene.params.price, state).expand(len(numbers)),
    }
    return {name: _numpy(value[:count]) for name, value in columns.items()}


def _numpy(value: Tensor) -> np.ndarray:
    found: np.ndarray = value.detach().cpu().contiguous().numpy()
    return found
