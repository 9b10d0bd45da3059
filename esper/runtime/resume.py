"""Going on with a run: which checkpoint is meant, whose settings hold, and whether its rounds are all there."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from esper.nissa.sinks import METRICS, digest_of
from esper.runtime.build import is_same_device
from esper.runtime.own import NAMES, recorded
from esper.runtime.policy_checkpoint import ARCHIVES, SERIES, load_run
from esper.runtime.train_settings import TrainSettings
from esper.urza import series
from esper.urza.checkpoint import Checkpoint
from esper.utils.documents import json_ready
from esper.utils.paths import folder_name, user_path
from esper.utils.settings import SettingsError, from_record, read_file

CONFIG = "config.json"

OWN = ("out", "resume", "dry_run")
"""Settings of one command, which say nothing of the run."""

FEEDS = (
    "tensorboard",
    "metrics_port",
    "metrics_host",
    "trace",
    "sinks",
    "watch",
    "watch_port",
    "watch_envs",
    "telemetry",
    "measure",
)
"""Settings of who watches."""

BESIDE = ("progress", "eval_envs", "heuristic", "save_every", "keep", "compile_requests", "threads")

INCIDENTAL = (*OWN, *FEEDS, *BESIDE)
"""Settings that do not decide what a run computes."""


class Origin(NamedTuple):
    """What a run goes on from."""

    folder: Path  # the run directory
    path: Path  # that, if its newest checkpoint is meant; else one checkpoint


def run_folder(out: str, task: str) -> Path:
    """The run directory that is asked for, or the task's own."""
    return user_path(out) if out else Path("runs") / folder_name(task)


def holds_run(folder: Path) -> bool:
    """Whether a folder is a run directory, with something to go on from."""
    return (folder / ARCHIVES["latest"]).exists() or bool(series.moments(folder / SERIES))


def expect_room(folder: Path) -> None:
    """Raise ``SettingsError`` unless the directory of ``--out`` is there and can be written, or can be made."""
    place = folder.absolute()
    while not os.path.exists(place):  # unlike Path.exists, False for every name that no file can have
        place = place.parent
    if not place.is_dir():
        raise SettingsError(f"--out {folder}: {place} is no directory; expected a place for one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingsError(f"--out {folder}: {place} cannot be written; expected a place for a directory")


def source_of(resume: str, out: str, task: str) -> Origin | None:
    """The checkpoint that ``--resume`` means, if any.

    Raises:
      SettingsError: there is none where one is named.
    """
    if resume == "auto":
        own = run_folder(out, task)
        return Origin(own, own) if holds_run(own) else None
    if not resume:
        return None
    named = user_path(resume)
    if not named.exists():
        raise SettingsError(f"--resume {named}: no such file; expected a run directory or a checkpoint, or auto")
    if named.is_dir() and holds_run(named):
        return Origin(named, named)
    inside = named.resolve().parent.name == SERIES
    if named.is_dir() and not inside:
        raise SettingsError(f"--resume {named}: holds no run; expected a run directory or a checkpoint, or auto")
    return Origin(named.resolve().parents[1] if inside else named.parent, named)


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
    loaded = load_run(source.path)
    expect_all_rounds(source.folder, loaded)
    known = {entry.name for entry in fields(TrainSettings)} - set(OWN)
    kept = _beside(source.folder, loaded) | loaded.table["settings"]
    kept = {name: value for name, value in kept.items() if name in known}
    for name in NAMES:
        if name not in asked:
            recorded(f"--{name.replace('_', '-')}", str(kept.get(name, "")))
    return from_record(kept)


def _beside(folder: Path, loaded: Checkpoint) -> dict[str, Any]:
    """The settings that do not decide what is computed; of a checkpoint of format 1 they lie in a file."""
    if "beside" in loaded.table:
        return dict(loaded.table["beside"])
    config = folder / CONFIG
    found = read_file(TrainSettings, config) if config.exists() else {}
    return {name: value for name, value in found.items() if name in INCIDENTAL}


def identity_of(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what a run computes, as a checkpoint's table has them."""
    decided = {name: value for name, value in asdict(settings).items() if name not in INCIDENTAL}
    return dict(json_ready(decided))


def beside_of(settings: TrainSettings) -> dict[str, Any]:
    """The other settings, but for those of one command."""
    return dict(json_ready({name: value for name, value in asdict(settings).items() if name in INCIDENTAL[len(OWN) :]}))


def taken_up(source: Origin, wanted: dict[str, Any]) -> Checkpoint:
    """The checkpoint to go on from. More rounds than it was planned for are an extension; all else must be as it was.

    Settings that there were not when it was written had their defaults.

    Raises:
      SettingsError: it was written with other settings, or what lies beside it was altered.
      CheckpointError: it cannot be read.
    """
    loaded = load_run(source.path)
    expect_all_rounds(source.folder, loaded)
    found = identity_of(TrainSettings()) | loaded.table["settings"]
    if wanted["rounds"] < found["rounds"]:
        raise SettingsError(
            f"--rounds = {wanted['rounds']}: {source.path} is of a run of {found['rounds']}; expected as many or more"
        )
    same = {"rounds"} | ({"device"} if is_same_device(wanted["device"], found["device"]) else set())
    changed = [f"{n} {found.get(n)!r}, not {v!r}" for n, v in wanted.items() if n not in same and found.get(n) != v]
    if changed:
        raise SettingsError(
            f"--resume: {source.path} was written with other settings ({'; '.join(changed)}); {again(source.folder)} "
            "takes them from there"
        )
    return loaded


def expect_all_rounds(folder: Path, loaded: Checkpoint) -> None:
    """Raise unless a run's metrics hold the rounds that they held when a checkpoint was written, or are gone.

    Raises:
      SettingsError: lines are lost or were altered.
    """
    recorded, path, done = loaded.table.get("metrics"), folder / METRICS, loaded.table["done"]
    if recorded is not None and path.exists() and digest_of(path, done) != recorded:
        raise SettingsError(
            f"--resume: {path}: not the {done} rounds that were recorded there; expected it unaltered, or removed to "
            "go on without them"
        )
