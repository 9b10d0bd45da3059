"""Services that are called through a network that parts, and files that fail at random."""

import contextlib
import errno
import socket
import threading
from collections import Counter

import pytest
from resilience_proxy import Proxy
from resilience_worlds import Simulated

from esper.runtime.outlets import Outlets
from esper.urza.dead_letters import FILE, DeadLetters
from esper.utils import files
from esper.utils.resilience.breaker import BreakerOpen, Phase
from esper.utils.resilience.chaos import Chaos
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


def test_files_that_fail_at_random_are_written_or_kept(tmp_path, monkeypatch):
    """The disk ends as the letters say: each file is whole and the newest, or waits whole; nothing lies beside."""
    chaos, simulated = Chaos(3, 0.15), Simulated()
    outlets = Outlets(tmp_path, Service("files", simulated.world), lambda line: None)
    monkeypatch.setattr(files, "reach", chaos.reach)
    last = {}
    for number in range(300):
        name = f"file{number % 7}"
        last[name] = f"text {number}" * 50
        outlets.write(tmp_path / name, last[name])
        simulated.time += 100.0
    monkeypatch.undo()
    waiting = {letter.target: letter for letter in outlets.letters.waiting()}
    assert sum(chaos.met.values()) > 100 and {*chaos.met} >= {"open", "write", "sync", "rename", "sync-folder"}
    for name, text in last.items():
        kept = outlets.letters.payload(waiting[name]).decode() if name in waiting else (tmp_path / name).read_text()
        assert kept == text
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(FILE)} <= last.keys()
    outlets.close()
    assert len(DeadLetters(tmp_path / FILE).waiting()) == len(waiting) > 0


def test_chaos_can_be_had_again_and_keeps_its_rate():
    def met(seed, rate, count=4000):
        chaos, found = Chaos(seed, rate), []
        for number in range(count):
            try:
                chaos.reach("a" if number % 2 else "b")
            except OSError as error:
                found.append((number, error.errno))
        return found

    assert met(1, 0.1) == met(1, 0.1) != met(2, 0.1)
    found = met(5, 0.1)
    assert abs(len(found) - 400) < 6 * 19 and {number for _, number in found} == {errno.EIO, errno.ENOSPC, errno.EMFILE}
    assert met(1, 0.0) == [] and len(met(1, 1.0)) == 4000
    for rate, kinds in ((1.5, ("eio",)), (0.1, ("fire",)), (0.1, ())):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            Chaos(0, rate, kinds)
