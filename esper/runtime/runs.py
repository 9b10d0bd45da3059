"""Run directories: what a training run leaves behind, and how it is taken up again.

``config.json`` holds the settings, ``resolved.json`` every number in force and the parts of the data by task,
``versions.json`` what it ran on, ``metrics.jsonl`` a line per round (validation accuracies and losses: no round reads
the test part), ``checkpoint.npz`` the learner after the last round, ``best.npz`` the learner after the round that ended
the best ``SMOOTHING`` rounds in a row, ``evaluation.json`` and ``report.html`` what came of it, on the test part.
"""

import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from esper.nissa.sinks import METRICS, Metrics, read_rows, write_text
from esper.runtime.own import NAMES, recorded
from esper.runtime.policy_checkpoint import CHECKPOINTS, learner_tensors, load_run, restore_learner
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo import Learner
from esper.tamiyo.interface import Interface, to_table
from esper.urza import checkpoint
from esper.urza.checkpoint import Checkpoint
from esper.utils.documents import as_number, json_ready, to_json
from esper.utils.paths import folder_name, user_path
from esper.utils.settings import SettingsError, from_record, read_file
from esper.version import __version__

SMOOTHING = 5
"""Rounds whose mean return decides which policy is best: one round's return is luck in part."""

LATEST, BEST = CHECKPOINTS["latest"], CHECKPOINTS["best"]

OWN = ("out", "resume", "dry_run")
"""Settings of one command, which say nothing of the run."""

INCIDENTAL = (*OWN, "progress", "tensorboard", "eval_envs", "heuristic")
"""Settings that do not decide what a run computes."""


@dataclass
class Run:
    """A run directory that is being written.

    Attributes:
      folder: where.
      identity: the settings that decide what is computed.
      interface: what the policy sees and says, as a table.
      returns: of the last rounds, at most ``SMOOTHING``; oldest first.
      best: highest mean of ``SMOOTHING`` returns in a row; None before there are as many rounds.
      metrics: where rows go.
    """

    folder: Path
    identity: dict[str, Any]
    interface: dict[str, list[object]]
    returns: list[float]
    best: float | None
    metrics: Metrics


def places(settings: TrainSettings) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint to go on from, if any.

    Raises:
      SettingsError: the directory holds a run that is not the one to go on with, or can be none.
    """
    source = source_of(settings.resume, settings.out, settings.task)
    named = bool(settings.out) or source is None
    folder = _folder(settings.out, settings.task) if named or source is None else source.parent
    if (folder / LATEST).exists():
        if source is None:
            raise SettingsError(f"--out {folder}: holds a run already; {again(folder)} goes on with it")
        if folder.resolve() != source.parent.resolve():
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


def _folder(out: str, task: str) -> Path:
    return user_path(out) if out else Path("runs") / folder_name(task)


def source_of(resume: str, out: str, task: str) -> Path | None:
    """The checkpoint that ``--resume`` means, if any.

    Raises:
      SettingsError: there is none where one is named.
    """
    if resume == "auto":
        own = _folder(out, task) / LATEST
        return own if own.exists() else None
    if not resume:
        return None
    named = user_path(resume)
    source = named / LATEST if named.is_dir() else named
    if not source.exists():
        raise SettingsError(f"--resume {named}: no such file; expected a run directory or a checkpoint, or auto")
    return source


def again(folder: Path) -> str:
    """The command that goes on with a run."""
    place = str(folder) if not str(folder).startswith("-") else f"./{folder}"
    return f"python -m esper train --resume {shlex.quote(place)}"


def settings_before(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that is to be gone on with, so that nothing of them need be said again.

    Args:
      asked: settings that were asked for, ``resume`` perhaps among them.

    Raises:
      SettingsError, CheckpointError: the run cannot be read.
    """
    source = source_of(asked.get("resume", ""), asked.get("out", ""), asked.get("task", TrainSettings.task))
    if source is None:
        return {}
    config = source.parent / "config.json"
    beside = read_file(TrainSettings, config) if config.exists() else {}
    kept = {name: value for name, value in beside.items() if name in INCIDENTAL and name not in OWN}
    known = {entry.name for entry in fields(TrainSettings)}
    decided = {name: value for name, value in load_run(source).table["settings"].items() if name in known}
    for name in NAMES:
        if name not in asked:
            recorded(f"--{name.replace('_', '-')}", str(decided.get(name, "")))
    return kept | from_record(decided)


