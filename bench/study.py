"""Does a policy pay? Learned policies against everybody else, on a task whose environments differ.

Run from the repository's root: ``python -m bench.study --task digits_varied [--seeds 5] [--quick]``.

Everybody plays the same held-out environments and is scored by J on test samples: waiting, chance, the rule of thumb as
shipped and tuned, the task's scripts, the best of all scripts, the best one for what an environment is told, four
bandits, one static network, a search over sizes of static networks with all that it costs, and the policies that
``esper train`` makes of several seeds. Each environment's best script in hindsight, by its own validation, is the
ceiling: score = sum(J - J of waiting) / sum(J in hindsight - J of waiting). All is kept in a book, so that a study that
was cut off goes on; a further ``--learner`` adds its policies to those that are there.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import bandits
from bench.book import Book, Page
from bench.study_play import (
    Trial,
    best_script,
    by_group,
    by_what_is_told,
    learned,
    learned_before,
    statics,
    task_scripts,
    tuned_rule,
    usual,
    words_of,
)
from bench.study_report import summarise, write
from esper.leyline.config import ConfigError
from esper.runtime.runs import expect_room
from esper.runtime.scene import Rules, build_scene
from esper.runtime.train_settings import TrainSettings
from esper.tamiyo.selection import STRATEGIES
from esper.tezzeret.choose import CHOICES
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.documents import json_ready, one_line
from esper.utils.paths import user_path
from esper.utils.settings import Entry, SettingsError, read_settings, setting
from esper.utils.stats import FEWEST

QUICK: dict[str, Any] = {"envs": 32, "choosing": 16, "seeds": 1, "candidates": 8, "episodes": 0}
QUICK |= {"train": {"rounds": 8}}
"""What ``--quick`` asks for where nothing else is."""

PARTS = ("learned", "told", "scripts", "rule", "static", "bandits")
"""Who is played beside those that need nothing and the task's scripts."""

SETTINGS_OF = "settings of "
"""Before a learner's name, in the book."""


@dataclass(frozen=True)
class StudySettings:
    """Does a policy pay? Learned policies against everybody else, on a task whose environments differ."""

    task: str = setting("digits_varied", "preset or KIND:PATH")
    envs: int = setting(128, "held-out environments", FEWEST, 65536)
    choosing: int = setting(64, "environments in which choices are made", FEWEST, 65536)
    seeds: int = setting(5, "training seeds 0, 1, ...; 0 = no further policy is trained", 0, 1000)
    learner: str = setting("usual", "name of the learned policies")
    train: Mapping[str, Entry] = setting({}, "settings of esper train by name, for this learner")
    candidates: int = setting(16, "rules of thumb that are tried", 2, 4096)
    episodes: int = setting(1, "of bandits on training environments, before they are scored once more; 0 = not", 0, 64)
    groups: str = setting("price,data_share", "numbers of contexts by which the task's scripts are chosen, too")
    only: str = setting("", f"of {', '.join(PARTS)}, with commas between, those that are played; empty = all")
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    runs: str = setting("", "folder of the book and the training runs; empty = runs/study-<task>")
    out: str = setting("bench/results/study", "path of the tables and pictures, without suffix")
    threads: int = setting(0, "of torch; 0 = its own choice", 0, 1024)
    quick: bool = setting(False, "fewer environments, seeds, rounds and sizes")


