"""The command: words, files, ratios by hand, and fresh processes."""

import io
import json
from pathlib import Path

import pytest
import torch

from esper.bench import fresh
from esper.bench.__main__ import MISUSED, main
from esper.bench.case import Bench
from esper.bench.cases import cases_of
from esper.bench.fresh import Probe, ProbeError
from esper.bench.ratios import findings
from esper.bench.record import Result, read_table, results_of, summary, to_table
from esper.bench.report import number, report
from esper.leyline.config import Precision
from esper.runtime.tasks import TASKS

QUICK = ["--quick", "--backend", "eager", "--task", "synthetic", "--repeat", "2"]


def command(*words):
    out, notes = io.StringIO(), io.StringIO()
    return main(list(words), out, notes), out.getvalue(), notes.getvalue()


@pytest.mark.parametrize(
    ("words", "message"),  # each names a case that does not exist, so that nothing runs if the word is let through
    [
        (["--chart", "/nowhere/at/all.svg"], "--chart = '/nowhere/at/all.svg': expected a file in a folder"),
        (["--device", "abacus"], "--device = 'abacus': expected cpu, cuda"),
        (["measure"], "invalid choice: 'measure'"),
        (["run", "host-stpe"], "case 'host-stpe': unknown; did you mean 'host-step'?"),
        (["run", "x"], "case 'x': unknown; known are host-step, env-step-dormant"),
        (["run", "x", "--envs", "1,two"], "--envs = 'two': expected an integer from 1 to"),
        (["run", "x", "--envs", "0"], "--envs = '0': expected an integer from 1"),
        (["run", "x", "--envs", "4,4"], "--envs = '4,4': expected distinct numbers"),
        (["run", "x", "--envs", "9999999"], "--envs = '9999999': expected"),
        (["run", "x", "--repeat", "-1"], "--repeat = '-1': expected"),
        (["run", "x", "--repeat", "0"], "--repeat = '0': expected"),
        (["run", "x", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["run", "x", "--backend", "oracle"], "invalid choice: 'oracle'"),
        (["run", "x", "--task", "mnist"], "invalid choice: 'mnist'"),
        (["run", "x", "--device", "abacus"], "--device = 'abacus': expected cpu, cuda"),
        (["run", "x", "--device", "meta"], "--device = 'meta': expected cpu, cuda"),
        (
            ["run", "x", "--json", "/nowhere/at/all.json"],
            "--json = '/nowhere/at/all.json': expected a file in a folder",
        ),
        (["run", "x", "--speed"], "unrecognized arguments: --speed"),
        (["compare", "a.json"], "the following arguments are required"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "/nowhere/a.json"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(words, message):
    status, out, notes = command(*words)
    assert (status, out) == (MISUSED, "")
    assert notes.startswith("esper.bench: ") and notes.count("\n") == 1 and message in notes


def test_a_device_that_is_not_there_is_one_line():
    status, _, notes = command("run", "--device", "cuda:77")
    assert (
        status == MISUSED
        and "--device = 'cuda:77': " in notes
        and "expected one that is here: cpu" in notes
        and notes.count("\n") == 1
    )


@pytest.mark.parametrize("task", TASKS)
def test_list_names_every_case_and_its_unit_of_work(task):
    status, out, _ = command("list", "--task", task)
    names = [line.split()[0] for line in out.splitlines()]
    assert status == 0 and len(set(names)) == len(names)
    asked = "host-step env-step-dormant env-step-10 env-step-50 env-step-100 env-step-mixed-100 contributions"
    asked += " round cold-start warm-start random-walk validation"
    assert set(asked.split()) <= set(names)
    kinds = {f"env-step-{blueprint.name}" for blueprint in TASKS[task]().blueprints}
    assert kinds <= set(names)
    assert all(len(line) <= 120 and len(line.split()) > 2 for line in out.splitlines())


def test_a_run_writes_what_it_reports_and_compares_with_itself(tmp_path):
    path = tmp_path / "a.json"
    status, out, notes = command("run", "validation", "env-step-n*", "--envs", "2,4", *QUICK, "--json", str(path))
    assert status == 0 and "env-step-norm, E = 4: gate" in notes
    assert all(len(line) <= 120 for line in out.splitlines())
    table = read_table(path)
    results = results_of(table)
    assert [(r.case, r.envs) for r in results] == [
        (case, envs) for case in ("env-step-norm", "validation") for envs in (2, 4)
    ]
    assert json.loads(json.dumps(to_table(table["machine"], table["settings"], results))) == table
    assert report(table, results) == out
    for row, result in zip(table["results"], results, strict=True):
        assert row["summary"] == summary(result)
        assert f"{1e3 * row['summary']['median']:.2f}" in out
    assert table["settings"]["backend"] == "eager" and table["settings"]["runs"][0] in out
    assert table["machine"]["threads"] == torch.get_num_threads()
    status, out, _ = command("compare", str(path), str(path))
    times = [line for line in out.splitlines() if line.startswith(("env-step-norm  ", "validation  "))]
    assert status == 0 and sum(line.endswith(" 1.000") for line in times) == 4
    assert all(row["launches"] > 0 and row["bytes"] > 0 for row in table["results"])
    assert "slower" not in out and "faster" not in out and "\ngreen: 0 of " in out
    assert all(len(line) <= 120 for line in out.splitlines())


def test_numbers_per_second_and_memory_by_hand():
    row = summary(Result("x", "u", 8, seconds=[1.0, 3.0, 2.0], probe=Probe(3.0, 1.0, 900, 80)))
    assert (row["median"], row["p10"], row["p90"]) == pytest.approx((2.0, 1.2, 2.8))
    assert (row["envs_per_second"], row["first_seconds"]) == (4.0, 2.0)
    assert (row["peak_bytes"], row["bytes_per_env"]) == (900, 10.0)
    assert summary(Result("x", "u", 8, wrong="no")) == {}


def test_ratios_by_hand():
    """Turn by turn: extra over dormant, contributions, scaling."""
    columns = {
        ("env-step-dormant", 8): [1.0, 2.0, 3.0],
        ("env-step-10", 8): [1.1, 2.4, 3.2],
        ("env-step-100", 8): [2.0, 4.0, 3.0],
        ("host-step", 8): [0.5, 1.0, 1.5],
        ("validation", 8): [1.0, 2.0, 4.0],
        ("contributions", 8): [3.0, 4.0, 8.0],
        ("env-step-dormant", 32): [4.0, 4.0, 18.0],
    }
    results = [Result(case, "u", envs, seconds=seconds) for (case, envs), seconds in columns.items()]
    walk = Result("random-walk", "u", 8, seconds=[1.0], counted=200, waits=201, recompiles=0)
    found = {each.name: each for each in findings([*results, walk])}
    extra = found["extra cost, 10 % active / 100 %"]
    assert (extra.median, extra.limit, extra.verdict) == (pytest.approx(0.15), 0.2, "kept"), "2 turns: 0.1 and 0.2"
    assert found["contributions / plain validation"].median == pytest.approx(1.0)
    assert found["contributions / plain validation"].verdict == "kept"
    assert found["training of dormant slots / whole step"].median == pytest.approx(0.5)
    scaling = found["time per environment, env-step-dormant"]
    assert (scaling.envs, scaling.median, scaling.verdict) == ("32/8", pytest.approx(1.0), "kept")
    waits = found["waits in 200 random steps"]
    assert (waits.median, waits.limit, waits.verdict) == (201.0, 200.0, "EXCEEDED")
    assert found["recompilations in 200 random steps"].verdict == "kept"
    assert not [name for name in found if "mixed" in name or "50 %" in name]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0.00"),
        (0.2, "0.20"),
        (0.0123, "0.012"),
        (1.234, "1.23"),
        (56.78, "56.8"),
        (999, "999"),
        (1500, "1.50k"),
        (2.5e7, "25.0M"),
        (3.21e11, "321G"),
        (4e12, "4.00T"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.fixture
def tiny():
    return Bench(TASKS["synthetic"](), torch.device("cpu"), Precision.FLOAT32, "eager", quick=True)


def test_a_fresh_process_finds_times_and_memory(tiny):
    with fresh.empty_caches() as caches:
        found = Probe(**fresh.ask(tiny, "host-step", 2, caches))
        assert found.first > 0 and found.second > 0
        assert 0 < found.run_bytes <= found.peak_bytes < 2e9
        folders = [Path(value) for value in caches.values()]
        with pytest.raises(ProbeError, match=r"x, E = 2, in a fresh process: exit status 1: KeyError: 'x'"):
            fresh.ask(tiny, "x", 2, caches)
    assert not any(folder.parent.exists() for folder in folders)


def test_a_start_is_a_fresh_process_whose_losses_are_checked(tiny):
    """The gate compares what the process reports with one network; other losses turn it red."""
    case = cases_of(tiny.task)["cold-start"]
    trial = case.prepare(tiny, 2)
    losses = trial.run()
    assert case.gate(trial._replace(run=lambda: losses)) is None
    assert "in the fresh process is" in case.gate(trial._replace(run=lambda: [1.01 * loss for loss in losses]))
