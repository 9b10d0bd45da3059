"""The evaluation at a run's end: its policy and the baselines on held-out environments of every task."""

from collections.abc import Sequence
from typing import TextIO

from esper.nissa.progress import Progress
from esper.runtime.compare import compare
from esper.runtime.interrupt import Watch, interruptible
from esper.runtime.outlets import Outlets
from esper.runtime.policies import policies_of
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.report import Findings
from esper.runtime.runs import Run
from esper.runtime.scene import Rules, build_scene
from esper.runtime.table import table
from esper.runtime.train_settings import TrainSettings
from esper.utils.documents import to_json

HELD_OUT = 1
"""Seed of the evaluation at the end: odd, as ``evaluate``'s default; training uses even ones."""


def evaluate_run(
    rules_of_tasks: Sequence[Rules],
    settings: TrainSettings,
    kept: tuple[Run, Outlets],
    progress: Progress,
    ends: tuple[Watch, TextIO],
) -> Findings:
    """Play the learned policy and the baselines on held-out environments of every task; write what came of it.

    Returns:
      the first task's findings; the others' are in files of their own, ``evaluation-2.json`` and on.
    """
    (run, outlets), (watch, out), found = kept, ends, []
    for place, rules in enumerate(rules_of_tasks, start=1):
        scene = build_scene(rules, settings.eval_envs, settings.backend, settings.device)
        scene = scene._replace(engine=interruptible(scene.engine, watch))
        policies = policies_of(scene, load_run(run.folder), greedy=False)
        report, outcomes = compare(scene, policies, HELD_OUT, progress.note)
        watch.check()  # nobody looked while the static network trained
        progress.close()
        name = "evaluation.json" if place == 1 else f"evaluation-{place}.json"
        outlets.write(run.folder / name, to_json(report, indent=2) + "\n")
        out.write("\n" + table(report))
        where = scene.engine.structure.slot_names
        found.append(Findings(report, tuple(outcomes), scene.engine.codec.blueprint_names, where))
    return found[0]
