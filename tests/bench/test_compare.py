"""Two runs side by side: what is red, against numbers worked out by NumPy, and what was not compared."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.bench.__main__ import MISUSED, RED, main
from esper.bench.compare import mark
from esper.bench.record import Result, to_table

MACHINE = {"torch": "2", "device": "cpu", "threads": 2, "processor": "p", "commit": "c"}
SETTINGS = {"task": "digits", "backend": "eager", "repeat": 3}


def command(*words):
    out, notes = io.StringIO(), io.StringIO()
    return main(list(map(str, words)), out, notes), out.getvalue(), notes.getvalue()


def written(path, results, machine=None, **settings):
    """A file with these results."""
    table = to_table(MACHINE | (machine or {}), SETTINGS | settings, results)
    path.write_text(json.dumps(table))
    return path


def timed(**columns):
    """Results with these seconds, at E = 8, and nothing counted."""
    return [Result(case, "unit", 8, seconds=seconds) for case, seconds in columns.items()]


def counted(case="a", recompiles=0, waits=3, launches=100, bytes=4096, runs=1):
    return Result(case, "u", 8, None, [1.0], runs, recompiles, waits, launches, bytes)


def line_of(out, start):
    (found,) = [line for line in out.splitlines() if line.startswith(start)]
    return found


def test_times_are_shown_and_marked_and_never_red(tmp_path):
    """All of B takes twice as long: every ratio within a run is what it was."""
    columns = {"first": [1.0, 1.1, 1.2], "second": [2.0, 2.1, 2.3]}
    a = written(tmp_path / "a.json", timed(**columns))
    b = written(tmp_path / "b.json", timed(**{name: [2 * x for x in each] for name, each in columns.items()}))
    status, out, _ = command("compare", a, b)
    assert status == 0 and "green: 0 of 1 are red" in out
    assert line_of(out, "first ").split()[8:] == ["2.000", "slower"]
    assert line_of(out, "second / first").split()[-1] == "1.000"
    assert mark([1.0, 2.0], [1.5, 3.0]) == ""


@pytest.mark.parametrize(("factor", "red"), [(1.0, 0), (1.04, 0), (1.06, 1), (0.96, 0), (0.94, 1)])
def test_a_ratio_may_move_by_five_per_cent_either_way(tmp_path, factor, red):
    a = written(tmp_path / "a.json", timed(below=[1.0, 1.0, 1.0], above=[2.0, 2.0, 2.0]))
    b = written(tmp_path / "b.json", timed(below=[3.0, 3.0, 3.0], above=[6.0 * factor] * 3))
    status, out, _ = command("compare", a, b)
    assert (status, f"{red} of 1 are red" in out) == (RED if red else 0, True)
    assert line_of(out, "above / below").split()[6:] == [f"{factor:.3f}", *["RED"] * red]


SECONDS = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3)


@given(st.lists(SECONDS, min_size=6, max_size=6))
def test_ratios_are_medians_over_turns(tmp_path_factory, columns):
    """NumPy's medians of quotients, turn by turn, and its quantiles."""
    folder = tmp_path_factory.mktemp("files")
    names = ("x", "y", "z")
    halves = [dict(zip(names, part, strict=True)) for part in (columns[:3], columns[3:])]
    files = [written(folder / f"{place}.json", timed(**half)) for place, half in enumerate(halves)]
    status, out, _ = command("compare", *files)
    found = 0
    for name in names[1:]:
        turns = [np.array(half[name]) / np.array(half["x"]) for half in halves]
        moved = np.median(turns[1]) / np.median(turns[0])
        if abs(abs(moved - 1) - 0.05) < 1e-9:
            return
        red = abs(moved - 1) > 0.05
        low, high = ([np.quantile(turn, share) for turn in turns] for share in (0.1, 0.9))
        apart = low[0] > high[1] or low[1] > high[0]
        words = line_of(out, f"{name} / x").split()
        assert words[6] == f"{moved:.3f}"
        assert " ".join(words[7:]) == (("RED" if apart else "RED, ranges overlap") if red else "")
        found += red
    assert status == (RED if found else 0) and f"{found} of 2 are red" in out


@pytest.mark.parametrize("name", ["recompiles", "waits", "launches", "bytes"])
@pytest.mark.parametrize("change", [1, -1])
def test_every_count_is_compared_exactly(tmp_path, name, change):
    plain = {"recompiles": 5, "waits": 3, "launches": 100, "bytes": 4096}
    a = written(tmp_path / "a.json", [counted(**plain)])
    b = written(tmp_path / "b.json", [counted(**plain | {name: plain[name] + change})])
    status, out, _ = command("compare", a, b)
    assert status == RED and "RED: 1 of 1 are red" in out
    assert f"{plain[name]} > {plain[name] + change}" in out
    assert command("compare", a, a)[0] == 0


