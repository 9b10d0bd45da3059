"""``python -m esper.bench`` alone: rows by hand, a budget that is kept, a chart and a file that can be read."""

import io
import json
import xml.etree.ElementTree as tree
from dataclasses import replace

import pytest
import torch

from esper.bench import __main__ as command
from esper.bench import throughput
from esper.bench.case import Bench, mixed
from esper.bench.settings import CHART, read_arguments
from esper.bench.throughput import LOADS, Row, matrix_rate, measure, multiply_adds
from esper.bench.throughput_report import chart, table
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE
from esper.runtime.tasks import TASKS


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(throughput, "PER_ROW", 0.0)
    return Bench(TASKS["synthetic"](), torch.device("cpu"), Precision.FLOAT32, "eager", quick=True)


def test_without_a_word_the_throughput_is_measured():
    alone = read_arguments([])
    assert alone.action == "throughput" and str(alone.chart) == CHART and alone.json is None
    assert read_arguments(["--device", "cpu"]).action == "throughput"
    assert read_arguments(["list"]).action == "list"


def test_it_prints_a_table_and_writes_a_chart_and_json(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(command.Asked, "bench", lambda self: bench)
    words = ["--task", "synthetic", "--backend", "eager"]
    words += ["--chart", str(tmp_path / "t.svg"), "--json", str(tmp_path / "t.json")]
    out, notes = io.StringIO(), io.StringIO()
    assert command.throughput(read_arguments(words), out, notes, (1, 3)) == 0
    record = json.loads((tmp_path / "t.json").read_text())
    rows = record["throughput"]
    assert [(row["envs"], row["load"]) for row in rows] == [(count, load) for count in (1, 3) for load in LOADS]
    steps, batch = record["settings"]["steps_per_epoch"], record["settings"]["batch_size"]
    for row in rows:
        assert row["env_steps"] == pytest.approx(1e3 * row["envs"] / row["milliseconds"])
        assert row["sgd_steps"] == pytest.approx(row["env_steps"] * steps)
        assert row["samples"] == pytest.approx(row["sgd_steps"] * batch)
        assert 0 < row["of_matrix_rate"] < 1.5 and row["peak_bytes"] > 1e6
        assert f"{row['milliseconds']:.2f}" in out.getvalue()
    assert record["machine"]["instruction_set"] in out.getvalue() and notes.getvalue().count("environments") == 4
    assert max(map(len, out.getvalue().splitlines())) <= 120
    drawn = tree.parse(tmp_path / "t.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 4


def test_multiply_adds_by_hand(bench):
    """Three forward passes for every sample trained and one for every one validated; of hosts, and of their seeds."""
    engine = bench.engine(2)
    bare, seeded = mixed(engine, 0.0, ACTIVE), mixed(engine, 1.0, ACTIVE)
    config, host = engine.config, sum(block.flops for block in engine.structure.host.blocks)
    passes = 3 * config.steps_per_epoch * config.batch_size + engine.data.validation.size
    assert multiply_adds(engine, bare.slots) == 2 * host * passes
    kinds = engine.structure.blueprints
    seeds = 0
    for row in seeded.slots.blueprint.tolist():
        for slot, kind in zip(engine.structure.slots, row, strict=True):
            seeds += kinds[kind].flops(slot.reads, slot.acts)
    assert multiply_adds(engine, seeded.slots) == (2 * host + seeds) * passes


def test_rows_that_do_not_fit_the_budget_are_named_and_not_measured(bench):
    notes = []
    rows = measure(bench, notes.append, begun=-1e9, envs=(1, 2))
    assert [row.missing for row in rows] == ["no time: 50 s are for all rows"] * 4 and not notes
    assert matrix_rate(bench.device, torch.float32) > 0


FACTS = {"esper": "0", "commit": None, "torch": "2", "tensordict": "0", "torchrl": "0", "python": "3", "processor": "p"}
FACTS |= {"device": "cpu", "threads": 1, "cores": 1, "instruction_set": "AVX2"}
SETTINGS = {"batch_size": 1, "steps_per_epoch": 1, "slots": 1, "backend": "eager", "quick": False, "task": "t"}
SETTINGS |= {"host": "h", "dtype": "float32", "runs": []}


def test_a_wrong_result_is_shown_and_not_drawn(bench, monkeypatch, tmp_path):
    good = Row(16, "dormant", None, 10.0, 3, 1600.0, 3200.0, 6400.0, 10**8, 0.25)
    bad = replace(good, load="half active", missing="WRONG: a loss")
    text = table(FACTS, SETTINGS, [good, bad])
    assert "WRONG: a loss" in text and "25.0" in text and text.count("10.00") == 1
    assert chart("a & b", [good, bad]).count("<circle") == 1 and "a &amp; b" in chart("a & b", [good, bad])
    monkeypatch.setattr(command, "measure", lambda *arguments: [bad])
    monkeypatch.setattr(command.Asked, "bench", lambda self: bench)
    words = ["--chart", str(tmp_path / "t.svg"), "--backend", "eager", "--task", "synthetic"]
    assert command.throughput(read_arguments(words), io.StringIO(), io.StringIO()) == command.RED
    assert not (tmp_path / "t.svg").exists()
