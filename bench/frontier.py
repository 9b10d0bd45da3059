"""The frontier: test accuracy against parameters, and against FLOPs of training, of static and of grown networks.

Run from the repository's root: ``python -m bench.frontier --task digits [--envs 16] [--epochs 25] [--out FOLDER]
[--policy RUN] [--quick] [--optimizer adam] [--final-rate 0.05] [--only NAMES]``; ``--task idx:FOLDER`` and
``cifar10:FOLDER`` read datasets on disk.

Static networks of a range of widths and depths, composites of a narrow host and a bypass trained jointly from the first
step, the same composites grown by scripts, static networks pruned half way, ``gromo`` where it is installed, and the
policy of a training run: all on the same number of SGD steps of the same data, each at the rate of a few whose mean
validation accuracy is highest at the end (a run's policy at its run's). Everything reported is of the test part.
"""

import datetime
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.frontier_contenders import POLICY, Contender, contenders, field_of
from bench.frontier_gromo import MissingPeerError, play_gromo
from bench.frontier_play import Point, Study, play, play_run
from bench.frontier_prune import pairs, play_pruned
from bench.frontier_report import summarise, write
from esper.engine import Engine
from esper.kasmina.optimizers import OPTIMIZERS
from esper.leyline.config import Config, ConfigError, SampleOrder
from esper.leyline.hypers import numbers
from esper.runtime.build import make
from esper.runtime.policy_checkpoint import load_policy
from esper.runtime.report_frontier import frontier_folder, put_frontier
from esper.runtime.runs import expect_room
from esper.runtime.scene import SceneSettings, build_scene
from esper.runtime.tasks import named
from esper.tamiyo.policies import Policy
from esper.tezzeret.choose import CHOICES
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.documents import one_line
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError, read_settings, setting

ENVS, QUICK_ENVS = 16, 6
"""Initialisations, and under ``--quick``: as few as have an interval."""


@dataclass(frozen=True)
class FrontierSettings:
    """The frontier: test accuracy against parameters, and against FLOPs of training."""

    task: str = setting("digits", "preset, idx:FOLDER or cifar10:FOLDER")
    envs: int = setting(
        0, f"initialisations of each; 0 = {ENVS}, or {QUICK_ENVS} under --quick, else >= {QUICK_ENVS}", 0, 65536
    )
    epochs: int = setting(0, "decisions; 0 = as many as the task says", 0, 100_000)
    seed: int = setting(1, "odd ones are no training run's", 0, 2**40)
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    rates: str = setting("", "with commas between, instead of the usual few")
    optimizer: str = setting("", "of hosts and seeds; empty = the task's", choices=("", *sorted(OPTIMIZERS)))
    final_rate: float = setting(-1.0, "share of the rate at the end of a cosine; 1 = constant, -1 = the task's", -1, 1)
    own_host: bool = setting(False, "the task's own host grows, of datasets on disk too, and is one of all")
    only: str = setting("", "names of contenders, with commas between, instead of all")
    policy: str = setting("", "run directory")
    out: str = setting("", "folder; empty = runs/frontier-<task>")
    threads: int = setting(0, "of torch; 0 = its own choice", 0, 1024)
    quick: bool = setting(False, "fewer sizes and initialisations")


def say(point: Point) -> None:
    """A line when a contender is done."""
    test, cost = float(point.played.test.mean()), float(point.played.spent.training.mean()) / 1e9
    rate = "" if point.rate is None else f"  rate {point.rate:g}"
    print(f"{point.name:44}  test {test:6.2f} %  {cost:7.3g} GFLOP{rate}  {point.seconds:.0f} s", file=sys.stderr)


def others(study: Study, widths: tuple[int, ...], quick: bool) -> list[Point]:
    """Networks pruned to widths, and the peer, for images."""
    found = list[Point]()
    for wide, narrow in pairs(study.task, widths):
        found.append(play_pruned(wide, narrow, study))
        say(found[-1])
    config = make(study.task, 1).config
    if config.host_optimizer != "sgd":
        print(f"left out: gromo, which trains by sgd here, not by {config.host_optimizer}", file=sys.stderr)
        return found
    for rule, width in (("TINY", 16),) if quick else (("TINY", 16), ("TINY", 32), ("GradMax", 16)):
        try:
            found.append(play_gromo(study, config, rule, width))
        except MissingPeerError as reason:
            print(f"left out: {reason}", file=sys.stderr)
            break
        say(found[-1])
    return found


