"""Run directories: what a training run leaves behind, and how it is taken up again.

``config.json`` holds the settings, ``resolved.json`` every number in force and the parts of the data by task,
``versions.json`` what it ran on, ``metrics.jsonl`` a line per round (validation accuracies and losses: no round reads
the test part), ``checkpoints`` the learner after the last rounds that were written, and after the round that ended the
best ``SMOOTHING`` rounds in a row, ``evaluation.json`` and ``report.html`` what came of it, on the test part. Of these
only the checkpoints are read when a run goes on, and the metrics, whose digest they hold.
"""

import json
import logging
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from esper.nissa.sinks import METRICS, Metrics, read_rows, write_text
from esper.runtime.policy_checkpoint import BEST_PART, SERIES, learner_tensors, load_run, restore_learner
from esper.runtime.resume import (
    CONFIG,
    Origin,
    again,
    beside_of,
    holds_run,
    identity_of,
    run_folder,
    source_of,
    taken_up,
)
from esper.runtime.saver import Saver
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo import Learner
from esper.tamiyo.interface import Interface, to_table
from esper.urza import series
from esper.urza.checkpoint import Checkpoint
from esper.urza.lock import Lock, LockError, hold, network_of
from esper.utils.documents import as_number, to_json
from esper.utils.files import remove_leftovers, replace_file
from esper.utils.settings import SettingsError
from esper.version import __version__

SMOOTHING = 5
"""Rounds whose mean return decides which policy is best: one round's return is luck in part."""

logger = logging.getLogger("esper")


@dataclass
class Best:
    """The best ``SMOOTHING`` rounds in a row so far.

    Attributes:
      returns: of the last rounds, at most ``SMOOTHING``; oldest first.
      mean: highest mean of ``SMOOTHING`` returns in a row; None before there are as many rounds.
      number: the round that ended them; before, the last one.
      tensors: the learner after it.
    """

    returns: list[float]
    mean: float | None
    number: int
    tensors: dict[str, Tensor]

    def look(self, number: int, gained: float, tensors: dict[str, Tensor]) -> None:
        """Take a round into account."""
        self.returns = [*self.returns, gained][-SMOOTHING:]
        mean = sum(self.returns) / SMOOTHING if len(self.returns) == SMOOTHING else math.nan
        if self.mean is None or mean > self.mean:
            self.mean = mean if math.isfinite(mean) else None
            self.number, self.tensors = number, tensors


@dataclass
class Run:
    """A run directory that is being written.

    Attributes:
      folder: where.
      table: what every checkpoint says: settings, and what the policy sees and says.
      metrics: where rows go.
      saver: where checkpoints go.
      best: the best rounds so far.
    """

    folder: Path
    table: dict[str, Any]
    metrics: Metrics
    saver: Saver
    best: Best


def places(settings: TrainSettings) -> tuple[Path, Origin | None]:
    """The run directory, and what to go on from, if anything.

    Raises:
      SettingsError: the directory holds a run that is not the one to go on with, or can be none.
    """
    source = source_of(settings.resume, settings.out, settings.task)
    named = bool(settings.out) or source is None
    folder = run_folder(settings.out, settings.task) if named or source is None else source.folder
    if holds_run(folder):
        if source is None:
            raise SettingsError(f"--out {folder}: holds a run already; {again(folder)} goes on with it")
        if folder.resolve() != source.folder.resolve():
            raise SettingsError(f"--out {folder}: holds a run already; expected an unused directory, or that run's own")
    _expect_room(folder)
    return folder, source


def _expect_room(folder: Path) -> None:
    """Raise unless a directory is there that can be written, or can be made."""
    place = folder.absolute()
    while not os.path.exists(place):  # unlike Path.exists, False for every name that no file can have
        place = place.parent
    if not place.is_dir():
        raise SettingsError(f"--out {folder}: {place} is no directory; expected a place for one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingsError(f"--out {folder}: {place} cannot be written; expected a place for a directory")


def open_run(
    places: tuple[Path, Origin | None],
    settings: TrainSettings,
    scenes: Sequence[Scene],
    interface: Interface,
    learner: Learner,
) -> Run:
    """Make the run directory, or put the learner where it was. Nobody else writes there until ``close_run``.

    Args:
      places: the run directory and what to go on from.
      settings: everything.
      scenes: what is played.
      interface: what the policy sees and says.
      learner: fresh; goes on from ``source`` if there is one.

    Raises:
      SettingsError: the checkpoint was written with other settings, or another process writes there.
      CheckpointError: it cannot be read, or written.
    """
    folder, source = places
    lock = _hold(folder)
    try:
        loaded = None if source is None else taken_up(source, identity_of(settings))
        if source is not None and loaded is not None:
            restore_learner(learner, loaded)
        kept = b"" if source is None or loaded is None else _rounds(source.folder, loaded)
        best = None if source is None or loaded is None else load_run(source.path, "best")
        replace_file(folder / METRICS, kept)
        _tell(folder, replace(settings, out=str(folder)), scenes)
        series.take_back(folder / SERIES, learner.done)
        saver = Saver(folder / SERIES, lock, settings.save_every, settings.keep)
        table = {"settings": identity_of(settings), "beside": beside_of(settings), "interface": to_table(interface)}
        metrics = Metrics(folder, settings.tensorboard, learner.done)
        run = Run(folder, table, metrics, saver, _best_of(learner, loaded, best))
        if learner.done not in series.numbers(folder / SERIES):
            _offer(run, learner, learner_tensors(learner))
            settle(run)
        return run
    except OSError as error:
        lock.release()
        raise SettingsError(
            f"--out {folder}: {error.strerror or error}; expected a place that can be written"
        ) from None
    except BaseException:
        lock.release()
        raise


def _hold(folder: Path) -> Lock:
    """Take the run directory, and clean up what a process that died there was writing."""
    try:
        (folder / SERIES).mkdir(parents=True, exist_ok=True)
        lock = hold(folder)
        for place in (folder, folder / SERIES):
            remove_leftovers(place)
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}; expected a place for a directory") from None
    except LockError as error:
        raise SettingsError(f"--out {error}") from None
    if (kind := network_of(folder)) is not None:
        logger.warning("run directory %s: on %s, where a lock may bind one machine only", folder, kind)
    return lock


