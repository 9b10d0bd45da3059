"""What plays episodes for ``esper generate``: in its process, or as a worker (``esper.runtime.worker_pool``)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esper.leyline.config import ConfigError
from esper.runtime.machine import machine
from esper.runtime.mix import Share, players_of
from esper.runtime.play_episodes import Mix, play_episodes
from esper.runtime.scene import build_scene, rules_of
from esper.runtime.worker_pool import Answer, Job, serve_lines
from esper.simic.episodes.columns import from_table
from esper.simic.episodes.shards import EpisodesError, write_shard
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.settings import SettingsError

TOLD = (ConfigError, SettingsError, CheckpointError, DatasetError, EpisodesError)
"""Errors that are answered in words."""


class Terms(NamedTuple):
    """What all jobs of a command have in common, for JSON.

    Attributes:
      rules: what is played, see ``Rules``.
      shares: names and shares of the policies.
      indices: of the policies in the manifest.
      digests: of the runs' parameters; empty of other policies.
      columns: of the dataset, as the manifest lists them.
      options: "seed", "explore", "batch", "checkpoint", "greedy", "backend", "device".
    """

    rules: Mapping[str, Any]
    shares: list[tuple[str, float]]
    indices: list[int]
    digests: list[str]
    columns: list[dict[str, Any]]
    options: Mapping[str, Any]


def player(terms: Terms) -> Callable[[Job], Answer]:
    """What does the jobs of a command: plays the episodes of each, and makes a shard of them.

    A job has "first" and "count", of its episodes, and "place", where the shard goes. Its answer has "entry", the
    shard's, and "machine", what the bits rest on.

    Raises:
      ConfigError, SettingsError, CheckpointError, DatasetError: something is not as it was when the terms were made.
    """
    options, shares = terms.options, [Share(*each) for each in terms.shares]
    scene = build_scene(rules_of(terms.rules), options["batch"], options["backend"], options["device"])
    players = players_of(scene, shares, options["checkpoint"], options["greedy"])
    for each, digest in zip(players, terms.digests, strict=True):
        if each.digest != digest:
            raise CheckpointError(
                f"{each.name}: its policy changed while it was played; expected a run that stands still"
            )
    mix = Mix(shares, players, options["seed"], options["explore"], terms.indices)
    columns = from_table(terms.columns)
    found = machine(scene.engine.data.train.inputs.device, [scene.engine.backend.name])

    def work(job: Job) -> Answer:
        steps, episodes = play_episodes(scene, mix, job["first"], job["count"])
        entry = write_shard(Path(job["place"]), columns, job["first"], steps, episodes)
        return {"entry": entry.table(), "machine": found}

    return work


def _prepare(hello: Job) -> Callable[[Job], Answer]:
    try:
        work = player(Terms(**hello))
    except TOLD as error:
        told = str(error)
        return lambda job: {"error": told}

    def answered(job: Job) -> Answer:
        try:
            return work(job)
        except TOLD as error:
            return {"error": str(error)}
        except OSError as error:
            return {"error": error.strerror or str(error), "errno": error.errno}

    return answered


if __name__ == "__main__":
    serve_lines(_prepare)
