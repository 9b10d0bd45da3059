"""``esper sweep [settings] -- train ...``: a grid of settings by seeds, a run each, in processes of their own.

A member is a run directory below ``--out``, named by what it varies, and is whatever ``esper train`` makes of these
words. The sweep keeps nothing else that matters: what is whole is not run again, what was cut off goes on from its last
checkpoint, and the table is made of what lies there. So a sweep that was killed, or that got further values or seeds,
goes on by the same command.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from esper.nissa.progress import KINDS, Progress, make_progress
from esper.nissa.sinks import write_text
from esper.runtime.distributed import cores
from esper.runtime.interrupt import Stopped, Watch, watched
from esper.runtime.own import expect_nothing_imported
from esper.runtime.sweep_table import Member, sweep_table
from esper.runtime.sweep_worker import TrainWorker, is_whole
from esper.runtime.train_settings import TrainSettings
from esper.runtime.worker_pool import JobDone, WorkerPool
from esper.utils.documents import to_json
from esper.utils.paths import folder_name, user_path
from esper.utils.settings import Entry, SettingsError, Table, read_settings, setting
from esper.utils.terminal import output

LOOK = 0.2
"""Seconds between looks at whether the command was asked to stop."""

TABLES = ("engine", "rewards", "observation", "heuristic", "offline")
"""Settings of ``train`` that are tables, whose names may be varied as ``TABLE.NAME``."""

OWN = ("seed", "out", "resume", "dry_run", "config")
"""Settings of ``train`` that the sweep gives itself."""


@dataclass(frozen=True)
class SweepSettings:
    """Train a grid of settings by seeds, a process each, and compare them in one table."""

    out: str = setting("runs/sweep", "directory of the runs and of sweep.json and sweep.md")
    vary: Mapping[str, Entry] = setting(
        {}, "settings of train by name, several values with + between: lr=0.001+0.003,engine.host_lr=0.05+0.1"
    )
    seeds: str = setting("0,1", "of train, with commas between")
    processes: int = setting(0, "runs at a time; 0 = as many as there are processors", low=0, high=1024)
    progress: str = setting("auto", "how progress is shown", choices=KINDS)


class Planned(NamedTuple):
    """A run that the sweep consists of."""

    varied: dict[str, Any]  # what is varied, without the seed
    seed: int
    folder: Path
    words: list[str]  # of ``esper``


def sweep(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``[settings] -- train ...``.

    Args:
      arguments: words after ``esper sweep``.
      out: where lines go.

    Returns:
      exit status: 0; 1 if a run failed, which the table tells.

    Raises:
      SettingsError: the words are not as above, or the directory holds a sweep of other settings.
      Stopped: asked to stop; runs that were going have kept their last checkpoint.
    """
    words, out = list(arguments), output(out)
    cut = words.index("--") if "--" in words else len(words)
    settings = read_settings(SweepSettings, words[:cut], "esper sweep", trust=expect_nothing_imported)
    if words[cut + 1 : cut + 2] != ["train"]:
        raise SettingsError(f"{' '.join(words[cut:]) or 'nothing'}: expected [settings] -- train and its settings")
    common, folder = words[cut + 2 :], user_path(settings.out)
    members = plan(settings, common)
    _expect_same(folder, common)
    failed = _run(settings, members, folder, out)
    found = [Member(each.varied, each.seed, each.folder, failed.get(str(each.folder), "")) for each in members]
    table, report = sweep_table(found)
    write_text(folder / "sweep.json", to_json({"train": common, **report}, indent=2) + "\n")
    write_text(folder / "sweep.md", table)
    out.write(f"{table}{folder / 'sweep.md'}\n")
    return 1 if failed else 0


