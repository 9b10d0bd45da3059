"""Weights & Biases and MLflow: thin adapters of packages that are not installed with Esper."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.nissa.event_record import Event
from esper.nissa.sinks.optional import optional_module
from esper.nissa.sinks.protocol import Row
from esper.utils.documents import to_json


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
        quiet = require_wandb().Settings(console="off", silent=True)
        self._run = require_wandb().init(
            project=project or "esper", name=folder.name, dir=str(folder), config=dict(config), settings=quiet
        )

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
    """A run of MLflow, by its client alone: nothing global is set."""

    def __init__(self, place: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin the run.

        Args:
          place: URI of a tracking server or folder; empty = ``MLFLOW_TRACKING_URI``, or MLflow's default.
          folder: of Esper's run, which names it.
          config: settings.

        Raises:
          SinkError: mlflow is not installed.
        """
        self._client = require_mlflow().MlflowClient(place or None)
        known = self._client.get_experiment_by_name("esper")
        experiment = known.experiment_id if known is not None else self._client.create_experiment("esper")
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for name, value in config.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def round(self, row: Row) -> None:
        """See ``Sink``."""
        for name, value in _finite(row).items():
            self._client.log_metric(self._id, name, value, step=int(row["round"]))

    def event(self, event: Event) -> None:
        """The last event of its kind, as a tag."""
        self._client.set_tag(self._id, event.kind, to_json({"round": event.round, **event.fields})[:5000])

    def close(self) -> None:
        """See ``Sink``."""
        self._client.set_terminated(self._id)