def test_across_machines_ratios_alone_are_compared_and_that_is_said(tmp_path):
    a = written(tmp_path / "a.json", [counted("a"), counted("b")])
    b = written(tmp_path / "b.json", [counted("a", launches=7), counted("b")], {"threads": 3, "processor": "q"})
    status, out, _ = command("compare", a, b)
    assert status == 0 and "green: 0 of 1 are red" in out
    assert "not compared: counts: another machine: processor: A p, B q; threads: A 2, B 3" in out


def test_what_could_not_be_compared_is_said(tmp_path):
    wrong = Result("c", "u", 8, wrong="a loss is 1; expected 2")
    old = Result("d", "u", 8, None, [1.0], 1)  # as before launches and bytes were counted
    a = written(tmp_path / "a.json", [counted("a"), *timed(gone=[1.0]), counted("c"), old, counted("e", runs=2)])
    b = written(tmp_path / "b.json", [counted("a"), wrong, counted("d", waits=0), counted("e"), *timed(new=[1.0])])
    status, out, _ = command("compare", a, b)
    assert status == RED and "c, E = 8: RED: B's gate: a loss is 1; expected 2" in out
    assert "not compared: A only: gone, E = 8" in out and "not compared: B only: new, E = 8" in out
    assert "partly compared" in out and "A of 2, B of 1 not compared" in out
    status, out, _ = command("compare", b, a)
    assert status == 0 and "c, E = 8: not compared: A's gate was red" in out


def test_runs_of_other_settings_are_not_compared(tmp_path):
    a = written(tmp_path / "a.json", [counted("a"), counted("b")])
    b = written(tmp_path / "b.json", [counted("a"), counted("b", launches=7)], backend="native")
    status, out, notes = command("compare", a, b)
    assert status == MISUSED and "not compared: counts and ratios: backend: A eager, B native" in out
    assert notes == f"esper.bench: {a}, {b}: nothing compared; expected runs of equal settings\n"


def test_ratios_of_the_table_and_rates_of_parts(tmp_path):
    """Contributions 1.0 and then 1.2 of a validation; a part's rate beside others 0.5 and then 0.4 of that alone."""
    parts = [Result("many", "u", 1, seconds=[9.0], rates={"store": [[100.0, 100 * share]]}) for share in (0.5, 0.4)]
    columns = [{"validation": [1.0], "contributions": [1.0 + share]} for share in (1.0, 1.2)]
    files = [
        written(tmp_path / f"{place}.json", [*timed(**each), part])
        for place, (each, part) in enumerate(zip(columns, parts, strict=True))
    ]
    status, out, _ = command("compare", *files)
    assert status == RED and "3 of 3 are red" in out
    assert line_of(out, "contributions / plain validation").split()[4:] == ["8", "1.000", "1.200", "1.200", "RED"]
    assert line_of(out, "rate beside others / alone, store").split()[6:] == ["1", "0.500", "0.400", "0.800", "RED"]
    assert line_of(out, "contributions / validation").split()[3:] == ["8", "2.000", "2.200", "1.100", "RED"]


HEAD = '{"format": 3, "machine": {}, "settings": {}, "results": '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 99}',
        '{"format": 2, "results": [{"case": "x"}]}',
        '{"format": 2, "results": 3}',
        "[" * 100_000,
        HEAD + "3}",
        HEAD + '[{"case": "x"}]}',
        HEAD + '[{"case": "x", "unit": "u", "envs": 8, "seconds": ["slow"], "probe": null}]}',
        HEAD + '[{"case": "x", "unit": "u", "envs": 8, "seconds": [-1.0], "probe": null}]}',
        HEAD + '[{"case": "x", "unit": "u", "envs": "8", "seconds": [1.0], "probe": null}]}',
        HEAD + '[{"case": "x", "unit": "u", "envs": 8, "seconds": [1.0], "rates": [], "probe": null}]}',
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    status, out, notes = command("compare", path, path)
    assert (status, out) == (MISUSED, "") and notes.count("\n") == 1 and "odd.json" in notes


def test_files_without_a_common_case_are_one_line(tmp_path):
    files = written(tmp_path / "a.json", timed(one=[1.0])), written(tmp_path / "b.json", timed(other=[1.0]))
    status, _, notes = command("compare", *files)
    assert status == MISUSED and "no case was timed in both" in notes and notes.count("\n") == 1
