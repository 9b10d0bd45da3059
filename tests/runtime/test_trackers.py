"""Weights & Biases, offline, and MLflow, in a database of its own: what their libraries have is what the run has."""

import io
import json
import math
import os
import struct
import time
from pathlib import Path

import pytest

from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("default")  # of packages that are not ours

BLOCK = 1 << 15
"""Bytes of a block of W&B's file, which is LevelDB's log: no record's head lies across two."""


def needed(name):
    """A package's module, or a skip; a failure where services are demanded."""
    if os.environ.get("ESPER_SERVICES") == "1":
        __import__(name)
    return pytest.importorskip(name)


def settings(out, rounds, **more):
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 1, "horizon": 4, "eval_envs": 0, "backend": "eager"}
    small |= {"task": "synthetic", "num_envs": 2, "rounds": rounds, "progress": "off", "telemetry": "standard"}
    return TrainSettings(out=str(out), **(small | {"engine": {"steps_per_epoch": 1}} | more))


def numbers(folder):
    """Round -> its finite numbers, from the run's own record."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        row["round"]: {
            name: float(value) for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        for row in rows
    }


def played(folder, sink, rounds=(2, 3)):
    """A run that ends, and goes on for another round."""
    for number in rounds:
        resume = {} if number == rounds[0] else {"resume": str(folder)}
        train(settings(folder, number, sinks=sink, **resume), io.StringIO())
    return numbers(folder)


def test_mlflow_has_what_the_run_has(tmp_path, caplog):
    tracking, _ = needed("mlflow.tracking"), needed("alembic")
    place = f"sqlite:///{tmp_path / 'tracked.db'}"
    tracking.MlflowClient(place)  # making the database takes longer than such a run
    wanted = played(tmp_path / "run", f"mlflow:{place}")
    assert not [line for line in caplog.messages if line.startswith("sink ")]
    client = tracking.MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("esper").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["task"] == "synthetic" and run.data.params["rounds"] == "2"
    found = {number: {} for number in wanted}
    for name in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, name):
            assert name not in found[each.step]
            found[each.step][name] = each.value
    assert found == wanted
    assert json.loads(run.data.tags["run.done"])["round"] == 3
    assert json.loads(run.data.tags["epoch.completed"])["decision"] == 4


def records(path):
    """The records of W&B's own file, as its protocol has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_has_what_the_run_has(tmp_path, caplog, monkeypatch):
    needed("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    wanted = played(tmp_path / "run", "wandb:growth")
    assert not [line for line in caplog.messages if line.startswith("sink ")]
    files = sorted(Path(tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    told, end = [], time.monotonic() + 30  # its own process writes them
    while [record.WhichOneof("record_type") for record in told].count("exit") < 2:
        assert time.monotonic() < end, told
        told = [record for path in files for record in records(path)]
    runs = [record.run for record in told if record.WhichOneof("record_type") == "run"]
    assert len(files) == len(runs) == 2 and len({run.run_id for run in runs}) == 1
    assert {(run.project, run.display_name) for run in runs} == {("growth", "run")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["task"] == "synthetic" and config["rounds"] == 2
    found = {}
    for history in (record.history for record in told if record.WhichOneof("record_type") == "history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        assert history.step.num not in found
        found[history.step.num] = {name: value for name, value in items.items() if not name.startswith("_")}
    assert found == wanted
    summaries = [record.summary for record in told if record.WhichOneof("record_type") == "summary"]
    last = {(i.key or "/".join(i.nested_key)): i.value_json for each in summaries for i in each.update}
    assert json.loads(json.loads(last["event/run.done"]))["round"] == 3
