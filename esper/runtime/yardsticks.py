"""What policies are held against beside those that hardly act: the best script known for a task, and what one would do
without growing: a static network of about the size that growing ends at. Tasks name both, if they have them.
"""

from typing import Any

import torch

from esper.engine import Engine
from esper.kasmina.host import Host
from esper.leyline.actions import Blend
from esper.runtime.build import make
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Scene
from esper.simic.rewards import RewardMode
from esper.simic.utility import utility
from esper.tamiyo import scripted
from esper.tamiyo.policies import Policy, from_mask

STATIC = "static"
"""First word of a static network's name in tables."""


def best_script(scene: Scene) -> list[Policy]:
    """The script that the task names, if its seed is on offer here."""
    try:
        return [growing(scene, scene.task.script)]
    except ValueError:
        return []


def growing(scene: Scene, kind: str) -> Policy:
    """The script that grows a kind of seed wherever there is room, by a sigmoid or the first blend on offer.

    Raises:
      ValueError: no such seed can be germinated.
    """
    blends = scene.engine.config.blends
    blend = Blend.SIGMOID if Blend.SIGMOID in blends else blends[0]
    return from_mask(f"grow {kind}", scripted.grow(scene.engine.codec, kind, blend))


def static_network(scene: Scene, seed: int) -> list[Outcome]:
    """The static network that the task names, if any, trained on as many samples as the scene's hosts; none beside a
    reward of one's own, which need not know what to do without slots.

    Its parameters beyond those of the scene's host count as added, so that J has one meaning in the whole table. It has
    no return: nobody decided anything.
    """
    host, grows = scene.task.rival, scene.engine.structure.host
    if host is None or not isinstance(scene.mode, RewardMode):
        return []
    engine = _engine(scene, host)
    waiting = from_mask(f"{STATIC} {host.name}", scripted.wait(engine.codec))
    outcome = rollout(engine, waiting, seed, scene.mode, scene.params)[1]
    added = outcome.added + host.num_params - grows.num_params
    worth = utility(outcome.test_accuracy, added, grows.num_params, scene.params.price.cpu())
    unpaid = torch.full_like(outcome.total_reward, torch.nan)
    return [outcome._replace(added=added, utility=worth, total_reward=unpaid)]


def _engine(scene: Scene, host: Host) -> Engine:
    """The scene's engine, but for the network: other numbers of hosts apply to it as well."""
    played, rules = scene.engine, scene.rules
    numbers: dict[str, Any] = dict(rules.engine) | {"horizon": played.config.horizon, "slots": ()}
    task, backend = scene.task._replace(host=host), "eager" if played.backend.name == "eager" else "auto"
    return make(task, played.config.num_envs, played.data.train.inputs.device, backend, **numbers)
