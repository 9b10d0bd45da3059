"""One writer per folder: at once or not at all, released by death alone, and told when it is lost."""

import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from esper.urza.lock import LockError, hold, network_of

HOLDER = """
    import sys, time
    from pathlib import Path
    from esper.urza.lock import hold
    lock = hold(Path(sys.argv[1]))
    print("held", lock.epoch, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(holder, tmp_path):
    assert holder.stdout.readline() == "held 1\n"
    with pytest.raises(LockError, match=f"process {holder.pid} is writing here; expected a folder of its own"):
        hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = hold(tmp_path)
    assert lock.epoch == 2
    lock.check()
    lock.release()


def test_the_same_process_is_refused_as_well(tmp_path):
    lock = hold(tmp_path)
    with pytest.raises(LockError, match=f"process {os.getpid()} is writing here"):
        hold(tmp_path)
    lock.release()
    hold(tmp_path).release()


def test_a_child_neither_holds_nor_releases(tmp_path):
    """A forked child that ends changes nothing; one that outlives its parent's release is in nobody's way."""
    lock = hold(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()
        os.read(reading, 1)
        os._exit(0)
    with pytest.raises(LockError):
        hold(tmp_path)
    lock.release()
    hold(tmp_path).release()
    os.write(writing, b"x")
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_who_was_overtaken_is_told(tmp_path):
    """As on a file system on which the lock binds nobody."""
    first = hold(tmp_path)
    (tmp_path / "lock").unlink()
    second = hold(tmp_path)
    second.check()
    with pytest.raises(LockError, match=f"taken over by process {os.getpid()}; nothing more is written here"):
        first.check()
    (tmp_path / "owner.json").write_text("{")
    with pytest.raises(LockError, match="moved, removed or taken over; nothing more is written here"):
        second.check()
    second.release()


def test_what_cannot_be_read_is_not_taken_for_another_writer(tmp_path):
    """A process that is out of file handles has lost nothing."""
    lock = hold(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            lock.check()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    lock.check()
    lock.release()


def test_network_file_systems_are_known(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {tmp_path.resolve()} nfs4 rw 0 0\n")
    assert network_of(tmp_path / "run", str(mounts)) == "nfs4"
    assert network_of(tmp_path.parent, str(mounts)) is None
    assert network_of(tmp_path, str(tmp_path / "absent")) is None
