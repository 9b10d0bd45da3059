"""Weights & Biases and MLflow: thin adapters of packages that are not installed with Esper.

Which of their runs belongs to a run directory stands in a file of it, so that a run that is gone on with is one there.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.nissa.event_record import Event
from esper.nissa.sinks.optional import optional_module
from esper.nissa.sinks.protocol import Row
from esper.utils.documents import to_json
from esper.utils.files import read_file, replace_file

IDS = "trackers.json"
"""Place of a service -> the id of the run there."""

LARGEST_IDS = 1 << 16

METRICS_AT_ONCE, OTHERS_AT_ONCE = 1000, 100
"""Numbers, and parameters or tags, that MLflow takes in a call."""


def require_wandb() -> Any:
    """The module ``wandb``.

    Raises:
      SinkError: it is not installed.
    """
    return optional_module("wandb", "--sinks wandb", "wandb", "wandb")


def require_mlflow() -> Any:
    """The module ``mlflow.tracking``.

    Raises:
      SinkError: it is not installed.
    """
    return optional_module("mlflow.tracking", "--sinks mlflow", "mlflow-skinny", "mlflow")


def _known_ids(folder: Path) -> dict[str, str]:
    """Ids by place; none where the file is absent or cannot be read."""
    try:
        found = json.loads(read_file(folder / IDS, LARGEST_IDS))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep_id(folder: Path, place: str, id: str) -> None:
    replace_file(folder / IDS, (to_json(_known_ids(folder) | {place: id}) + "\n").encode())


def _finite(row: Row) -> dict[str, float]:
    """Numbers of a row that both services take."""
    return {name: float(value) for name, value in row.items() if not isinstance(value, str) and math.isfinite(value)}


class WandbSink:
    """A run of Weights & Biases; where it goes is said by its own environment variables, such as ``WANDB_MODE``."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with the one of this directory.

        Args:
          project: its name there; empty = esper.
          folder: of Esper's run, which names it.
          config: settings.

        Raises:
          SinkError: wandb is not installed.
        """
        quiet, place = require_wandb().Settings(console="off", silent=True), f"wandb:{project or 'esper'}"
        self._run = require_wandb().init(
            project=project or "esper",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            settings=quiet,
            id=_known_ids(folder).get(place),
            resume="allow",
            allow_val_change=True,
        )
        _keep_id(folder, place, self._run.id)

    def round(self, row: Row) -> None:
        """See ``Sink``."""
        self._run.log(_finite(row), step=int(row["round"]))

    def event(self, event: Event) -> None:
        """The last event of its kind, in the summary."""
        self._run.summary[f"event/{event.kind}"] = to_json({"round": event.round, **event.fields})

    def close(self) -> None:
        """See ``Sink``."""
        self._run.finish()


class MlflowSink:
    """A run of MLflow, by its client alone: nothing global is set. What a round has to say is one call."""

    def __init__(self, place: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with the one of this directory; its parameters are those that it began with.

        Args:
          place: URI of a tracking server or a database; empty = ``MLFLOW_TRACKING_URI``, or MLflow's default.
          folder: of Esper's run, which names it.
          config: settings.

        Raises:
          SinkError: mlflow is not installed.
        """
        self._client, self._tags = require_mlflow().MlflowClient(place or None), dict[str, str]()
        self._entities = optional_module("mlflow.entities", "--sinks mlflow", "mlflow-skinny", "mlflow")
        known = _known_ids(folder).get(f"mlflow:{place}")
        if known is None:
            self._id = self._begun(folder.name, config)
            _keep_id(folder, f"mlflow:{place}", self._id)
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")

    def _begun(self, name: str, config: Mapping[str, Any]) -> str:
        known = self._client.get_experiment_by_name("esper")
        experiment = known.experiment_id if known is not None else self._client.create_experiment("esper")
        id = str(self._client.create_run(experiment, run_name=name).info.run_id)
        params = [self._entities.Param(name, str(value)[:500]) for name, value in config.items()]
        for some in _parts(params, OTHERS_AT_ONCE):
            self._client.log_batch(id, params=some)
        return id

    def round(self, row: Row) -> None:
        """See ``Sink``."""
        now, step = int(1000 * time.time()), int(row["round"])
        found = [self._entities.Metric(_plain(name), value, now, step) for name, value in _finite(row).items()]
        for some in _parts(found, METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=some)
        self._tell_events()

    def event(self, event: Event) -> None:
        """The last event of its kind, as a tag; told with the round, or at the end."""
        self._tags[event.kind] = to_json({"round": event.round, **event.fields})[:5000]

    def _tell_events(self) -> None:
        tags, self._tags = [self._entities.RunTag(*each) for each in self._tags.items()], {}
        for some in _parts(tags, OTHERS_AT_ONCE):
            self._client.log_batch(self._id, tags=some)

    def close(self) -> None:
        """See ``Sink``."""
        self._tell_events()
        self._client.set_terminated(self._id)


def _parts(found: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """The same in order, so many at a time."""
    return (found[first : first + most] for first in range(0, len(found), most))


def _plain(name: str) -> str:
    """A name that MLflow takes: a task that is a path has letters that it refuses."""
    return re.sub("/+", "/", re.sub(r"[^\w./ -]", "_", name))