def quickened(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings where none was asked for."""
    return dict(QUICK) if given.get("quick") else {}


def everybody(trial: Trial, asked: StudySettings) -> tuple[dict[str, Page], dict[str, Any]]:
    """All rows by name, and what is told beside them: the groups of contexts, and the study of selectors."""
    only, more = asked.only.split(",") if asked.only else PARTS, dict[str, Any]()
    if "learned" in only:
        learn(trial, asked)
    policies = learned_before(trial.book)
    rows = usual(trial) | {page.policy: page for page in task_scripts(trial)}
    if "scripts" in only:
        rows |= best_script(trial)
    if "told" in only:
        seen = trial.held.engine.data.variation.seen
        for names in (seen, [name for name in asked.groups.split(",") if name in seen]):
            rows |= by_what_is_told(trial, names)
        more["by_group"] = by_group(trial, asked.groups.split(","))
    if "rule" in only:
        rows |= tuned_rule(trial, asked.candidates)
    if "static" in only:
        spent = [float(page.gflops.mean()) for page in policies.values()]
        rows |= statics(trial, sum(spent) / len(spent) if spent else None)
    if "bandits" in only:
        more["selectors"] = bandits.study(trial.book, trial.task, asked.envs, asked.episodes, asked.backend)
        timings = trial.book.facts("timings", lambda: bandits.timings(trial.task, (1,), asked.backend))
        more["selectors"]["timings"] = timings
        kinds = ["", bandits.UNLIMITED, *([bandits.AFTER.format(asked.episodes)] if asked.episodes else [])]
        rows |= {name + kind: trial.book.read(name + kind) for kind in kinds for name in STRATEGIES}
    return rows | policies, more


def learn(trial: Trial, asked: StudySettings) -> None:
    """Train this learner's policies, and play them.

    Raises:
      SettingsError: the book has a learner of this name with other settings.
    """
    numbers = json_ready(asked.train)
    if asked.seeds:
        known = trial.book.facts(SETTINGS_OF + asked.learner, lambda: numbers)
        if known != numbers:
            raise SettingsError(f"--learner {asked.learner}: {numbers}; expected {known}, as in {trial.folder}")
    for seed in range(asked.seeds):
        learned(trial, asked.learner, numbers, seed)


def study(asked: StudySettings) -> dict[str, Any]:
    """Play everybody.

    Raises:
      ConfigError, DatasetError, SettingsError, CheckpointError: one line with the place, the value and what is allowed.
    """
    if not set(asked.only.split(",") if asked.only else PARTS) <= set(PARTS):
        raise SettingsError(f"--only = {asked.only!r}: expected some of {', '.join(PARTS)}, with commas between")
    folder = user_path(asked.runs) if asked.runs else Path("runs") / f"study-{asked.task.partition(':')[0]}"
    expect_room(folder)
    training = read_settings(TrainSettings, words_of(asked.train), "bench.study --train")
    scenes = [build_scene(Rules(task=asked.task), envs, asked.backend) for envs in (asked.envs, asked.choosing)]
    setup = {"data": scenes[0].engine.data.record(), "envs": asked.envs, "choosing": asked.choosing}
    book = Book(folder / "book.json", json_ready(setup | {"quick": asked.quick}))
    rounds = training.rounds + training.demonstrations * (1 + len(scenes[0].task.scripts))
    trial = Trial(*scenes, rounds * training.num_envs, book, folder, asked.backend, asked.quick)
    if not trial.held.task.scripts:
        raise SettingsError(f"--task {asked.task}: names no scripts; expected a task whose environments differ")
    variation = trial.held.engine.data.variation
    if not all(name in variation for name in asked.groups.split(",")):
        raise SettingsError(f"--groups = {asked.groups!r}: expected some of {', '.join(variation.distributions)}")
    rows, more = everybody(trial, asked)
    ceiling = [page.policy for page in task_scripts(trial)]
    known = [name for name in book.pages if name.startswith(SETTINGS_OF)]
    learners = {name.removeprefix(SETTINGS_OF): book.pages[name] for name in known}
    return summarise(trial, rows, ceiling) | more | {"learners": learners}


def main(arguments: list[str] | None = None) -> None:
    """Play everybody, and write what was found."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        asked = read_settings(StudySettings, words, "bench.study", quickened)
        path = user_path(asked.out)
        expect_room(path.parent)
        if asked.threads:
            torch.set_num_threads(asked.threads)
        found = study(asked)
    except (ConfigError, DatasetError, SettingsError, CheckpointError) as error:
        print(one_line(f"bench.study: {error}"), file=sys.stderr)
        sys.exit(2)
    print(write(path, found | {"command": f"python -m bench.study {' '.join(words)}"}))
    print(f"{path}.md, .json and .svg")


if __name__ == "__main__":
    main()
