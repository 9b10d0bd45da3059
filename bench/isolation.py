"""What a seed in TRAINING should learn by: its own objective, straight-through, or without isolation; paired.

Run from the repository's root: ``python -m bench.isolation [--tasks digits,chars,idx:FOLDER] [--envs 8]``.
A cell is a task, a form (a slot behind the host's last block, or a bypass from its input to its logits) and an
optimizer, of hosts and seeds alike. In each, a script grows one seed by each isolation at each of three rates, on the
same initialisations and minibatches, under the task's own gates; a host that never grows runs beside them. What is done
lies in the folder as one file a cell and isolation, and is not done again; the table is of all files there.

The rule for the default of ``Config.isolation``, written down before the first run. In each cell an isolation has the
rate whose mean validation accuracy is highest at the end. Its gain is the test accuracy there minus straight-through's,
paired by initialisation, averaged over the cells of a task, and then over the tasks. ``objective`` is the default if
its gain over the tasks is above 0 by the lower bound of its 95 % interval, and on no task below -1 point by the upper
bound; otherwise ``straight_through`` is. ``none`` gives up what isolation promises, a host that learns as if no seed
were there: it is the default only if its gain exceeds that of the form so chosen by 1 point, by the lower bound.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.frontier_contenders import BYPASS, GROWN, STATIC, Contender, field_of, growing, prepared
from bench.frontier_flops import nothing
from bench.frontier_play import Study, epochs_of, init, judged, make_engine
from bench.isolation_report import Row, write
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import CONV8X2
from esper.kasmina.conv_blueprints import BOTTLENECK
from esper.kasmina.token_blueprints import ATTENTION
from esper.kasmina.token_bypasses import TRANSFORMER16
from esper.leyline.config import ConfigError, Isolation
from esper.leyline.stages import FAILURE, Stage, is_in
from esper.runtime.build import make
from esper.runtime.runs import expect_room
from esper.runtime.tasks import Task, named
from esper.tezzeret.choose import CHOICES
from esper.tolaria.data import DatasetError
from esper.utils.documents import one_line
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError, read_settings, setting

LEAST_ENVS = 6
"""Initialisations: as few as have an interval."""

NEVER = "wait"
"""In place of an isolation: nothing grows."""

RATES = {
    ("images", "sgd"): (0.03, 0.1, 0.3),
    ("images", "adam"): (0.003, 0.01, 0.03),
    ("tokens", "sgd"): (0.03, 0.1, 0.3),
    ("tokens", "adam"): (0.01, 0.02, 0.04),
}
"""Of hosts and seeds alike."""

OPTIMIZERS = ("host_optimizer", "seed_optimizer")
"""Settings that a cell's optimizer is."""

SEEDS: dict[str, tuple[Blueprint, Blueprint]] = {"images": (BOTTLENECK, CONV8X2), "tokens": (ATTENTION, TRANSFORMER16)}
"""What grows in a slot, and in a bypass."""


@dataclass(frozen=True)
class IsolationSettings:
    """What a seed in TRAINING should learn by: its own objective, straight-through, or without isolation; paired."""

    tasks: str = setting("digits,chars", "presets and KIND:FOLDER, with commas between")
    envs: int = setting(8, "initialisations of each, as few as have an interval", LEAST_ENVS, 65536)
    epochs: int = setting(0, "decisions; 0 = as many as the task says", 0, 100_000)
    seed: int = setting(1, "odd ones are no training run's", 0, 2**40)
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    out: str = setting("runs/isolation", "folder")
    threads: int = setting(0, "of torch; 0 = its own choice", 0, 1024)


class Cell(NamedTuple):
    """What runs together: a task, a form, an optimizer and an isolation, at all rates."""

    task: Task
    optimizer: str
    form: str  # slot or bypass; of a host that never grows, NEVER
    isolation: str  # or NEVER

    @property
    def data(self) -> str:
        """The kind: images or tokens."""
        return "tokens" if self.task.data.has_tokens else "images"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.task.name.partition(':')[0]}-{self.optimizer}-{self.form}-{self.isolation}.json"

    def contender(self) -> Contender:
        """Who is trained."""
        host, optimizers = field_of(self.task, True).start, dict.fromkeys(OPTIMIZERS, self.optimizer)
        if self.form == NEVER:
            return Contender(NEVER, STATIC, prepared(self.task, host, (), slots=(), **optimizers))
        bypass = self.form == "bypass"
        kind, slot = SEEDS[self.data][bypass], BYPASS if bypass else max(host.sites)
        settings = optimizers | {"slots": (slot,), "isolation": Isolation(self.isolation)}
        return Contender(self.file, GROWN, prepared(self.task, host, (kind,), **settings), growing(kind))