def open_run(
    places: tuple[Path, Path | None],
    settings: TrainSettings,
    scenes: Sequence[Scene],
    interface: Interface,
    learner: Learner,
) -> Run:
    """Make the run directory, or put the learner where it was.

    Args:
      places: the run directory and the checkpoint to go on from.
      settings: everything.
      scenes: what is played.
      interface: what the policy sees and says.
      learner: fresh; goes on from ``source`` if there is one.

    Raises:
      SettingsError: the checkpoint was written with other settings.
      CheckpointError: it cannot be read.
    """
    folder, source = places
    identity = identity_of(settings)
    loaded = None if source is None else _taken_up(source, identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}; expected a place for a directory") from None
    kept: list[dict[str, Any]] = []
    if source is not None and loaded is not None:
        restore_learner(learner, loaded)
        kept = [row for row in read_rows(source.parent / METRICS) if row["round"] <= learner.done]
        _bring_best(source.parent / BEST, folder / BEST, learner.done)
    write_text(folder / METRICS, "".join(to_json(row) + "\n" for row in kept))
    for stale in ("evaluation.json", "report.html"):
        (folder / stale).unlink(missing_ok=True)
    settings = replace(settings, out=str(folder))
    for name, table in (
        ("config.json", asdict(settings)),
        ("resolved.json", {scene.rules.task: resolved(scene) for scene in scenes}),
        ("versions.json", versions()),
    ):
        write_text(folder / name, to_json(table, indent=2) + "\n")
    so_far: dict[str, Any] = {"returns": [], "best": None} if loaded is None else loaded.table
    metrics = Metrics(folder, settings.tensorboard, learner.done)
    returns = [as_number(value) for value in so_far["returns"]]
    run = Run(folder, identity, to_table(interface), returns, so_far["best"], metrics)
    if not (folder / BEST).exists():
        _save(run, BEST, learner)
    _save(run, LATEST, learner)
    return run


def record(run: Run, learner: Learner, row: dict[str, float]) -> None:
    """Add a round: its line, the best policy if it is that, then the checkpoint, which makes the round count."""
    run.metrics.write(row)
    run.returns = [*run.returns, row["return"]][-SMOOTHING:]
    mean = sum(run.returns) / SMOOTHING if len(run.returns) == SMOOTHING else math.nan
    if run.best is None or mean > run.best:
        run.best = mean if math.isfinite(mean) else None
        _save(run, BEST, learner)
    _save(run, LATEST, learner)


def identity_of(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what a run computes, as a checkpoint's table has them."""
    decided = {name: value for name, value in asdict(settings).items() if name not in INCIDENTAL}
    return dict(json_ready(decided))


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


def _taken_up(source: Path, wanted: dict[str, Any]) -> Checkpoint:
    """The checkpoint to go on from. More rounds than it was planned for are an extension; all else must be as it was.

    Settings that there were not when it was written had their defaults.
    """
    loaded = load_run(source)
    found = identity_of(TrainSettings()) | loaded.table["settings"]
    if wanted["rounds"] < found["rounds"]:
        raise SettingsError(
            f"--rounds = {wanted['rounds']}: {source} is of a run of {found['rounds']}; expected as many or more"
        )
    changed = [f"{n} {found.get(n)!r}, not {v!r}" for n, v in wanted.items() if n != "rounds" and found.get(n) != v]
    if changed:
        raise SettingsError(
            f"--resume: {source} was written with other settings ({'; '.join(changed)}); {again(source.parent)} takes "
            "them from there"
        )
    return loaded


def _bring_best(source: Path, target: Path, done: int) -> None:
    """Take the best policy along into another directory, unless it lies ahead of where the run goes on."""
    if source != target and source.exists():
        best = checkpoint.load(source)
        if int(best.table["done"]) <= done:
            checkpoint.save(target, best.tensors, best.table)


def _save(run: Run, name: str, learner: Learner) -> None:
    table = {"settings": run.identity, "interface": run.interface, "done": learner.done}
    table |= {"returns": run.returns, "best": run.best}
    checkpoint.save(run.folder / name, learner_tensors(learner), table)
