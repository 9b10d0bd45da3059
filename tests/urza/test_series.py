"""A series: the newest that can be read counts, and what is removed is never the last that can."""

import shutil

import pytest
import torch

from esper.urza import series
from esper.urza.checkpoint import MANIFEST, CheckpointError, save


def write(folder, *numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        save(series.member(folder, number), {"x": torch.tensor(float(number))}, {"number": number})


def test_the_newest_that_can_be_read_counts(tmp_path):
    assert series.newest(tmp_path / "none", print) is None
    write(tmp_path / "runs", 0, 2, 10)
    (tmp_path / "runs" / "round-000011.tmp-abc").mkdir()
    assert series.numbers(tmp_path / "runs") == [0, 2, 10]
    told = []
    for expected in (10, 2, 0):
        path, found = series.newest(tmp_path / "runs", told.append)
        assert found.table == {"number": expected} and path == series.member(tmp_path / "runs", expected)
        manifest = path / MANIFEST
        manifest.write_bytes(manifest.read_bytes()[:-3])
    assert len(told) == 3 and "round-000010" in told[0] and told[0].endswith("an older one is taken")
    with pytest.raises(CheckpointError, match="round-000010"):
        series.newest(tmp_path / "runs", told.append)


def test_pruning_keeps_the_newest_and_what_is_needed(tmp_path):
    write(tmp_path / "runs", *range(6))
    series.prune(tmp_path / "runs", 2, needed=(1,))
    assert series.numbers(tmp_path / "runs") == [1, 4, 5]
    series.take_back(tmp_path / "runs", 4)
    assert series.numbers(tmp_path / "runs") == [1, 4]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["round-000001", "round-000004"]
    shutil.rmtree(tmp_path / "runs")