def policy_of(run: str, study: Study) -> tuple[Engine, Policy]:
    """The policy of a training run, and what it plays.

    Raises:
      SettingsError: its steps are not those of the others.
    """
    order = {"sample_order": SampleOrder.INDEPENDENT.value}
    scene = SceneSettings(run=run, task=study.task.name, horizon=study.epochs, seed=study.seed, engine=order)
    loaded = scene.loaded()
    assert loaded is not None, "a run was named"
    engine = build_scene(scene.rules(loaded), study.envs, study.backend).engine

    def samples(config: Config) -> tuple[int, int]:
        return config.steps_per_epoch, config.batch_size

    expected = samples(make(study.task, 1).config)
    if samples(engine.config) != expected:
        raise SettingsError(f"--policy {run}: steps and samples {samples(engine.config)}; expected {expected}, as here")
    return engine, load_policy(loaded, engine.interface, False)


def rates_of(words: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
      SettingsError: another, or one that is no rate.
    """
    known = numbers()["host_lr"]
    try:
        rates = tuple(map(float, words.split(",") if words else ()))
    except ValueError:
        rates = (math.nan,)
    if not all(known.low <= rate <= known.high for rate in rates):
        raise SettingsError(f"--rates = {words!r}: expected numbers in [{known.low:g}, {known.high:g}], commas between")
    return rates


def chosen(field: list[Contender], only: str) -> list[Contender]:
    """Those named, with commas between, or all.

    Raises:
      SettingsError: no such contender.
    """
    names = {contender.name.replace(",", ""): contender for contender in field}
    for name in filter(None, only.split(",")):
        if name not in names:
            raise SettingsError(f"--only: {name!r}: expected {', '.join(names)}")
    return [names[name] for name in dict.fromkeys(filter(None, only.split(",")))] or field


def frontier(asked: FrontierSettings) -> tuple[list[Point], Study]:
    """Train everybody.

    Raises:
      ConfigError, DatasetError, SettingsError, CheckpointError: one line with the place, the value and what is allowed;
        before anybody trains.
    """
    task = named(asked.task)
    own = dict.fromkeys(("host_optimizer", "seed_optimizer"), asked.optimizer) if asked.optimizer else {}
    own |= {} if asked.final_rate == -1 else {"final_lr_fraction": asked.final_rate}
    task = task._replace(settings=task.settings | own)
    usual = make(task, 1)
    task = task._replace(data=usual.data)  # with the validation samples that engines decide on, for the peer too
    field, epochs = field_of(task, asked.quick, asked.own_host), asked.epochs or usual.config.horizon
    envs, rates = asked.envs or (QUICK_ENVS if asked.quick else ENVS), rates_of(asked.rates)
    study = Study(task, envs, epochs, rates or field.rates, asked.seed, asked.backend)
    run = policy_of(asked.policy, study) if asked.policy else None
    points = list[Point]()
    for contender in chosen(contenders(task, field), asked.only):
        points.append(play(contender, study))
        say(points[-1])
    if not (task.data.has_tokens or asked.only):
        points += others(study, field.pruned, asked.quick)
    if run is not None:
        points.append(play_run(*run, study, f"policy of {asked.policy}", POLICY))
        say(points[-1])
    return points, study


def main(arguments: list[str] | None = None) -> None:
    """Train everybody, and write what was found."""
    try:
        asked = read_settings(FrontierSettings, sys.argv[1:] if arguments is None else arguments, "bench.frontier")
        if 0 < asked.envs < QUICK_ENVS:
            raise SettingsError(f"--envs = {asked.envs}: expected 0, or at least {QUICK_ENVS}, for an interval")
        folder = user_path(asked.out) if asked.out else frontier_folder(Path("runs"), asked.task)
        expect_room(folder)
        if asked.threads:
            torch.set_num_threads(asked.threads)
        points, study = frontier(asked)
    except (ConfigError, DatasetError, SettingsError, CheckpointError) as error:
        print(one_line(f"bench.frontier: {error}"), file=sys.stderr)
        sys.exit(2)
    print(write(folder, summarise(points, study) | {"date": datetime.date.today().isoformat()}))
    print(f"{folder}/frontier.md, .json and .svg")
    if asked.policy and (run := Path(asked.policy)).is_dir() and folder.absolute().parent == run.absolute().parent:
        put_frontier(run, asked.task)
        print(f"{run}/report.html has the chart")


if __name__ == "__main__":
    main()
