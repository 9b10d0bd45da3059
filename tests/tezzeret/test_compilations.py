"""What is counted of compilations, against what lies on disk, what is in memory, and what torch itself tells."""

import pytest
import torch
import torch._dynamo

import esper
from esper.bench.meter import compilations
from esper.tezzeret import toolchain
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor.compiled import compiled
from esper.tezzeret.native import lower
from esper.tezzeret.native.library import library
from esper.utils.compilations import LEDGER


def told():
    """What was counted since this was asked last, without zeros; seconds apart."""
    found = {name: value for name, value in LEDGER.since_told().items() if value}
    seconds = {name: found.pop(name) for name in list(found) if name.startswith("compilation_seconds")}
    assert all(value > 0 for value in seconds.values())
    assert {name.removeprefix("compilation_seconds_") for name in seconds} == {
        name.removeprefix("compilations_") for name in found if name.startswith("compilations")
    }
    return found


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_a_library_is_built_once_and_found_then(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 41; }\n')
    told()
    path, _ = toolchain.built(tmp_path, find_compiler())
    assert told() == {"cache_misses_library": 1, "compilations_library": 1}
    toolchain.built(tmp_path, find_compiler())
    toolchain.built(tmp_path, find_compiler())
    assert told() == {"cache_hits_library": 2}
    path.unlink()
    (tmp_path / "answer.cpp").write_text("no C++\n")
    with pytest.raises(Exception, match="returned non-zero"):
        toolchain.built(tmp_path, find_compiler())
    assert told() == {"cache_misses_library": 1, "compilations_library": 1}


@pytest.mark.skipif(library() is None, reason="no library")
def test_a_module_is_written_once_for_all_engines(small_task):
    lower._written.cache_clear()
    told()
    esper.make(small_task, 2, backend="native")
    first = told()
    kept = lower._written.cache_info().currsize
    assert first["compilations_programs"] == first["cache_misses_programs"] == kept > 0
    esper.make(small_task, 3, backend="native")
    second, asked = told(), first["cache_misses_programs"] + first.get("cache_hits_programs", 0)
    assert second["cache_hits_programs"] + second.get("cache_misses_programs", 0) == asked
    assert second.get("compilations_programs", 0) == second.get("cache_misses_programs", 0) < kept
    esper.make(small_task, 2, backend="eager")
    assert told() == {}


def test_graphs_are_counted_as_torch_tells_of_them():
    """Of this thread alone, and with what torch's own cache counts."""
    torch._dynamo.reset()
    told()
    run = compiled(lambda x: 2 * x.sin(), "eager")
    with compilations() as counted:
        run(torch.ones(8))
        run(torch.zeros(8))
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(8))
    assert counted == [2] and told() == {"compilations_graphs": 1}
    torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"] += 2
    torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"] += 1
    assert told() == {"cache_hits_graphs": 2, "cache_misses_graphs": 1}
