"""What a study plays: learned policies and everybody they are held against, in the same held-out environments.

Whatever is chosen (the best script, the numbers of the rule of thumb, the size of a static network, whether a learned
policy draws its actions or takes the likeliest) is chosen by J on the validation samples of other environments than it
is scored in. Searches may play as many episodes as the learner trains on.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.bandits import HELD_OUT, outcome_of
from bench.book import COLUMNS, Book, Page, page_of
from bench.frontier_contenders import field_of
from bench.scripts import assess, groups_of
from bench.study_static import Course, affordable, always, course, searched
from bench.tune_rule import draw, plays, search
from bench.tune_rule import play as play_rule
from esper.__main__ import main as esper
from esper.leyline.actions import Blend
from esper.runtime import scripts
from esper.runtime.policies import NAMED, heuristic_of
from esper.runtime.policy_checkpoint import load_policy, load_run
from esper.runtime.rollout import Outcome
from esper.runtime.scene import Scene, build_scene
from esper.runtime.scripts import WAIT, every_script
from esper.runtime.task import Script
from esper.runtime.yardsticks import seen_utility
from esper.tamiyo.policies import LEARNED, Policy, heuristic_policy
from esper.utils.settings import SettingsError
from esper.utils.stats import FEWEST

CHOOSING = 2**33
"""Seed of the environments in which choices are made: even, and no round of training has it by seeds below 4,000."""

STARTS = (0, 12)
"""Epochs from which scripts grow, in the search."""

FEW = 3
"""Environments that choose a script for their group."""

CHOSEN = ", choosing"
"""Behind the name of what was played where choices are made."""

Play = Callable[[Scene, Any, int], Outcome]
"""An episode of a candidate in the environments of a seed."""


class Trial(NamedTuple):
    """What all that is played has in common.

    Attributes:
      held: the scene with the held-out environments.
      choosing: the scene with those in which choices are made.
      budget: episodes, of one environment each, that a search may play.
      book: where all is kept.
      folder: of the training runs.
      backend: how networks are run.
      quick: fewer sizes and candidates.
    """

    held: Scene
    choosing: Scene
    budget: int
    book: Book
    folder: Path
    backend: str
    quick: bool

    @property
    def task(self) -> str:
        """The task's name."""
        return self.held.rules.task


def played(trial: Trial, name: str, policy: Callable[[Scene], Policy], chooses: bool = False, **facts: Any) -> Page:
    """A policy in the held-out environments, or in those where choices are made."""
    scene, seed, label = (trial.choosing, CHOOSING, CHOSEN) if chooses else (trial.held, HELD_OUT, "")
    return trial.book.page(name + label, lambda: page_of(scene.engine, outcome_of(scene, policy(scene), seed), **facts))


def usual(trial: Trial) -> dict[str, Page]:
    """Policies that need nothing: waiting, chance, the rule of thumb as shipped."""
    names = {WAIT: WAIT, "random": "random", "rule of thumb, as shipped": "heuristic"}
    return {
        shown: played(trial, shown, lambda scene, name=name: NAMED[name](scene, None)) for shown, name in names.items()
    }


def task_scripts(trial: Trial, chooses: bool = False) -> list[Page]:
    """Waiting and the task's scripts, of which the best in hindsight is the ceiling."""

    def plays_script(script: Script) -> Callable[[Scene], Policy]:
        return lambda scene: scripts.play(scene.engine, script)

    found = [played(trial, WAIT, lambda scene: scripts.waiting(scene.engine), chooses)]
    return found + [played(trial, each.name, plays_script(each), chooses) for each in trial.held.task.scripts]


def mean_seen(page: Page) -> float:
    """Mean J on validation samples; networks that were never validated count as 0 %."""
    return float((page.utility - page.test_accuracy + page.val_accuracy.nan_to_num(0.0)).mean())


def gathered(name: str, pages: Sequence[Page], which: Tensor) -> Page:
    """Of every environment the page that was chosen for it, int64 [E]."""
    columns = {
        column: torch.stack([getattr(each, column) for each in pages]).gather(0, which[None])[0] for column in COLUMNS
    }
    counts = {each.policy: int((which == number).sum()) for number, each in enumerate(pages)}
    return Page(name, **columns, facts={"chosen": counts})


def by_what_is_told(trial: Trial, names: Sequence[str]) -> dict[str, Page]:
    """The best of the task's scripts for every group of some numbers that an environment is told, low or high each.

    Where a group has fewer than ``FEW`` of the environments in which choices are made, it has the best script of all.
    """
    if not names or not trial.held.task.scripts:
        return {}
    chosen, held = task_scripts(trial, chooses=True), task_scripts(trial)
    seen = torch.stack([seen_utility(each) for each in chosen]).nan_to_num(nan=-torch.inf)
    which = seen.mean(1).argmax().expand(held[0].utility.shape[0]).clone()
    there, here = (
        groups_of(scene, seed, names) for scene, seed in ((trial.choosing, CHOOSING), (trial.held, HELD_OUT))
    )
    for name, group in there.items():
        if int(group.sum()) >= FEW:
            which[here[name]] = seen[:, group].mean(1).argmax()
    name = f"script by {', '.join(names)}"
    return {name: gathered(name, held, which)}


