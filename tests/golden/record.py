"""Record the golden trajectories: ``python -m tests.golden.record [NAME ...]``, from the root.

The files are a second source of truth for changes that must not change behaviour. Record anew only where a change of
behaviour is meant, and say so in the commit.
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("ESPER_NATIVE", "0")

import numpy as np
import torch

from esper.leyline.codes import Verdict
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, Stage

_spec = importlib.util.spec_from_file_location("golden_cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
sys.modules["golden_cases"] = cases
_spec.loader.exec_module(cases)


def record_trajectory(case: "cases.GoldenRun", precision: Precision) -> dict[str, np.ndarray]:
    """A trajectory of drawn actions: its actions, what was seen at each step [T, ...], the leaves at its end."""
    engine = cases.build(case, precision)
    state, actions, rows = engine.init(case.seed), [], []
    for _ in range(cases.LENGTH):
        action = cases.draw(engine, state, case.seed)
        actions.append(cases.words(engine, action))
        state, event = engine.step(state, action)
        assert not event.result.refusal.any()
        rows.append(cases.seen(state, event))
    stacked = {f"seen.{name}": torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}
    ends = {f"leaf.{name}": value for name, value in cases.leaves(engine, state).items()}
    facts = {"names": np.array(engine.codec.blueprint_names), "data": cases.digest(engine)}
    return {"actions": np.stack(actions)} | facts | stacked | ends


def narrow(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Integers as int8 or int16: no number here is larger."""
    small = {name: value.astype(np.int16) for name, value in values.items() if value.dtype == np.int64}
    assert all((small[name] == values[name]).all() for name in small)
    return values | small


def say(*line: object) -> None:
    sys.stdout.write(" ".join(map(str, line)) + "\n")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    stages, kinds, verdicts = set[Stage](), set[str](), set[int]()
    for case in cases.CASES:
        for precision in (Precision.FLOAT32, Precision.FLOAT64):
            path = case.file(precision)
            if not names or case.name in names:
                np.savez_compressed(path, **narrow(record_trajectory(case, precision)))
            with np.load(path) as file:
                met = cases.visited(file["seen.during"], file["seen.stage"])
                held = {str(file["names"][kind]) for kind in np.unique(file["seen.blueprint"]) if kind >= 0}
                found = {int(verdict) for verdict in np.unique(file["seen.verdict"])}
            stages, kinds, verdicts = stages | met, kinds | held, verdicts | found
            say(f"{path.name}: {path.stat().st_size // 1000} kB", *(stage.name for stage in sorted(met)))
            say("   ", *sorted(held), *(Verdict(number).name for number in sorted(found)))
    assert {*ACTIVE, Stage.CULLED} <= stages, stages
    say("all:", *(stage.name for stage in sorted(stages)), *sorted(kinds), *sorted(verdicts))


if __name__ == "__main__":
    main(sys.argv[1:])
