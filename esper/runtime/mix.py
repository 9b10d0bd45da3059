"""Mixes: several policies that share the episodes of a dataset, and how likely what they do is.

``wait:0.25,random:0.25,script:conv8x2 in 1 from 12:0.25,runs/digits:0.25`` names policies and their shares: one of
``NAMED``; ``script:`` and a blueprint, as ``Script.name`` has it behind "grow"; ``py:module:name``, one of your own;
or a run directory.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.config import Determinism
from esper.leyline.words import as_meant
from esper.runtime.own import is_own
from esper.runtime.own_trials import own_policy
from esper.runtime.policies import FIRST, NAMED
from esper.runtime.policy_checkpoint import load_policy, load_run_to_play
from esper.runtime.scene import Scene
from esper.runtime.scripts import play
from esper.runtime.task import Script
from esper.tamiyo.baselines import legal_log_probs
from esper.tamiyo.policies import Decision, Policy
from esper.urza.checkpoint import Checkpoint
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError

SCRIPT = "script:"

PLACE = "--policies"

CERTAIN = ("heuristic", "wait", "gradient", FIRST, "ucb")
"""Of ``NAMED``, those that draw nothing: what they do has probability 1. ``random`` tells what it draws from."""

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, to the next odd number."""

WORDS = re.compile(r"(?P<kind>\S+)(?: in (?P<slots>\d+))?(?: from (?P<start>\d+))?(?: by (?P<blend>\w+))?")


class Share(NamedTuple):
    """A policy by name, and which part of the episodes it plays; the shares of a mix add up to 1."""

    name: str
    share: float


class Player(NamedTuple):
    """A policy of a mix.

    Attributes:
      name: as it was asked for.
      policy: what decides.
      kind: "certain", "told" or "untold": whether it draws, and whether it tells from what.
      digest: of a run's parameters; empty of other policies.
    """

    name: str
    policy: Policy
    kind: str
    digest: str = ""


def shares_of(text: str) -> list[Share]:
    """The names and shares of a mix.

    Raises:
      SettingsError: a share that is no positive number, a name twice, or shares that do not add up to 1.
    """
    found = list[Share]()
    for part in text.split(","):
        name, _, share = part.strip().rpartition(":")
        if not re.fullmatch(r"\d*\.?\d+", share) or not float(share) or not name:
            raise SettingsError(f"{PLACE}: {part.strip()!r}: expected NAME:SHARE with a share above 0")
        found.append(Share(name, float(share)))
    names = [each.name for each in found]
    total = sum(each.share for each in found)
    if len(set(names)) < len(names):
        raise SettingsError(f"{PLACE}: {next(n for n in names if names.count(n) > 1)!r} stands twice; expected once")
    if abs(total - 1) > 1e-6:
        raise SettingsError(f"{PLACE}: the shares add up to {total:g}; expected 1")
    return found


def players_of(scene: Scene, shares: Sequence[Share], which: str, greedy: bool) -> list[Player]:
    """The policies of a mix, for a scene.

    Args:
      scene: what is played.
      shares: from ``shares_of``.
      which: checkpoint of runs.
      greedy: learned policies take their likeliest action instead of drawing one.

    Raises:
      SettingsError: no such policy or seed.
      CheckpointError: a run cannot be read.
      ConfigError: a policy of one's own cannot be used.
    """
    return [_player(scene, each.name, which, greedy) for each in shares]


def _player(scene: Scene, name: str, which: str, greedy: bool) -> Player:
    if name in NAMED:
        kind = "certain" if name in CERTAIN else "told" if name == "random" else "untold"
        return Player(name, NAMED[name](scene, None), kind)
    if name.startswith(SCRIPT):
        return Player(name, play_script(scene, name), "certain")
    if is_own(name):
        return Player(name, own_policy(scene.engine, PLACE, name), "untold")
    folder = user_path(name)
    if not folder.exists():
        known = f"{', '.join(NAMED)}, {SCRIPT}BLUEPRINT, py:module:name or a run directory"
        raise SettingsError(f"{PLACE}: {name!r}: expected {known}")
    loaded, strict = load_run_to_play(folder, which), scene.engine.config.deterministic is Determinism.STRICT
    policy = load_policy(loaded, scene.engine.interface, greedy, strict)
    return Player(name, policy, "certain" if greedy else "told", _digest(loaded))


def play_script(scene: Scene, name: str) -> Policy:
    """The script of a name, as in ``script:conv8x2 in 1 from 12 by linear``.

    Raises:
      SettingsError: not of that form, or no such seed can be germinated.
    """
    found = WORDS.fullmatch(name.removeprefix(SCRIPT))
    if found is None:
        raise SettingsError(f"{PLACE}: {name!r}: expected {SCRIPT}BLUEPRINT [in SLOTS] [from EPOCH] [by BLEND]")
    try:
        blend = None if found["blend"] is None else as_meant("blends", found["blend"])[0]
        return play(scene.engine, Script(found["kind"], int(found["slots"] or 0), int(found["start"] or 0), blend))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{PLACE}: {name!r}: {error}") from None


def _digest(loaded: Checkpoint) -> str:
    digest = hashlib.sha256()
    for name in sorted(loaded.tensors):
        if name.startswith("policy."):
            digest.update(name.encode() + loaded.tensors[name].numpy().tobytes())
    return digest.hexdigest()


def who_plays(shares: Sequence[Share], seed: int, numbers: Sequence[int]) -> list[int]:
    """Which policy of a mix plays each episode, by index.

    A Weyl sequence: episode i takes the policy at fractional part of i / golden ratio, moved by the seed, of the
    shares laid end to end. So of n episodes in a row each policy has its share to within O(log n) / n, whatever n.
    """
    edges, total = list[int](), 0.0
    for each in shares:
        total += each.share
        edges.append(round(total * 2**64))
    edges[-1] = 2**64
    places = [((number + 1) * GOLDEN + seed * GOLDEN * GOLDEN) % 2**64 for number in numbers]
    return [next(index for index, edge in enumerate(edges) if place < edge) for place in places]


def log_chances(player: Player, decision: Decision, scene: Scene, mask: Tensor) -> Tensor | None:
    """What a policy drew its decisions from: log-probabilities [E, A]; None where it does not tell.

    Args:
      player: whose decision it is.
      decision: of all environments.
      scene: what is played.
      mask: bool [E, A]; legal actions.
    """
    if player.kind == "certain":
        nothing = torch.full(mask.shape, -torch.inf, device=mask.device)
        return nothing.scatter(1, decision.action.unsqueeze(1), 0.0)
    if player.name == "random":
        return legal_log_probs(scene.engine.codec, mask)
    return None if decision.diagnostics is None else decision.diagnostics.log_probs
