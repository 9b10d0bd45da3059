"""Run directories: what a training run leaves behind, and how it is taken up again.

``config.json`` holds the settings, ``resolved.json`` every number in force and the parts of the data by task,
``versions.json`` what it ran on (``esper.runtime.machine``), ``metrics.jsonl`` a line per round (validation: no round
reads the test part), ``checkpoints`` the learner after the last rounds that were written, and after the best
``SMOOTHING`` rounds in a row, ``evaluation.json`` and ``report.html`` what came of it, on the test part. When a run
goes on, it reads checkpoints, metrics (they hold the digest) and documents (``esper.runtime.run_blueprints``) alone.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.nissa.operations import NO_OPERATIONS, OperationLog
from esper.nissa.sinks import METRICS, Metrics, lines_until, read_rows
from esper.nissa.sinks.prometheus import STATE
from esper.runtime.best_rounds import Best, best_of
from esper.runtime.collect import Begun, from_tensors, to_tensors
from esper.runtime.policy_checkpoint import (
    BEST_PART,
    SERIES,
    AnyLearner,
    learner_tensors,
    load_run,
    restore_learner,
)
from esper.runtime.resume import (
    Origin,
    again,
    beside_of,
    expect_room,
    holds_run,
    identity_of,
    run_folder,
    source_of,
    taken_up,
)
from esper.runtime.run_blueprints import FOLDER, RECORD, document_id
from esper.runtime.run_facts import FACTS, write_facts
from esper.runtime.saver import Saver
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.runtime.watching import SEEDS, WATCH
from esper.tamiyo.interface import Interface, to_table
from esper.urza import series
from esper.urza.checkpoint import Checkpoint, CheckpointError
from esper.urza.lock import LOCK, OWNER, Lock, LockError, hold, network_of
from esper.urza.series import Moment
from esper.utils.files import remove_folder, remove_leftovers, replace_file
from esper.utils.resilience.causes import is_want
from esper.utils.settings import SettingsError

IN_FORCE = ("interface", "blueprints")
"""What of a checkpoint's table may have changed since the run began."""

logger = logging.getLogger("esper")


@dataclass
class Run:
    """A run directory that is being written.

    Attributes:
      folder: where.
      table: what every checkpoint says: settings, and what the policy sees and says.
      metrics: where rows go.
      saver: where checkpoints go.
      best: the best rounds so far.
      done: rounds so far.
      tensors: the learner after them.
      begun: what was played of the round that is gone on with, task by task.
      operations: where it is told what the run does.
    """

    folder: Path
    table: dict[str, Any]
    metrics: Metrics
    saver: Saver
    best: Best
    done: int
    tensors: dict[str, Tensor]
    begun: list[Begun]
    operations: OperationLog = NO_OPERATIONS

    def tell(self, operations: OperationLog) -> None:
        """Let sinks and a trace have what the run does from here on."""
        self.operations = self.saver.operations = operations


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
    expect_room(folder)
    return folder, source