def plan(settings: SweepSettings, common: Sequence[str]) -> list[Planned]:
    """All runs, settings by settings and seed by seed.

    Args:
      settings: of the sweep.
      common: words of ``train`` that all of them have.

    Raises:
      SettingsError: a name that is none of ``train``, values that ``train`` refuses, or seeds that are none.
    """
    known, threads = {entry.name for entry in fields(TrainSettings)}, _threads(settings)
    for name in settings.vary:
        table, _, inner = name.partition(".")
        if (table not in TABLES if inner else table not in known) or table in OWN:
            raise SettingsError(
                f"--vary: {name}: unknown; expected a setting of train, or TABLE.NAME of one that has names"
            )
    seeds = settings.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seeds = {settings.seeds!r}: expected different integers with commas between")
    values = [_several(value) for value in settings.vary.values()]
    found = list[Planned]()
    for chosen in product(*values):
        varied = dict(zip(settings.vary, chosen, strict=True))
        for seed in seeds:
            name = ",".join(f"{key}={value}" for key, value in {**varied, "seed": seed}.items())
            folder = user_path(settings.out) / folder_name(name)
            words = ["--threads", str(threads), *common, *_flags(varied), "--seed", seed, "--out", str(folder)]
            read_settings(TrainSettings, words, "esper train", trust=expect_nothing_imported)
            found.append(Planned(varied, int(seed), folder, ["train", *words, "--resume", "auto", "--progress", "off"]))
    return found


def _several(value: Entry) -> tuple[Any, ...]:
    """The values of a name; on the command line ``+`` stands between them, in a file they are a list."""
    if isinstance(value, str):
        return tuple(value.split("+"))
    return value if isinstance(value, tuple) else (value,)


def _threads(settings: SweepSettings) -> int:
    """Threads of a run."""
    return max(1, cores() // (settings.processes or cores()))


def _flags(varied: Table) -> list[str]:
    """Words that say what is varied."""
    flags = list[str]()
    for name, value in varied.items():
        table, _, inner = name.partition(".")
        said = str(value).lower() if isinstance(value, bool) else str(value)
        flags += [f"--{table.replace('_', '-')}", f"{inner}={said}" if inner else said]
    return flags


def _expect_same(folder: Path, common: Sequence[str]) -> None:
    """Raise unless a directory is unused, or a sweep of the same words."""
    path = folder / "sweep.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["train"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"--out {folder}: sweep.json cannot be read; expected that of a sweep, or none") from None
    if found != list(common):
        raise SettingsError(
            f"--out {folder}: a sweep of train {' '.join(found)}; expected the same, or another directory"
        )


def _run(settings: SweepSettings, members: Sequence[Planned], folder: Path, out: TextIO) -> dict[str, str]:
    """Run what is not whole; by folder, why a run failed."""
    left = [each for each in members if not is_whole(each.folder, each.words)]
    most, failed = min(settings.processes or cores(), max(1, len(left))), dict[str, str]()
    out.write(f"{folder}: {len(members)} runs, {len(members) - len(left)} of them whole; {most} at a time\n")
    folder.mkdir(parents=True, exist_ok=True)
    pool, progress = WorkerPool(TrainWorker, most, most), make_progress(settings.progress, "run", out)
    try:
        with watched() as watch, closing(progress), closing(pool):
            for each in left:
                pool.put({"folder": str(each.folder), "words": each.words})
            _wait(pool, len(left), watch, progress, failed.__setitem__)
    except Stopped as asked:
        out.write(f"{asked}: stopped; the same command goes on\n")
        raise
    return failed


def _wait(pool: WorkerPool, count: int, watch: Watch, progress: Progress, fail: Callable[[str, str], object]) -> None:
    """Take what is done as it comes."""
    ended, start = 0, time.perf_counter()
    while ended < count:
        watch.check()
        done = pool.done(LOOK)
        if done is None:
            continue
        ended += 1
        if said := _failure(done):
            fail(done.job["folder"], said)
        name = Path(done.job["folder"]).name
        left = (time.perf_counter() - start) / ended * (count - ended)
        progress.show(ended, count, f"{name}: {said or 'done'}", left)


def _failure(done: JobDone) -> str:
    """Why a run failed; nothing, if it did not."""
    if done.answer is None:
        return done.error
    status, said = done.answer["status"], done.answer["said"]
    return "" if status == 0 else said or f"ended with status {status}"