def cells(task: Task) -> Iterator[Cell]:
    """All of a task, the host that never grows first."""
    for optimizer in ("sgd", "adam"):
        yield Cell(task, optimizer, NEVER, NEVER)
        for form in ("slot", "bypass"):
            for isolation in Isolation:
                yield Cell(task, optimizer, form, isolation.value)


def watch(cell: Cell, study: Study) -> Row:
    """Train a cell, and note what became of its seeds."""
    begun, contender = time.perf_counter(), cell.contender()
    engine = make_engine(contender, study, study.rates)
    state = init(engine, study)
    count, curve, stages = state.batch_size[0], list[Tensor](), list[Tensor]()
    for _, _, after in epochs_of(engine, state, contender.policy(engine.codec), study.epochs, study.seed):
        curve.append(after.signals.val_accuracy.double())
        stages.append(after.slots.stage)
        state = after
    played = judged(engine, state, torch.stack(curve), nothing(count))
    shape = len(study.rates), study.envs
    found = {"validation": played.curve[-1], "test": played.test} | {"curve": played.curve}
    if cell.form != NEVER:
        found |= fates(torch.stack(stages).squeeze(2))
    record = {name: values.unflatten(-1, shape).tolist() for name, values in found.items()}
    return record | {"backend": engine.backend.name, "seconds": time.perf_counter() - begun}


def fates(stages: Tensor) -> dict[str, Tensor]:
    """What became of the first seed of every environment.

    Args:
      stages: int64 [T, E]; after every epoch.

    Returns:
      training: bool [T, E]; whether it was still in TRAINING.
      gate: float64 [E]; the epoch, from 1, after which it was past its gate; NaN if it never was.
      permanent: float64 [E]; whether a seed was at the end.
    """
    failed = is_in(stages, FAILURE).cummax(0).values
    past = (stages > int(Stage.TRAINING)) & ~failed
    first = torch.where(past.any(0), past.double().argmax(0) + 1.0, torch.nan)
    still = (stages == int(Stage.TRAINING)) & ~failed & ~past.cummax(0).values
    return {"training": still, "gate": first, "permanent": (stages[-1] == int(Stage.FOSSILIZED)).double()}


def play(cell: Cell, asked: IsolationSettings, folder: Path) -> None:
    """Train a cell, unless its file is there."""
    usual = make(cell.task, 1).config
    rates, backend = RATES[cell.data, cell.optimizer], asked.backend
    study = Study(cell.task, asked.envs, asked.epochs or usual.horizon, rates, asked.seed, backend)
    facts: Row = {"task": cell.task.name.partition(":")[0], "optimizer": cell.optimizer, "form": cell.form}
    facts |= {"isolation": cell.isolation, "envs": study.envs, "epochs": study.epochs, "rates": list(rates)}
    facts |= {"seed": study.seed, "steps": usual.steps_per_epoch, "torch": torch.__version__}
    path = folder / cell.file
    if path.exists():
        return
    path.write_text(json.dumps(facts | watch(cell, study)) + "\n")
    print(cell.file, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train what is not done, and write the table of all."""
    try:
        asked = read_settings(IsolationSettings, sys.argv[1:] if arguments is None else arguments, "bench.isolation")
        tasks, folder = [named(name) for name in asked.tasks.split(",")], user_path(asked.out)
        expect_room(folder)
        if asked.threads:
            torch.set_num_threads(asked.threads)
        folder.mkdir(parents=True, exist_ok=True)
        for cell in (cell for task in tasks for cell in cells(task)):
            play(cell, asked, folder)
    except (ConfigError, DatasetError, SettingsError) as error:
        print(one_line(f"bench.isolation: {error}"), file=sys.stderr)
        sys.exit(2)
    print(write(folder))


if __name__ == "__main__":
    main()
