"""``esper train --record``: a run's own episodes as datasets, as ``esper generate`` makes them; a round is a shard.

The datasets lie in the run directory, ``episodes`` of the first task, ``episodes-2`` and on of others. A round is on
the disk there before a checkpoint may have it behind it. A run that goes on takes back the rounds that its checkpoint
does not have, as it does with their lines in the metrics, and plays them again to the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase

from esper.nissa.trace import stack
from esper.runtime.machine import machine
from esper.runtime.play_episodes import columns_of, end_columns, facts_of, step_columns, terms_of
from esper.runtime.run_facts import versions
from esper.runtime.scene import Scene
from esper.runtime.step_recorder import BEFORE, StepRecorder
from esper.runtime.train_settings import TrainSettings
from esper.simic.episodes.shards import EpisodesError
from esper.simic.episodes.writer import EpisodesWriter, write_episodes
from esper.utils.documents import json_ready
from esper.utils.files import remove_folder

FOLDER = "episodes"

KIND = "train"
"""Of a part of the manifest whose episodes a run has played."""


class TaskEpisodes(NamedTuple):
    """The dataset of a task that a run trains on."""

    scene: Scene
    writer: EpisodesWriter
    place: int  # of the run's part in the manifest
    part: dict[str, Any]
    policy: int  # the learner's index in the manifest

    @torch.no_grad()
    def append(self, seed: int, number: int, recorder: StepRecorder, batch: TensorDictBase) -> None:
        """Put a round to the dataset; when this returns, it is on the disk.

        Args:
          seed: of the round's environments.
          number: rounds before it.
          recorder: what its steps told.
          batch: what the collector saw, [E, T].

        Raises:
          EpisodesError: episodes of those numbers are there already.
          LockError: another process writes there now.
          OSError: it cannot be written.
        """
        frames = recorder.take()
        own = {name: torch.stack([frame.pop(name) for frame in frames], 1).cpu() for name in BEFORE}
        trace = stack(frames, recorder.terms, [])
        chances = torch.where(batch["action_mask"], batch["logits"], -torch.inf).log_softmax(-1)
        surprise = torch.where(chances.isinf(), 0.0, -chances.exp() * chances).sum(-1)
        own |= {
            "action": trace.action.T,
            "probability": batch["action_log_prob"].exp().cpu(),
            "entropy": surprise.cpu(),
        }
        own["policy"] = torch.full_like(trace.action.T, self.policy)
        state, count = recorder.env.ended, len(batch)
        numbers = torch.arange(count, device=state.key.device)
        ends = end_columns(self.scene, seed, state, numbers, count)
        device = self.scene.engine.data.train.inputs.device
        told = machine(device, [self.scene.engine.backend.name])
        episodes = (number + 1) * count - self.part["first"]
        self.writer.part(self.place, {**self.part, "episodes": episodes, "machine": told})
        self.writer.append(number * count, step_columns(own, trace, count), ends)


@contextmanager
def recording(
    folder: Path, settings: TrainSettings, scenes: Sequence[Scene], done: int
) -> Iterator[Sequence[TaskEpisodes]]:
    """The datasets of a run, open; those that are still empty at the end are removed.

    Args:
      folder: the run directory.
      settings: of the run; without ``record``, there are no datasets.
      scenes: what is played.
      done: rounds that the run has behind it; later ones are taken back.

    Raises:
      EpisodesError: a dataset holds other episodes than the run's.
      LockError: another process writes there.
      OSError: it cannot be written.
    """
    with ExitStack() as stack:
        places = [folder / (FOLDER if place == 1 else f"{FOLDER}-{place}") for place in range(1, len(scenes) + 1)]
        found = list[TaskEpisodes]()
        for place, scene in zip(places, scenes, strict=True) if settings.record else ():
            found.append(_open(place, settings, scene, done, stack))
        yield found


def _open(folder: Path, settings: TrainSettings, scene: Scene, done: int, stack: ExitStack) -> TaskEpisodes:
    """A task's dataset, with the rounds that a run has behind it."""
    terms = terms_of(scene)
    writer = stack.enter_context(_written(folder, facts_of(scene, terms), columns_of(scene, len(terms))))
    first = done * settings.num_envs
    numbers = {"seed": settings.seed, "batch": settings.num_envs, "backend": settings.backend}
    identity = json_ready(numbers | {"device": settings.device, "rules": asdict(scene.rules)})
    parts = writer.manifest.parts
    if parts and (parts[0]["kind"], parts[0]["settings"], len(parts)) != (KIND, identity, 1):
        raise EpisodesError(f"{folder}: holds other episodes than this run's; expected them elsewhere")
    if not parts or parts[0]["first"] > first:
        part = {"kind": KIND, "first": first, "episodes": 0, "settings": identity, "versions": versions()}
    else:
        part = dict(parts[0])
    if parts:
        writer.part(0, {**part, "episodes": first - part["first"]})
    writer.take_back(first)
    return TaskEpisodes(scene, writer, 0, part, writer.policy(settings.algorithm, kind="told", digest="", numbers={}))


@contextmanager
def _written(folder: Path, facts: Mapping[str, Any], columns: Sequence[Any]) -> Iterator[EpisodesWriter]:
    """A dataset that is open for writing; an empty one is removed at the end."""
    writer = write_episodes(folder, facts, columns)
    try:
        yield writer
    finally:
        writer.release()
        if not writer.manifest.shards:
            remove_folder(folder)
