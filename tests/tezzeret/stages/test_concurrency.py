"""Many who ask for the same: each key is compiled once, among threads and among processes."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from esper.tezzeret.stages import compile_document, pipeline
from esper.urza.store import StoreSettings, Tiers, open_store

NAMES = ("lora", "probe", "conv_norm", "linear_bottleneck")


def test_sixteen_threads(store: Tiers, request_of, monkeypatch: pytest.MonkeyPatch) -> None:
    built, plain = [], pipeline.build

    def counted(work, log):
        built.append(work.key)
        return plain(work, log)

    monkeypatch.setattr(pipeline, "build", counted)
    asked = [NAMES[number % 4] for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda name: compile_document(request_of(name), store), asked))
    ids = {name: {id for asked_for, (id, _) in zip(asked, results, strict=True) if asked_for == name} for name in NAMES}
    assert all(len(each) == 1 and None not in each for each in ids.values()), [r[-1].line for _, r in results]
    assert len(built) == len(set(built)) == 4


def work(folder: str, name_numbers: list[int], requests, end) -> None:
    torch.set_num_threads(1)
    with open_store(StoreSettings(folder=folder)) as store:
        end.send([compile_document(requests[number], store)[0] for number in name_numbers])


@pytest.mark.skipif(sys.platform != "linux", reason="forks are not safe elsewhere")
def test_eight_processes(request_of, tmp_path: Path) -> None:
    """Ids tell: metadata hold the time and what was measured, so that two compilations have two."""
    context, folder = get_context("fork"), str(tmp_path / "store")
    requests, ends = [request_of(name) for name in NAMES], []
    for number in range(8):
        end, other = context.Pipe(duplex=False)
        order = [(number + step) % 4 for step in range(4)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.Process(target=work, args=(folder, order, requests, other), daemon=True).start()
        other.close()
        ends.append((order, end))
    found: dict[int, set[str]] = {number: set() for number in range(4)}
    for order, end in ends:
        assert end.poll(120)
        for number, id in zip(order, end.recv(), strict=True):
            found[number].add(id)
    assert all(len(ids) == 1 and None not in ids for ids in found.values())
    with open_store(StoreSettings(folder=folder)) as store:
        assert len(store.list(kind="blueprint")) == 4
