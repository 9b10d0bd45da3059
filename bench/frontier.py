"""The frontier: test accuracy against parameters, and against FLOPs of training, of static and of grown networks.

Run from the repository's root: ``python -m bench.frontier --task digits [--envs 16] [--epochs 25] [--out FOLDER]
[--policy RUN] [--quick] [--optimizer adam] [--final-rate 0.05] [--only NAMES]``; ``--task idx:FOLDER`` and
``cifar10:FOLDER`` read datasets on disk.

Static networks of a range of widths and depths, composites of a narrow host and a bypass trained jointly from the first
step, the same composites grown by scripts, static networks pruned half way, ``gromo`` where it is installed, and the
policy of a training run: all on the same number of SGD steps of the same data, each at the rate of a few whose mean
validation accuracy is highest at the end (a run's policy at its run's). Everything reported is of the test part.
"""

import argparse
import datetime
import sys
from pathlib import Path

import torch

from bench.frontier_contenders import POLICY, Contender, contenders, field_of
from bench.frontier_gromo import MissingPeerError, play_gromo
from bench.frontier_play import Point, Study, play, play_run
from bench.frontier_prune import pairs, play_pruned
from bench.frontier_report import summarise, write
from esper.kasmina.optimizers import OPTIMIZERS
from esper.leyline.config import Config, ConfigError, SampleOrder
from esper.runtime.build import make
from esper.runtime.policy_checkpoint import load_policy
from esper.runtime.report_frontier import frontier_folder, put_frontier
from esper.runtime.scene import SceneSettings, build_scene
from esper.runtime.tasks import named
from esper.tezzeret.choose import CHOICES
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.settings import SettingsError

ENVS, QUICK_ENVS = 16, 6
"""Initialisations, and under ``--quick``: as few as have an interval."""


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


def policy_point(run: str, study: Study) -> Point:
    """The policy of a training run.

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
    policy = load_policy(loaded, engine.interface, False)
    return play_run(engine, policy, study, f"policy of {run}", POLICY)


def _numbers(words: str) -> tuple[float, ...]:
    return tuple(map(float, words.split(",")))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--task", default="digits", help="preset, idx:FOLDER or cifar10:FOLDER")
    flags.add_argument(
        "--envs", type=int, default=0, help=f"initialisations of each, >= 6; 0 = {ENVS}, or {QUICK_ENVS}"
    )
    flags.add_argument("--epochs", type=int, default=0, help="decisions; 0 = as many as the task says")
    flags.add_argument("--seed", type=int, default=1, help="odd ones are no training run's")
    flags.add_argument("--backend", choices=CHOICES, default="auto")
    flags.add_argument("--rates", type=_numbers, default=(), help="with commas between, instead of the usual few")
    flags.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default=None, help="of hosts and seeds; the task's")
    flags.add_argument(
        "--final-rate", type=float, default=None, help="share of the rate at the end of a cosine; 1 = constant"
    )
    flags.add_argument("--only", default="", help="names of contenders, with commas between, instead of all")
    flags.add_argument("--policy", default="", help="run directory")
    flags.add_argument("--out", type=Path, default=None, help="runs/frontier-<task> if not given")
    flags.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    flags.add_argument("--quick", action="store_true", help="fewer sizes and initialisations")
    return flags


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


def frontier(asked: argparse.Namespace) -> tuple[list[Point], Study]:
    """Train everybody.

    Raises:
      ConfigError, DatasetError, SettingsError, CheckpointError: one line with the place, the value and what is allowed.
    """
    envs = asked.envs or (QUICK_ENVS if asked.quick else ENVS)
    if envs < QUICK_ENVS:
        raise SettingsError(f"--envs {envs}: expected at least {QUICK_ENVS}, for an interval")
    task = named(asked.task)
    usual = make(task, 1)
    own = dict.fromkeys(("host_optimizer", "seed_optimizer"), asked.optimizer) if asked.optimizer else {}
    own |= {} if asked.final_rate is None else {"final_lr_fraction": asked.final_rate}
    # with the validation samples that engines decide on, for the peer too
    task = task._replace(data=usual.data, settings=task.settings | own)
    field, epochs = field_of(task, asked.quick), asked.epochs or usual.config.horizon
    study = Study(task, envs, epochs, asked.rates or field.rates, asked.seed, asked.backend)
    points = list[Point]()
    for contender in chosen(contenders(task, field), asked.only):
        points.append(play(contender, study))
        say(points[-1])
    if not (task.data.has_tokens or asked.only):
        points += others(study, field.pruned, asked.quick)
    if asked.policy:
        points.append(policy_point(asked.policy, study))
        say(points[-1])
    return points, study


def main(arguments: list[str] | None = None) -> None:
    """Train everybody, and write what was found."""
    flags = parser()
    asked = flags.parse_args(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        points, study = frontier(asked)
    except (ConfigError, DatasetError, SettingsError, CheckpointError) as error:
        flags.exit(2, f"{error}\n")
    folder = asked.out or frontier_folder(Path("runs"), asked.task)
    print(write(folder, summarise(points, study) | {"date": datetime.date.today().isoformat()}))
    print(f"{folder}/frontier.md, .json and .svg")
    if asked.policy and (run := Path(asked.policy)).is_dir() and folder.absolute().parent == run.absolute().parent:
        put_frontier(run, asked.task)
        print(f"{run}/report.html has the chart")


if __name__ == "__main__":
    main()
