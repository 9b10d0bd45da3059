"""Files that last, and the points at which they are made to fail."""

import os
import signal
import subprocess
import sys

import pytest

from esper.utils import failpoints
from esper.utils.failpoints import ERRORS, Fault, awaiting, parse, reach
from esper.utils.files import append_line, read_file, remove_folder, remove_leftovers, replace_file, sync_file


@pytest.mark.parametrize("point", ["open", "write", "sync", "rename"])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_file_is_replaced_or_as_it_was(tmp_path, point, kind):
    replace_file(tmp_path / "a", b"old")
    with awaiting(Fault(point, kind)), pytest.raises(OSError) as failed:
        replace_file(tmp_path / "a", b"new")
    assert failed.value.errno == ERRORS[kind]
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
    replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_line_that_was_cut_off_is_not_gone_on_with(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "one")
    for cut in (b"tw", b"x" * 10_000):
        with path.open("ab") as file:
            file.write(cut)
        append_line(path, "two")
    sync_file(path)
    assert path.read_bytes() == b"one\ntwo\ntwo\n"
    path.write_bytes(b"half")
    append_line(path, "one")
    assert path.read_bytes() == b"one\n"


def test_reading_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="a has 5 bytes, more than 4"):
        read_file(tmp_path / "a", 4)
    with pytest.raises(ValueError, match="no ordinary file"):
        read_file(tmp_path, 4)


def test_leftovers_are_found_by_their_names(tmp_path):
    for name in ("a", "a.tmp-0123", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "c.tmp-4567").write_bytes(b"")
    remove_folder(tmp_path / "b")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_faults_meet_the_arrival_that_they_name():
    met = []
    for lasts in (False, True):
        with awaiting(Fault("write", "eio", 3, lasts)) as counts:
            for arrival in range(1, 6):
                try:
                    reach("write")
                    reach("open")
                except OSError:
                    met.append(arrival)
        assert counts["write"] == 5 and counts["open"] == 5 - len(met[-3:] if lasts else met)
    assert met == [3, 3, 4, 5]
    reach("write")


def test_faults_are_read_from_the_environment():
    assert parse("sync:enospc:4+") == Fault("sync", "enospc", 4, True) and parse("step:kill") == Fault("step", "kill")
    for wrong in ("sync", "sync:what", "nowhere:eio", "sync:eio:0", "sync:eio:x"):
        with pytest.raises(ValueError, match=f"^{failpoints.VARIABLE} = '{wrong}': expected POINT:FAULT"):
            parse(wrong)
    code = "from esper.utils.failpoints import reach; reach('write'); print('once', flush=True); reach('write')"
    environment = os.environ | {failpoints.VARIABLE: "write:kill:2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and done.stdout == "once\n"
