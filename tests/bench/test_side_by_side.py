"""Many at once: that they work, that one that fails is named, and that what they leave is judged."""

import json
import shutil
import sys

import pytest
import torch

from esper.bench.case import Bench
from esper.bench.cases import cases_of
from esper.bench.fresh import ProbeError
from esper.bench.load import Pace
from esper.bench.record import Result, read_table, results_of, to_table
from esper.bench.report import rates
from esper.bench.side_by_side import PARTS, TRAININGS, SideBySide, runs_wrong, store_wrong
from esper.leyline.config import Precision
from esper.nissa.sinks import METRICS
from esper.runtime.tasks import TASKS
from esper.runtime.worker_pool import ProcessWorker
from esper.tezzeret.stages import CompileJob, CompileWorker, enqueue
from esper.urza.store import StoreSettings, open_store

ROW = '{"round": %d, "environments_hash": "%s", "learner_hash": "b", "return": 1.0}\n'


def test_all_work_alone_and_at_once_and_leave_what_they_must():
    bench = Bench(TASKS["synthetic"](), torch.device("cpu"), Precision.FLOAT32, "eager", quick=True)
    case = cases_of(bench.task)["side-by-side"]
    trial = case.prepare(bench, 2)
    try:
        assert case.gate(trial) is None
        found = trial.rates()
        folder = trial.extra.folder
        assert set(found) == set(PARTS) and all(min(pair) > 0 for pairs in found.values() for pair in pairs)
        rows = [(folder / part / METRICS).read_text().splitlines() for part in TRAININGS]
        assert min(map(len, rows)) >= 1
        with open_store(StoreSettings(folder=str(folder / "store"))) as store:
            kinds = [entry.facts["kind"] for entry in store.list()]
        assert kinds.count("bench") > 0 and len(kinds) > kinds.count("bench"), "what the client and the worker put"
        (folder / TRAININGS[0] / METRICS).write_text(ROW % (1, "other"))
        assert "round 1 of two trainings of one seed differs" in runs_wrong([folder / part for part in TRAININGS])
    finally:
        trial.close()
    assert not folder.exists()


FAILING = """
import json, sys
kind = json.loads(sys.stdin.readline())["kind"]
for line in sys.stdin:
    print(json.dumps({"units": 1, "seconds": 0.5, "wrong": "no more" if kind == "worker" else ""}), flush=True)
    if kind == "client":
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of processes that have ended")
def test_one_that_fails_or_dies_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_load.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    processes = {part: ProcessWorker("failing_load", {"kind": part}) for part in PARTS}
    many = SideBySide(tmp_path, processes, 0.5, {})
    try:
        assert [answer["units"] for answer in many.turn(["client", *TRAININGS], 0.5)] == [1, 1, 1]
        with pytest.raises(ProbeError, match=r"^side by side: worker: no more; expected it to go on$"):
            many.turn(PARTS[:3], 0.5)
        with pytest.raises(ProbeError, match=r"^side by side: a worker ended with status 0; expected all to go on$"):
            many.turn(PARTS, 0.5)
    finally:
        for each in processes.values():
            each.close()


def test_rates_are_units_over_seconds(tmp_path, monkeypatch):
    """Parts that do 10 units in 2 s alone and 3 in 1 s at once."""
    many = SideBySide(tmp_path, {}, 1.0, {})
    answers = {1: {"units": 10, "seconds": 2.0}, len(PARTS): {"units": 3, "seconds": 1.0}}
    monkeypatch.setattr(SideBySide, "turn", lambda self, parts, seconds: [answers[len(parts)]] * len(parts))
    assert many.run() == {part: [5.0, 3.0] for part in PARTS}
    assert many.run() and many.measured == {part: [[5.0, 3.0]] * 2 for part in PARTS}
    result = Result("side-by-side", "u", 64, seconds=[1.0], rates=many.measured)
    assert [line.split()[-3:] for line in rates([result]).splitlines()[1:]] == [["64", "5.00", "3.00"]] * 4
    path = tmp_path / "a.json"
    path.write_text(json.dumps(to_table({}, {}, [result])))
    assert results_of(read_table(path)) == [result]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([(1, "a"), (2, "a")], [(1, "a")], None),
        ([(1, "a"), (2, "a")], [(1, "a"), (2, "x")], "round 2 of two trainings of one seed differs"),
        ([(1, "a"), (3, "a")], [(1, "a")], "expected 1, 2, and on"),
        ([], [], "expected 1, 2, and on"),
    ],
)
def test_runs_of_one_seed_agree(tmp_path, first, second, words):
    for name, rows in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / METRICS).write_text("".join(ROW % row for row in rows))
    found = runs_wrong([tmp_path / "a", tmp_path / "b"])
    assert found is None if words is None else words in found


def test_a_store_with_damage_or_a_request_that_failed_is_wrong(tmp_path):
    folder = tmp_path / "store"
    with open_store(StoreSettings(folder=str(folder))) as store:
        id = store.put(b"x" * 100, {"kind": "bench"})
    assert store_wrong(folder) is None
    (place,) = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    shutil.copy(place, tmp_path / "kept")
    place.write_bytes(b"y" * 100)
    assert id in store_wrong(folder)
    shutil.copy(tmp_path / "kept", place)
    with open_store(StoreSettings(folder=str(folder))) as store:
        enqueue(store, CompileJob(b'{"format": 1}', "broken"))
        CompileWorker(store, "w").serve(drain=True)
    assert "'failed': 1" in store_wrong(folder)


def test_a_pace_counts_steps_and_lets_other_points_pass():
    pace = Pace()
    pace.met("write", 1)
    pace.turn.set()
    for point in ("step", "minibatch", "step"):
        pace.met(point, 1)
    assert pace.steps == 2 and not pace.waiting.is_set()
