"""What is kept from run to run: exact, private, whole or refused; in a file and in a real Redis server."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
import torch

from esper.urza.checkpoint import CheckpointError
from esper.urza.keeping import LIFETIME, PREFIX, keep, recall

DEMANDED = os.environ.get("ESPER_SERVICES") == "1"
"""Whether a service that is not there is a failure."""

TENSORS = {
    "ucb.accuracy": torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 4),
    "ucb.chosen": torch.ones(2, 3).long(),
}


def expect_kept(place):
    keep(place, TENSORS, {"bandits": {"ucb": {"window": 4}}})
    found = recall(place)
    assert found is not None and found.table == {"bandits": {"ucb": {"window": 4}}}
    assert all(torch.equal(found.tensors[name], value) for name, value in TENSORS.items())
    assert all(found.tensors[name].dtype == value.dtype for name, value in TENSORS.items())


def test_a_file_is_exact_private_and_replaced_whole(tmp_path):
    path = tmp_path / "arms.npz"
    assert recall(str(path)) is None
    expect_kept(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    expect_kept(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [each.name for each in tmp_path.iterdir()] == ["arms.npz"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"", lambda data: data.replace(b"ucb", b"uch")]
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "arms.npz"
    keep(str(path), TENSORS, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"arms\.npz: .*expected") as error:
        recall(str(path))
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="expected a place for a file"):
        keep(str(tmp_path / "nowhere" / "arms.npz"), TENSORS, {})


def test_redis_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(CheckpointError, match=r"^redis://h:1/0: needs redis; pip install 'esper-growth\[redis\]'$"):
        recall("redis://user:secret@h:1/0")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Redis server of this test's own, on a socket."""
    program = shutil.which("redis-server")
    lacks = "redis-server" if program is None else "the client: pip install redis"
    if program is None or importlib.util.find_spec("redis") is None:
        (pytest.fail if DEMANDED else pytest.skip)(f"needs {lacks}")
    folder = tmp_path_factory.mktemp("redis")
    words = [program, "--port", "0", "--unixsocket", str(folder / "s"), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ)
    for _ in range(200):
        if (folder / "s").exists():
            break
        time.sleep(0.05)
    yield f"unix://{folder / 's'}"
    process.terminate()
    process.wait(10)


def test_redis_keeps_for_a_day_and_refuses_what_was_altered(server):
    import redis

    place = f"{server}#digits"
    assert recall(place) is None
    expect_kept(place)
    assert recall(f"{server}#other") is None
    with redis.Redis.from_url(server) as client:
        assert 0 <= LIFETIME - client.ttl(f"{PREFIX}digits") < 60
        client.set(f"{PREFIX}digits", client.get(f"{PREFIX}digits")[:-30])
    with pytest.raises(CheckpointError, match="its bytes do not match their digest"):
        recall(place)


def test_a_server_that_is_not_there_is_one_line(server, tmp_path):
    with pytest.raises(CheckpointError, match="expected a Redis server") as error:
        recall(f"unix://{tmp_path}/none")
    assert "\n" not in str(error.value)