def open_run(
    places: tuple[Path, Origin | None],
    settings: TrainSettings,
    scenes: Sequence[Scene],
    interface: Interface,
    learner: AnyLearner,
) -> Run:
    """Make the run directory, or put the learner where it was. Nobody else writes there until ``release``.

    Args:
      places: the run directory and what to go on from.
      settings: everything.
      scenes: what is played.
      interface: what the policy sees and says.
      learner: fresh; goes on from ``source`` if there is one.

    Raises:
      SettingsError: the checkpoint was written with other settings, or another process writes there.
      CheckpointError: it cannot be read, or written.
      OSError: this process lacks handles.
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
        write_facts(folder, replace(settings, out=str(folder)), scenes)
        begun = [] if loaded is None else _begun(loaded, [scene.engine.data.train.inputs.device for scene in scenes])
        moment = Moment(learner.done, _steps(begun))
        series.take_back(folder / SERIES, moment)
        saver = Saver(folder / SERIES, lock, settings.save_every, settings.keep)
        table: dict[str, Any] = {
            "settings": identity_of(settings),
            "beside": beside_of(settings),
            "interface": to_table(interface),
        }
        table |= {"blueprints": [document_id(document) for document in scenes[0].rules.documents]}
        table |= {} if loaded is None else {name: loaded.table[name] for name in IN_FORCE if name in loaded.table}
        metrics = Metrics(folder, lock.check)
        tensors = learner_tensors(learner)
        run = Run(folder, table, metrics, saver, best_of(learner, loaded, best), learner.done, tensors, begun)
        if moment not in series.moments(folder / SERIES):
            _offer(run, begun)
            settle(run)
        return run
    except OSError as error:
        lock.release()
        if is_want(error):
            raise
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
        for place in (folder, folder / SERIES, folder / FOLDER):
            remove_leftovers(place)
    except OSError as error:
        if is_want(error):
            raise
        raise SettingsError(f"--out {folder}: {error.strerror}; expected a place for a directory") from None
    except LockError as error:
        raise SettingsError(f"--out {error}") from None
    if (kind := network_of(folder)) is not None:
        logger.warning("run directory %s: on %s, where a lock may bind one machine only", folder, kind)
    return lock


def _rounds(folder: Path, loaded: Checkpoint) -> bytes:
    """The lines of the rounds that a checkpoint has behind it."""
    path = folder / METRICS
    if "metrics" not in loaded.table:  # no digest tells whether they are all there
        read_rows(path)
    return lines_until(path, loaded.table["done"])


def abandon(run: Run) -> None:
    """Take back a run of no round, which holds nothing and would stand in the way of the next start."""
    for moment in series.moments(run.saver.folder):
        remove_folder(series.member(run.saver.folder, moment))
    names = [run.folder / name for name in (METRICS, STATE, WATCH, SEEDS, *FACTS, RECORD, OWNER, LOCK)]
    for path in (*(run.folder / FOLDER).glob("*.json"), *names):
        path.unlink(missing_ok=True)
    for folder in (run.saver.folder, run.folder / FOLDER, run.folder):
        with suppress(OSError):  # it may hold what is others'
            folder.rmdir()


def record(run: Run, learner: AnyLearner, row: dict[str, Any]) -> None:
    """Add a round: its line, the best policy if it is that, and now and then the checkpoint that makes it last.

    Raises:
      SettingsError: the policy is not finite any more. The last good checkpoint is written.
    """
    tensors = learner_tensors(learner)
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        settle(run)
        raise SettingsError(
            f"--lr: the policy's parameters are not finite after round {learner.done}; {run.folder} holds those of "
            f"round {run.done}; expected a smaller learning rate, or finite rewards"
        )
    run.metrics.write(row)
    run.operations.sinks.round(row)
    run.best.look(learner.done, row["return"], tensors)
    run.done, run.tensors, run.begun = learner.done, tensors, []
    pause(run, [])


def pause(run: Run, begun: Sequence[Begun]) -> None:
    """Let the run be on the disk as it is now, if that is due.

    Args:
      run: after ``done`` rounds.
      begun: what was played of the next one, task by task.
    """
    _offer(run, begun)
    if run.saver.due():
        run.saver.try_to_write(run.metrics.settle)


def _offer(run: Run, begun: Sequence[Begun]) -> None:
    """Let the saver have what may be the next checkpoint: all of it of this moment, whatever comes before the saver
    writes it, a round that is half recorded among that.
    """
    best, inside, learned = run.best, tuple(begun), run.tensors
    table = run.table | {"done": run.done, "returns": best.returns, "best": best.mean, "best_round": best.number}
    table |= {"metrics": run.metrics.digest.hexdigest()}
    further = best.tensors if best.number != run.done else {}

    def contents() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = learned | {f"{BEST_PART}{name}": value for name, value in further.items()}
        parts = [to_tensors(part, _prefix(place)) for place, part in enumerate(inside)]
        for named, _ in parts:
            tensors |= named
        return tensors, table | {"begun": [facts for _, facts in parts]}

    run.saver.offer(Moment(run.done, _steps(inside)), contents)


def _prefix(place: int) -> str:
    return f"begun.{place}."


def _steps(begun: Sequence[Begun]) -> int:
    """Decisions that were taken since the last round."""
    return sum(part.played.shape[1] for part in begun)


def _begun(loaded: Checkpoint, devices: Sequence[torch.device]) -> list[Begun]:
    """What was played of the round that a checkpoint was written in.

    Raises:
      CheckpointError: something of it is missing.
    """
    try:
        tables = loaded.table.get("begun", [])
        return [from_tensors(loaded.tensors, one, _prefix(place), devices[place]) for place, one in enumerate(tables)]
    except KeyError as error:
        raise CheckpointError(f"checkpoint: a round that was begun {error.args[0]}, of another version") from None


def settle(run: Run) -> None:
    """Let the rounds so far be on the disk.

    Raises:
      CheckpointError: the last checkpoint cannot be written.
    """
    run.saver.finish(run.metrics.settle)


def release(run: Run) -> None:
    """Let whoever watches know that it ended, and others write in the run directory."""
    run.operations.close()
    run.saver.lock.release()
