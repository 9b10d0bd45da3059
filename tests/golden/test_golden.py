"""Recorded trajectories, played again: the same stages, the same numbers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, Stage

_spec = importlib.util.spec_from_file_location("golden_cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
sys.modules["golden_cases"] = cases
_spec.loader.exec_module(cases)

CLOSE = {Precision.FLOAT64: 1e-12, Precision.FLOAT32: 1e-4}
"""Largest difference, as a fraction of the largest number of its kind (or of 1, where that is larger)."""

STEADY = ("train_loss", "val_loss", "alpha", "host.params", "seeds.params", "buffers")
"""Floats compared in float32. There rounding now and then turns a relu or a prediction on the brink: gradients and
accuracies jump at once, losses and parameters hardly move.
"""


def compare(name: str, got: np.ndarray, kept: np.ndarray, precision: Precision) -> None:
    assert got.shape == kept.shape, name
    if kept.dtype.kind != "f":
        assert (got == kept).all(), name
    elif precision is Precision.FLOAT64 or name in STEADY:
        assert np.isfinite(kept).all(), name
        scale = max(1.0, np.abs(kept).max(initial=0.0))
        np.testing.assert_allclose(got, kept, rtol=0, atol=CLOSE[precision] * scale, err_msg=name)


@pytest.mark.parametrize("precision", CLOSE, ids=lambda each: each.value)
@pytest.mark.parametrize("case", cases.CASES, ids=lambda each: each.name)
def test_a_recorded_trajectory_plays_again(case, precision):
    with np.load(case.file(precision)) as file:
        kept = {name: file[name] for name in file.files}
    engine, names = cases.build(case, precision), kept["names"].tolist()
    if case.task == "chars" and (cases.digest(engine) != kept["data"]).any():
        pytest.skip("this CPython carries another text")
    known = torch.tensor([engine.codec.blueprint_names.index(name) for name in names])
    state = engine.init(case.seed)
    for step, row in enumerate(kept["actions"]):
        state, event = engine.step(state, cases.encode(engine, row, names))
        assert not event.result.refusal.any(), step
        for name, value in cases.seen(state, event).items():
            recorded = kept[f"seen.{name}"][step]
            if name == "blueprint":
                recorded = np.where(recorded < 0, recorded, known[recorded.clip(0)].numpy())
            compare(name, value.numpy(), recorded, precision)
    for name, value in cases.leaves(engine, state).items():
        compare(name, value, kept[f"leaf.{name}"], precision)


def test_the_recordings_meet_every_stage_and_many_blueprints():
    stages, kinds = set(), set()
    for case in cases.CASES:
        with np.load(case.file(Precision.FLOAT64)) as file:
            stages |= cases.visited(file["seen.during"], file["seen.stage"])
            kinds |= {str(file["names"][kind]) for kind in np.unique(file["seen.blueprint"]) if kind >= 0}
    assert {*ACTIVE, Stage.CULLED} <= stages
    assert len(kinds) >= 10
