"""The script of rows for a GPU: which rows are run, how they are marked, and what an earlier call leaves to be done."""

import json
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gpu(bench_module):
    return bench_module("gpu")


@pytest.fixture(scope="module")
def setup(bench_module, tmp_path_factory):
    place = tmp_path_factory.mktemp("gpu")
    return bench_module("gpu_setup").Setup(torch.device("cpu"), True, "eager", None, 1, place)


def row_of(gpu, name, run):
    return gpu.Row(name, "", run, 1.0)


def test_a_result_is_written_as_soon_as_it_exists_and_not_measured_again(gpu, setup, capsys):
    seen, path = [], setup.out / gpu.RESULTS

    def good(_):
        seen.append(path.read_text() if path.exists() else "")
        return {"ms": 1.0}

    def bad(_):
        raise ValueError("not\ntwo lines")

    def absent(_):
        raise gpu.Empty("no card")

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    rows = [row_of(gpu, name, run) for name, run in (("a", good), ("b", bad), ("c", absent), ("d", full), ("e", good))]
    assert gpu.run_all(rows, setup, 10.0) == 3
    capsys.readouterr()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == ["a", "b", "c", "d", "e"]
    assert [line["mark"] for line in lines] == ["small", "empty", "empty", "empty", "small"]
    reasons = ["ValueError: not", "no card", "out of memory: CUDA out of memory"]
    assert [line["reason"] for line in lines[1:4]] == reasons
    assert seen[0] == "" and len(seen[1].splitlines()) == 4
    assert {"torch", "device", "commit", "tf32"} <= set(lines[0]["where"])
    assert gpu.run_all(rows, setup, 10.0) == 3 and len(seen) == 2, "what was done is not done again"
    assert gpu.done_before(path, small=False) == set(), "a small row is no measurement"


def test_a_row_that_takes_too_long_is_ended(gpu, setup, monkeypatch):
    monkeypatch.setattr(gpu, "PATIENCE", 0.1)

    def slow(_):
        try:
            time.sleep(20)
        except Exception as error:  # what a compiler does with errors of the functions it traces
            return {"caught": str(error)}

    assert gpu.run_row(row_of(gpu, "slow", slow), setup, 10.0)["reason"].startswith("out of time after")


def test_rows_are_chosen_by_patterns_in_the_order_of_the_table(gpu):
    names = [row.name for row in gpu.chosen("cifar-*,gate")]
    assert names == ["gate", "cifar-1024", "cifar-64", "cifar-4096"]
    assert len({row.name for row in gpu.ROWS}) == len(gpu.ROWS)
    assert [row.name for row in gpu.ROWS if row not in gpu.chosen("")] == ["train"]
    with pytest.raises(SystemExit, match="no such row"):
        gpu.chosen("nothing")


def test_rows_and_cache_of_an_earlier_call_are_taken_over(gpu, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "cache" / "inductor" / "ab").mkdir(parents=True)
    (first / "cache" / "inductor" / "ab" / "code.py").write_text("x = 1")
    (first / gpu.RESULTS).write_text('{"row": "a", "mark": "measured"}\n{"row": "b", "mark": "empty"}\n')
    gpu.save_cache(first)
    second.mkdir()
    gpu.take_over(first, second)
    assert (second / "cache" / "inductor" / "ab" / "code.py").read_text() == "x = 1"
    assert gpu.done_before(second / gpu.RESULTS, small=False) == {"a"}


def test_steps_of_this_checkout_in_a_process_of_their_own(bench_module, setup):
    found = bench_module("gpu_rivals").stepped("digits", 4, setup, ["--device", "cpu"])
    assert found["envs"] == 4 and found["half_active_ms"] > 0 and found["first_seconds"] > 0
    with pytest.raises(bench_module("gpu_setup").Empty, match="exit status"):
        bench_module("gpu_rivals").stepped("digits", 4, setup, ["--device", "nowhere"])
