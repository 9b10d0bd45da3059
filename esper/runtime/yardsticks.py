"""What policies are held against beside those that hardly act: the best script known for a task, and what one would do
without growing: a static network of about the size that growing ends at. Tasks name both, if they have them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.host import Host
from esper.runtime.build import make
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Scene
from esper.runtime.scripts import play, waiting
from esper.runtime.task import Script
from esper.simic.rewards import RewardMode
from esper.simic.utility import utility
from esper.tamiyo import scripted
from esper.tamiyo.policies import Policy, from_mask

STATIC = "static"
"""First word of a static network's name in tables."""


class Scored(Protocol):
    """What a policy is scored by: fields of ``Outcome``, [E] each."""

    @property
    def policy(self) -> str:
        """Its name."""

    @property
    def test_accuracy(self) -> Tensor:
        """At the end on the test part, pp."""

    @property
    def val_accuracy(self) -> Tensor:
        """The last validation accuracy, pp."""

    @property
    def utility(self) -> Tensor:
        """J on the test part, pp."""

    @property
    def total_reward(self) -> Tensor:
        """The undiscounted return."""


def seen_utility(outcome: Scored) -> Tensor:
    """J on the validation samples, [E], pp: what choices are made by."""
    return outcome.utility - outcome.test_accuracy + outcome.val_accuracy


def best_script(scene: Scene) -> list[Policy]:
    """The script that the task names, if its seed is on offer here."""
    try:
        return [growing(scene, scene.task.script)]
    except ValueError:
        return []


def task_scripts(scene: Scene) -> list[Policy]:
    """Waiting and the scripts that the task names, as far as their seeds are on offer here; none if it names none."""
    found = list[Policy]()
    for script in scene.task.scripts:
        try:
            found.append(play(scene.engine, script))
        except ValueError:
            continue
    return [waiting(scene.engine), *found] if found else []


def hindsight(outcomes: Sequence[Scored], scripts: Sequence[str]) -> Tensor:
    """J on the test part of every environment's best script, [E], pp; which is best, its own validation tells.

    Args:
      outcomes: of policies in the same environments.
      scripts: names of those that are scripts.
    """
    among = [each for each in outcomes if each.policy in scripts]
    seen = torch.stack([seen_utility(each) for each in among])
    best = seen.nan_to_num(nan=-torch.inf).argmax(0, keepdim=True)
    return torch.stack([each.utility for each in among]).gather(0, best).squeeze(0)


def score(utility: Tensor, waited: Tensor, ceiling: Tensor) -> float | None:
    """Sum(J - J_wait) / sum(J_ceiling - J_wait), of the environments in which all were measured.

    Args:
      utility, waited, ceiling: J, [E], of a policy, of waiting, and of the best script in hindsight.

    Returns:
      0 as good as waiting, 1 as good as the best script of each environment; None where hindsight gains nothing.
    """
    measured = ~(utility + waited + ceiling).isnan()
    gained, most = (float((each - waited)[measured].double().sum()) for each in (utility, ceiling))
    return gained / most if most > 0 else None


def growing(scene: Scene, kind: str) -> Policy:
    """The script that grows a kind of seed wherever there is room, by a sigmoid or the first blend on offer.

    Raises:
      ValueError: no such seed can be germinated.
    """
    return play(scene.engine, Script(kind))


def static_network(scene: Scene, seed: int) -> list[Outcome]:
    """The static network that the task names, if any, trained on as many samples as the scene's hosts; none beside a
    reward of one's own, which need not know what to do without slots.

    Its parameters beyond those of the scene's host count as added, so that J has one meaning in the whole table. It has
    no return: nobody decided anything.
    """
    host, grows = scene.task.rival, scene.engine.structure.host
    if host is None or not isinstance(scene.mode, RewardMode):
        return []
    engine = static_engine(scene, host)
    idle = from_mask(f"{STATIC} {host.name}", scripted.wait(engine.codec))
    outcome = rollout(engine, idle, seed, scene.mode, scene.params)[1]
    added = outcome.added + host.num_params - grows.num_params
    worth = utility(outcome.test_accuracy, added, grows.num_params, outcome.price)
    unpaid = torch.full_like(outcome.total_reward, torch.nan)
    return [outcome._replace(added=added, utility=worth, total_reward=unpaid)]


def static_engine(scene: Scene, host: Host) -> Engine:
    """The scene's engine, but for the network, which has no slots: other numbers of hosts apply to it as well."""
    played, rules = scene.engine, scene.rules
    numbers: dict[str, Any] = dict(rules.engine) | {"horizon": played.config.horizon, "slots": ()}
    task, backend = scene.task._replace(host=host), "eager" if played.backend.name == "eager" else "auto"
    return make(task, played.config.num_envs, played.data.train.inputs.device, backend, **numbers)
