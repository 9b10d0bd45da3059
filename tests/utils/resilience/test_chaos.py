"""Services that are called through a network that parts, and files that fail at random."""

import contextlib
import errno
import runpy
import socket
import threading
from collections import Counter

import pytest
from resilience_proxy import Proxy
from resilience_worlds import Simulated

from esper.runtime.outlets import Outlets
from esper.urza.dead_letters import FILE, DeadLetters
from esper.utils import failpoints
from esper.utils.failpoints import Chaos, awaiting, parse_chaos, reach
from esper.utils.resilience.breaker import BreakerOpen, Phase
from esper.utils.resilience.services import Service


@pytest.fixture
def network():
    """An echo behind a proxy."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    near, _ = door.accept()
                    with near, contextlib.suppress(OSError):
                        near.sendall(near.recv(4096))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        proxy = Proxy(door.getsockname())
        yield proxy
        proxy.close()
        door.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_service_behind_a_network_that_parts(network):
    """Resets are tried again; a black hole opens the breaker, which keeps calls away until it heals."""
    simulated, calls = Simulated(), Counter()
    service = Service("cache", simulated.world)

    def ask(text, timeout=0.2):
        calls[text] += 1
        with socket.create_connection(network.place, timeout=timeout) as near:
            near.sendall(text)
            found = near.recv(4096)
            if not found:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            return found

    assert service.call(lambda: ask(b"sound")) == b"sound"
    network.fault = ("delay", 0.05)
    assert service.call(lambda: ask(b"late", 5.0)) == b"late"

    network.fault = ("reset",)
    heal = simulated.world._replace(sleep=lambda seconds: setattr(network, "fault", None))
    assert Service("cache", heal).call(lambda: ask(b"again")) == b"again" and calls[b"again"] == 2

    network.fault = ("black hole",)
    for _ in range(2):
        with pytest.raises((TimeoutError, BreakerOpen)):
            service.call(lambda: ask(b"lost"))
    assert service.breaker.circuit.phase is Phase.OPEN and calls[b"lost"] == 5
    network.fault = None
    with pytest.raises(BreakerOpen):
        service.call(lambda: ask(b"lost"))
    simulated.time += 30
    for _ in range(3):
        assert service.call(lambda: ask(b"healed", 5.0)) == b"healed"
    assert service.breaker.circuit.phase is Phase.CLOSED and calls[b"lost"] == 5


def test_files_that_fail_at_random_are_written_or_kept(tmp_path):
    """The disk ends as the letters say: each file is whole and the newest, or waits whole; nothing lies beside."""
    simulated, last = Simulated(), {}
    outlets = Outlets(tmp_path, Service("files", simulated.world), lambda line: None)
    with awaiting(Chaos(3, 0.15)):
        for number in range(300):
            name = f"file{number % 7}"
            last[name] = f"text {number}" * 50
            outlets.write(tmp_path / name, last[name])
            simulated.time += 100.0
        met = dict(failpoints.struck)
    waiting = {letter.target: letter for letter in outlets.letters.waiting()}
    assert sum(met.values()) > 100 and met.keys() >= {"open", "write", "sync", "rename", "sync-folder"}
    for name, text in last.items():
        kept = outlets.letters.payload(waiting[name]).decode() if name in waiting else (tmp_path / name).read_text()
        assert kept == text
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(FILE)} <= last.keys()
    outlets.close()
    assert len(DeadLetters(tmp_path / FILE).waiting()) == len(waiting) > 0


def test_chaos_can_be_had_again_and_keeps_its_rate():
    def met(chaos, points=("open", "write"), count=4000):
        found = []
        with awaiting(chaos):
            for number in range(count):
                try:
                    reach(points[number % len(points)])
                except OSError as error:
                    found.append((number, error.errno))
                except MemoryError:
                    found.append((number, "memory"))
        return found

    assert met(Chaos(1, 0.1)) == met(Chaos(1, 0.1)) != met(Chaos(2, 0.1))
    found = met(Chaos(5, 0.1))
    assert abs(len(found) - 400) < 6 * 19 and {number for _, number in found} == {errno.EIO, errno.ENOSPC, errno.EMFILE}
    assert met(Chaos(1, 0.0)) == [] and len(met(Chaos(1, 1.0))) == 4000
    assert met(Chaos(1, 1.0), ("step",)) == []  # a step is no operation on a file
    assert {kind for _, kind in met(Chaos(1, 1.0, ("eio", "memory")), ("step",))} == {"memory"}


def test_chaos_is_read_from_the_environment(monkeypatch):
    assert parse_chaos("7:0.25") == Chaos(7, 0.25) and parse_chaos("7:1:eio,kill") == Chaos(7, 1.0, ("eio", "kill"))
    for wrong in ("", "7", "x:0.1", "7:1.5", "7:nan", "7:-0.1", "7:0.1:fire"):
        with pytest.raises(ValueError, match=f"^{failpoints.CHAOS} = '{wrong}': expected SEED:RATE"):
            parse_chaos(wrong)
    monkeypatch.setenv(failpoints.CHAOS, "7:1:memory")
    fresh = runpy.run_path(failpoints.__file__)
    with pytest.raises(MemoryError, match="fault point write"):
        fresh["reach"]("write")
