"""A scene with the one policy that is to be played in it, by the settings of commands that tell of one environment."""

from typing import NamedTuple

from esper.runtime.own import is_own
from esper.runtime.own_trials import own_policy
from esper.runtime.policies import NAMED, policies_of
from esper.runtime.scene import Scene, SceneSettings, build_scene
from esper.tamiyo.policies import Policy
from esper.urza.checkpoint import Checkpoint
from esper.utils.settings import SettingsError

POLICIES = ("auto", "learned", *NAMED)

HELP = f"who decides: {', '.join(POLICIES)}, or py:module:name; auto = learned with a run, heuristic without"


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


def one_policy(settings: SceneSettings, name: str, num_envs: int, backend: str) -> Played:
    """The scene of some settings, and a policy by its name.

    Args:
      settings: what is played.
      name: one of ``POLICIES``, or py:module:name.
      num_envs: environments E.
      backend: how networks are run.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, or a name or number is not allowed.
    """
    loaded = settings.loaded()
    name = name if name != "auto" else "heuristic" if loaded is None else "learned"
    if name == "learned" and loaded is None:
        raise SettingsError("--policy learned: needs a run; expected --run DIRECTORY")
    if name not in POLICIES and not is_own(name):
        raise SettingsError(f"--policy = {name!r}: expected {', '.join(POLICIES)} or py:module:name")
    scene = build_scene(settings.rules(loaded), num_envs, backend, settings.device)
    if is_own(name):
        return Played(loaded, name, scene, own_policy(scene.engine, "--policy", name))
    named = [] if name == "learned" else [name]
    (policy,) = policies_of(scene, loaded if name == "learned" else None, settings.greedy, named)
    return Played(loaded, name, scene, policy)
