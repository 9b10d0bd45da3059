"""A series: the newest that can be read counts, and what is removed is never the last that can."""

import errno
import os
from pathlib import Path

import pytest
import torch

from esper.urza import checkpoint, series
from esper.urza.checkpoint import MANIFEST, CheckpointError, save
from esper.urza.series import Moment


def write(folder, *moments):
    folder.mkdir(exist_ok=True)
    for moment in moments:
        save(series.member(folder, Moment(*moment)), {"x": torch.zeros(1)}, {"moment": list(moment)})


def test_the_newest_that_can_be_read_counts(tmp_path):
    assert series.newest(tmp_path / "none", print) is None
    write(tmp_path / "runs", (0, 0), (2, 12345), (2, 0), (10, 3))
    (tmp_path / "runs" / "round-000011.tmp-abc").mkdir()
    assert series.moments(tmp_path / "runs") == [(0, 0), (2, 0), (2, 12345), (10, 3)]
    told = []
    for expected in ((10, 3), (2, 12345), (2, 0), (0, 0)):
        path, found = series.newest(tmp_path / "runs", told.append)
        assert found.table == {"moment": list(expected)} and path == series.member(tmp_path / "runs", Moment(*expected))
        manifest = path / MANIFEST
        manifest.write_bytes(manifest.read_bytes()[:-3])
    assert len(told) == 6 and "round-000010-step-0003" in told[0] and told[0].endswith("an older one is taken")
    with pytest.raises(CheckpointError, match="round-000010"):
        series.newest(tmp_path / "runs", told.append)


@pytest.mark.parametrize("want", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_a_process_lacks_is_not_held_against_a_checkpoint(tmp_path, monkeypatch, want):
    """No older one is taken, and none is called damaged."""

    def read(path, most):
        raise want

    write(tmp_path / "runs", (1, 0), (2, 0))
    monkeypatch.setattr(checkpoint, "read_file", read)
    with pytest.raises(type(want)):
        series.newest(tmp_path / "runs", lambda line: pytest.fail(line))


def test_pruning_keeps_the_newest(tmp_path):
    write(tmp_path / "runs", *((k, s) for k in range(3) for s in (0, 5)))
    series.prune(tmp_path / "runs", 4)
    assert series.moments(tmp_path / "runs") == [(1, 0), (1, 5), (2, 0), (2, 5)]
    series.take_back(tmp_path / "runs", Moment(1, 5))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["round-000001", "round-000001-step-0005"]


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere"), Path.mkdir])
def test_what_has_the_name_of_a_moment_and_is_none_goes(tmp_path, make):
    """A file, a pipe, a link to nothing, an empty folder; digits of other scripts name no moment."""
    write(tmp_path / "runs", (1, 0))
    make(series.member(tmp_path / "runs", Moment(7)))
    (tmp_path / "runs" / "round-\N{ARABIC-INDIC DIGIT ONE}00000").mkdir()
    assert series.moments(tmp_path / "runs") in ([(1, 0)], [(1, 0), (7, 0)])
    series.take_back(tmp_path / "runs", Moment(1))
    assert len(list(tmp_path.joinpath("runs").iterdir())) == 2 and series.moments(tmp_path / "runs") == [(1, 0)]
