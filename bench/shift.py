"""What is forgotten when a task changes: with growth and isolation, with growth alone, and without growth.

    python -m bench.shift --envs 32 --out bench/results/DATE-shift-digits

For the first half of the episode the first half of the classes is taught, then the second half and nothing else. A seed
is germinated in the epoch of the change. The same environments, initialisations and minibatches in every row; accuracy
on the test part, of its old and of its new classes apart. Forgotten is what of the old classes' accuracy is lost
between the change and the end.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import esper
from esper.leyline.config import Isolation
from esper.leyline.contexts import Choice, Variation
from esper.leyline.state import State
from esper.runtime.compare import cell
from esper.runtime.rollout import policy_input
from esper.runtime.scripts import WAIT, play, waiting
from esper.runtime.task import Script, Task
from esper.runtime.tasks import named
from esper.tolaria.evaluation import measure
from esper.tolaria.variations import old_classes
from esper.utils import rng

HALF = 0.5
MEASURES = ("old_at_the_change", "old_at_the_end", "forgotten", "new_at_the_end", "all_at_the_end")


def by_part(engine: esper.Engine, state: State) -> dict[str, Tensor]:
    """Test accuracy [E] on the old classes, the new ones, and all, pp."""
    test = engine.data.test
    old = old_classes(test.targets, engine.data.num_classes)
    parts = {"old": test.take(old), "new": test.take(~old), "all": test}
    return {name: measure(engine.backend, engine.hypers, state, part).accuracy for name, part in parts.items()}


def live(task: Task, envs: int, seed: int, kind: str, isolation: Isolation) -> dict[str, Tensor]:
    """One row: an episode in which ``kind`` is grown from the change on, or nothing."""
    engine = esper.make(task, envs, isolation=isolation)
    change = round(HALF * engine.config.horizon)
    policy = waiting(engine) if kind == WAIT else play(engine, Script(kind, start=change))
    state, memory = engine.init(seed), policy.init(envs)
    keys = rng.fold_in(rng.key(seed), torch.arange(envs))
    for epoch in range(engine.config.horizon):
        if epoch == change:
            then = by_part(engine, state)
        memory, decision = policy.act(memory, policy_input(engine, state, rng.fold_in(keys, epoch)))
        state, _ = engine.step(state, decision.action)
    end = by_part(engine, state)
    values = (then["old"], end["old"], then["old"] - end["old"], end["new"], end["all"])
    return dict(zip(MEASURES, values, strict=True))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['task']}, {report['environments']} environments, test accuracy in %, mean ± 95 %; the task changes "
        "half way.",
        "",
    ]
    head = [name.replace("_", " ") for name in MEASURES]
    lines += [f"| | {' | '.join(head)} | forgotten, less {WAIT} |", "|---" * (len(head) + 2) + "|"]
    for name, row in report["rows"].items():
        cells = [f"{row[key]['mean']:.1f} ± {row[key]['half_width']:.1f}" for key in (*MEASURES, "less_waiting")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Play, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--kind", default="conv8x2", help="the seed that is grown")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="", help="where OUT.json and OUT.md go; empty = the table is printed")
    given = parser.parse_args()
    task = named(given.task)
    task = task._replace(data=task.data._replace(variation=Variation({"shift": Choice((HALF,))})))
    arms = {WAIT: (WAIT, Isolation.OBJECTIVE)}
    arms |= {f"grow {given.kind}, isolation {each.value}": (given.kind, each) for each in Isolation}
    found = {name: live(task, given.envs, given.seed, *arm) for name, arm in arms.items()}
    rows = {
        name: {key: cell(values) for key, values in row.items()}
        | {"less_waiting": cell(row["forgotten"] - found[WAIT]["forgotten"])}
        for name, row in found.items()
    }
    command = f"python -m bench.shift {' '.join(sys.argv[1:])}"
    report = {"command": command, "task": given.task, "environments": given.envs, "rows": rows}
    if given.out:
        Path(f"{given.out}.json").write_text(json.dumps(report) + "\n")
        Path(f"{given.out}.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