def _rounds(folder: Path, loaded: Checkpoint) -> bytes:
    """The lines of the rounds that a checkpoint has behind it."""
    path = folder / METRICS
    read_rows(path)  # whatever is no round is told
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return b"".join(line + b"\n" for line in lines if json.loads(line)["round"] <= loaded.table["done"])


def record(run: Run, learner: Learner, row: dict[str, float]) -> None:
    """Add a round: its line, the best policy if it is that, and now and then the checkpoint that makes it last.

    Raises:
      SettingsError: the policy is not finite any more. The last good checkpoint is written.
    """
    tensors = learner_tensors(learner)
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        settle(run)
        raise SettingsError(
            f"--lr: the policy's parameters are not finite after round {learner.done}; {run.folder} holds those of "
            f"round {run.saver.saved}; expected a smaller learning rate, or finite rewards"
        )
    run.metrics.write(row)
    run.best.look(learner.done, row["return"], tensors)
    _offer(run, learner, tensors)
    if run.saver.due():
        run.saver.try_to_write(run.metrics.settle)


def _offer(run: Run, learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Let the saver have what may be the next checkpoint."""
    best = run.best
    table = {"done": learner.done, "returns": best.returns, "best": best.mean, "best_round": best.number}
    table["metrics"] = run.metrics.digest.hexdigest()
    beside = {} if best.number == learner.done else {f"{BEST_PART}{name}": it for name, it in best.tensors.items()}
    run.saver.offer(learner.done, tensors | beside, run.table | table)


def settle(run: Run) -> None:
    """Let the rounds so far be on the disk.

    Raises:
      CheckpointError: the last checkpoint cannot be written.
    """
    run.saver.finish(run.metrics.settle)


def close_run(run: Run) -> None:
    """Let the rounds so far be on the disk, and let others write.

    Raises:
      CheckpointError: the last checkpoint cannot be written.
    """
    try:
        settle(run)
    finally:
        run.metrics.close()
        run.saver.lock.release()


def resolved(scene: Scene) -> dict[str, Any]:
    """Every number in force: structure, hyperparameters, rewards, and the names of host and blueprints."""
    structure = scene.engine.structure

    def leaves(table: TensorDictBase) -> dict[str, Any]:
        return {str(name): value.tolist() for name, value in sorted(table.items())}

    config = {entry.name: getattr(structure.config, entry.name) for entry in fields(structure.config)}
    return {
        "host": {"name": structure.host.name, "parameters": structure.host.num_params},
        "blueprints": [blueprint.name for blueprint in structure.blueprints],
        "backend": list(scene.engine.backend.describe()),
        "data": scene.engine.data.record(),
        "config": config,
        "hypers": leaves(scene.engine.hypers),
        "rewards": leaves(scene.params),
    }


def versions() -> dict[str, str]:
    """What the run ran on."""
    packages = {name: version(name) for name in ("torch", "tensordict", "torchrl", "numpy")}
    return {"esper": __version__, **packages, "python": platform.python_version(), "machine": platform.machine()}


def _best_of(learner: Learner, loaded: Checkpoint | None, best: Checkpoint | None) -> Best:
    """The best rounds of the run that is gone on with; at first, the learner as it is."""
    if loaded is None or best is None or int(best.table["done"]) > learner.done:
        return Best([], None, learner.done, learner_tensors(learner))
    returns = [as_number(value) for value in loaded.table["returns"]]
    return Best(returns, loaded.table["best"], int(best.table["done"]), best.tensors)


def _tell(folder: Path, settings: TrainSettings, scenes: Sequence[Scene]) -> None:
    """Write down what is run, and on what; take back what came of it before."""
    for stale in ("evaluation.json", "report.html"):
        (folder / stale).unlink(missing_ok=True)
    for name, table in (
        (CONFIG, asdict(settings)),
        ("resolved.json", {scene.rules.task: resolved(scene) for scene in scenes}),
        ("versions.json", versions()),
    ):
        write_text(folder / name, to_json(table, indent=2) + "\n")