def by_group(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    """The task's scripts, chosen for groups of some numbers of the contexts; what ``bench.scripts.assess`` finds."""
    pages = [
        Page(first.policy, *(torch.cat(pair) for pair in zip(first[1:-1], other[1:-1], strict=True)), facts={})
        for first, other in zip(task_scripts(trial, chooses=True), task_scripts(trial), strict=True)
    ]
    both = [groups_of(scene, seed, names) for scene, seed in ((trial.choosing, CHOOSING), (trial.held, HELD_OUT))]
    groups = {name: torch.cat((both[0][name], both[1][name])) for name in both[0]}
    return assess(pages, groups, torch.arange(len(pages[0].utility)) >= trial.choosing.engine.config.num_envs)


def searched_for(trial: Trial, name: str, candidates: Sequence[Any], play: Play) -> dict[str, Any]:
    """The winner's number, of a search by successive halving at the trial's budget, and how much was played."""
    envs = max(FEWEST, round(trial.budget / plays(len(candidates))))

    def find() -> dict[str, Any]:
        scene = build_scene(trial.held.rules, envs, trial.backend)
        with contextlib.redirect_stdout(sys.stderr):
            rounds = search(scene, candidates, play)
        episodes = envs * plays(len(candidates))
        return {"winner": int(next(iter(rounds[-1]["scores"]))), "candidates": len(candidates), "episodes": episodes}

    return trial.book.facts(name, find)


def best_script(trial: Trial) -> dict[str, Page]:
    """The best script, searched: blueprint, slots, start and blend."""
    structure, blends = trial.held.engine.structure, (Blend.SIGMOID, Blend.LINEAR)
    offered = [blend for blend in blends if blend in structure.config.blends][: 1 if trial.quick else None]
    candidates = list(every_script(structure, STARTS, offered))

    def play(scene: Scene, script: Script, seed: int) -> Outcome:
        return outcome_of(scene, scripts.play(scene.engine, script), seed)

    found = searched_for(trial, "search over scripts", candidates, play)
    script = candidates[found["winner"]]
    row = played(trial, "best script", lambda scene: scripts.play(scene.engine, script), script=script.name, **found)
    return {f"best script: {script.name}": row}


def tuned_rule(trial: Trial, number: int) -> dict[str, Page]:
    """The rule of thumb with the best numbers of some candidates."""
    candidates = [draw(place, trial.held.engine.codec.blueprint_names) for place in range(number)]
    found = searched_for(trial, "search over rules of thumb", candidates, play_rule)
    numbers, name = candidates[found["winner"]], "rule of thumb, tuned"

    def policy(scene: Scene) -> Policy:
        return heuristic_policy(scene.engine.codec, heuristic_of(numbers, scene.engine.config.blends))

    return {name: played(trial, name, policy, numbers=numbers, **found)}


def courses_of(trial: Trial, chooses: bool) -> list[Course]:
    """Static networks of several sizes, in the held-out environments or where choices are made."""
    scene, seed, label = (trial.choosing, CHOOSING, CHOSEN) if chooses else (trial.held, HELD_OUT, "")
    found = list[Course]()
    for host in field_of(scene.task, quick=True).hosts[:: 2 if trial.quick else 1]:

        def find(host=host) -> dict[str, Any]:
            return {
                name: each if isinstance(each, str) else each.tolist()
                for name, each in course(scene, host, seed)._asdict().items()
            }

        row = trial.book.facts(f"static {host.name}{label}", find)
        found.append(
            Course(row["host"], *(torch.tensor(row[name], dtype=torch.float64) for name in Course._fields[1:]))
        )
    return found


def statics(trial: Trial, budget: float | None) -> dict[str, Page]:
    """One size that is best where choices are made; a search over sizes, all epochs, and within a budget in GFLOP."""
    chosen, held = courses_of(trial, chooses=True), courses_of(trial, chooses=False)
    worth = [float(each.seen_utility[-1].nan_to_num(nan=-100.0).mean()) for each in chosen]
    horizon = held[0].seen.shape[0]
    pages = [always(held, worth.index(max(worth))), searched(held, horizon)]
    last = 0 if budget is None else affordable(held, budget)
    pages += [searched(held, last)] if 0 < last < horizon else []
    return {page.policy: page for page in pages}


def words_of(numbers: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    return [word for name, value in numbers.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def learned(trial: Trial, learner: str, numbers: Mapping[str, Any], seed: int) -> Page:
    """A policy, trained by the command line, in the held-out environments.

    Args:
      trial: what is played.
      learner: name of the settings; a run of the same name and seed is gone on with.
      numbers: settings of ``esper train`` beside task, seed and place.
      seed: of the run.

    Raises:
      SettingsError: training failed; it has said why.
    """
    folder = trial.folder / f"{learner}-{seed}"
    own = {"task": trial.task, "seed": seed, "out": folder, "resume": "auto", "eval_envs": 0, "progress": "lines"}

    def play() -> Page:
        with contextlib.redirect_stdout(sys.stderr):
            status = esper(["train", *words_of(own | {"backend": trial.backend} | dict(numbers))])
        if status:
            raise SettingsError(f"training {learner!r} with seed {seed}: ended with status {status}")
        loaded = load_run(folder)

        def outcome(scene: Scene, where: int, greedy: bool) -> Page:
            policy = load_policy(loaded, scene.engine.interface, greedy)
            return page_of(scene.engine, outcome_of(scene, policy, where), greedy=greedy, learner=learner, seed=seed)

        tried = {greedy: mean_seen(outcome(trial.choosing, CHOOSING, greedy)) for greedy in (False, True)}
        return outcome(trial.held, HELD_OUT, max(tried, key=lambda greedy: tried[greedy]))

    name = learned_name(learner, seed)
    return trial.book.page(name, play)._replace(policy=name)


def learned_name(learner: str, seed: int) -> str:
    """Of a row."""
    return f"{LEARNED} {learner}, seed {seed}"


def learned_before(book: Book) -> dict[str, Page]:
    """All learned policies of a book, by name, in the order in which they were played."""
    names = [name for name in book.pages if name.startswith(f"{LEARNED} ")]
    return {name: book.read(name)._replace(policy=name) for name in names}
