"""What a training run is built of, before anything is played: scenes, what the policy sees and says, the learner."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from esper.leyline.hypers import HyperParams, numbers
from esper.runtime.build import find_device
from esper.runtime.demonstrations import scripts_of
from esper.runtime.intake import Founding, expect_used, founding
from esper.runtime.learner import make_learner
from esper.runtime.players import is_graph, shared_interface
from esper.runtime.policies import policies_of
from esper.runtime.resume import Origin
from esper.runtime.runs import places
from esper.runtime.scene import Rules, Scene, build_scene, expect_numbers_for
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo import Learner
from esper.simic.ranks import Ranks, Shard, shard_of
from esper.simic.rewards import RewardParams
from esper.tamiyo.decision_columns import decisions_seen
from esper.tamiyo.interface import Interface
from esper.utils.settings import Entry, SettingsError


class RunParts(NamedTuple):
    """A run that could begin.

    Attributes:
      folder: the run directory.
      source: what it goes on from, if anything.
      device: where everything lives.
      found: its blueprints.
      scenes: what is played, task by task; of this rank, where there are several.
      interface: what the policy sees and says.
      learner: as it starts.
      said: lines for people.
    """

    folder: Path
    source: Origin | None
    device: torch.device
    found: Founding
    scenes: list[Scene]
    interface: Interface
    learner: Learner
    said: tuple[str, ...]


def build(settings: TrainSettings, ranks: Ranks) -> RunParts:
    """Build everything that a run needs. All ranks of a job do so, and wait for each other.

    Args:
      settings: everything.
      ranks: of the job.

    Raises:
      SettingsError, ConfigError, CheckpointError, DatasetError: one line with the place, the value and what is allowed.
    """
    folder, source = places(settings)
    device = find_device(settings.device, "--device")
    found = founding(settings, source)
    scenes = [_scene(replace(rules, documents=found.documents), settings, ranks, device) for rules in settings.rules()]
    said = (*expect_used(found.documents, scenes), *found.said)
    for scene in scenes:
        _expect_what_comes(settings, scene, ranks)
    interface = shared_interface(settings, scenes)
    learner = make_learner(settings, scenes, interface, source is None, ranks)
    ranks.sum(torch.zeros(1, device=device))  # nobody writes before all have looked at the run directory
    return RunParts(folder, source, device, found, scenes, interface, learner, said)


def _scene(rules: Rules, settings: TrainSettings, ranks: Ranks, device: torch.device) -> Scene:
    """What this rank plays of a task; its rules stay those of all environments."""
    shard = shard_of(settings.num_envs, ranks)
    if not shard.size:
        raise SettingsError(f"--num-envs = {settings.num_envs}: {ranks.size} ranks; expected an environment for each")
    scene = build_scene(_of_shard(rules, shard), shard.size, settings.backend, device)
    return scene._replace(rules=rules)


def _of_shard(rules: Rules, shard: Shard) -> Rules:
    """Rules whose numbers with a value for every environment have those of a shard's."""
    if shard.size == shard.total:
        return rules

    def part(table: Mapping[str, Entry], known: Mapping[str, object]) -> dict[str, Entry]:
        rows = slice(shard.first, shard.first + shard.size)
        swept = {n for n, v in table.items() if n in known and isinstance(v, tuple) and len(v) == shard.total}
        return {name: value[rows] if name in swept else value for name, value in table.items()}  # type: ignore[index]

    engine, rewards = part(rules.engine, numbers(HyperParams)), part(rules.rewards, numbers(RewardParams))
    return replace(rules, engine=engine, rewards=rewards)


def _expect_what_comes(settings: TrainSettings, scene: Scene, ranks: Ranks) -> None:
    """Raise where what a task will be asked for would fail then."""
    if settings.demonstrations:
        scripts_of(scene.task)
    policies_of(scene, None, greedy=False)
    if is_graph(settings) and (count := decisions_seen(scene.engine.columns)):
        raise SettingsError(
            f"--engine decision_history={count}: a policy of --policy-network graph sees no decisions; expected 0"
        )
    if settings.record and ranks.size > 1:
        raise SettingsError(f"--record true: {ranks.size} ranks, each with some environments; expected one rank")
    if ranks.size == 1:
        expect_numbers_for(scene, settings.eval_envs, "--eval-envs")
    elif settings.eval_envs not in (0, settings.num_envs) and _is_swept(scene):
        raise SettingsError(
            f"--eval-envs = {settings.eval_envs}: a number has a value for every environment; expected "
            f"{settings.num_envs}, or 0"
        )


def _is_swept(scene: Scene) -> bool:
    return any(number.dim() for table in (scene.engine.hypers, scene.params) for number in table.values())
