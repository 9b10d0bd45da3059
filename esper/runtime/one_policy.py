"""A scene with the one policy that is to be played in it, by the settings of commands that tell of one environment."""

from dataclasses import dataclass
from typing import NamedTuple

from esper.runtime.own import is_own
from esper.runtime.own_trials import own_policy
from esper.runtime.policies import NAMED, policies_of
from esper.runtime.scene import Scene, SceneSettings, build_scene
from esper.tamiyo.policies import Policy
from esper.tezzeret.choose import CHOICES
from esper.urza.checkpoint import Checkpoint
from esper.utils.settings import SettingsError, setting

POLICIES = ("auto", "learned", *NAMED)

WHO = f"who decides: {', '.join(POLICIES)}, or py:module:name; auto = learned with a run, heuristic without"


@dataclass(frozen=True)
class OneSettings(SceneSettings):
    """Settings of commands that play one policy, and tell of one environment."""

    env: int = setting(0, "which environment; those before it are played along", low=0, high=65535)
    policy: str = setting("auto", WHO)
    backend: str = setting("auto", "how networks are run", choices=CHOICES)


class Played(NamedTuple):
    """What is played.

    Attributes:
      loaded: the run's checkpoint, if there is a run.
      name: of the policy, as it can be asked for.
      scene: the task and its engine.
      policy: what decides.
    """

    loaded: Checkpoint | None
    name: str
    scene: Scene
    policy: Policy


def one_policy(settings: OneSettings) -> Played:
    """The scene of some settings, and their policy.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, or a name or number is not allowed.
    """
    name, loaded = settings.policy, settings.loaded()
    name = name if name != "auto" else "heuristic" if loaded is None else "learned"
    if name == "learned" and loaded is None:
        raise SettingsError("--policy learned: needs a run; expected --run DIRECTORY")
    if name not in POLICIES and not is_own(name):
        raise SettingsError(f"--policy = {name!r}: expected {', '.join(POLICIES)} or py:module:name")
    scene = build_scene(settings.rules(loaded), settings.env + 1, settings.backend, settings.device)
    if is_own(name):
        return Played(loaded, name, scene, own_policy(scene.engine, "--policy", name))
    named = [] if name == "learned" else [name]
    (policy,) = policies_of(scene, loaded if name == "learned" else None, settings.greedy, named)
    return Played(loaded, name, scene, policy)
