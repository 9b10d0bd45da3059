"""One place that feeds all sinks: each has a thread and a queue of its own, and a breaker.

Nobody who hands something over waits, and nothing that a sink does or fails to do comes back: a sink that raises is
left alone for a while and then tried again, one that hangs or does not keep up is left for good, and of either the log
has one warning. What it missed is counted.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from esper.nissa.event_record import Event
from esper.nissa.sinks.protocol import Opened, Row, Sink
from esper.utils.documents import cause
from esper.utils.resilience.breaker import Breaker, BreakerOpen, Limits

LIMITS = Limits(failures=1, recovery=30.0, successes=1, timeout=10.0)
"""A sink that failed once is left alone for half a minute."""

ROOM = 4096
"""Rounds and events that may wait for a sink."""

PATIENCE = 2.0
"""Seconds that a run waits for its sinks to be open before it begins."""

FINISHING = 10.0
"""Seconds that sinks have to finish, all together; one that was left out has none."""

logger = logging.getLogger("esper")

Opener = Callable[[], Opened]


OPENING = 90.0
"""Seconds that a sink may take to open: a service answers, or a database is made, while a run goes on."""


class SinkFails(OSError):
    """What a sink raised; one line."""


class GuardedSink:
    """A sink in a thread of its own, behind a breaker.

    Attributes:
      name: for messages.
      line: what it had to tell when it was open.
      lost: rounds and events that it did not take.
      gone: whether it is left alone for good.
      ready: set when it is open, or cannot be.
    """

    def __init__(self, name: str, opener: Opener, limits: Limits = LIMITS, room: int = ROOM) -> None:
        """Begin to open it.

        Args:
          name: for messages.
          opener: opens it, in its thread.
          limits: of its breaker; ``timeout``: seconds after which one call hangs.
          room: what may wait for it.
        """
        self.name, self.line, self.lost, self.gone, self.ready = name, "", 0, False, threading.Event()
        self._opener, self._breaker, self._timeout = opener, Breaker(f"sink {name}", limits), limits.timeout
        self._waiting: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(room)
        self._since, self._warned = time.monotonic(), False
        self._thread = threading.Thread(target=self._serve, name=f"esper-sink-{name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Sink], None]) -> None:
        """Hand something over; at once."""
        busy, most = self._since, self._timeout if self.ready.is_set() else OPENING
        if not self.gone and busy and time.monotonic() - busy > most:
            self._give_up(f"hangs for more than {most:g} s")
        if self.gone:
            self.lost += 1
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._give_up(f"does not keep up: {self._waiting.maxsize} rounds and events wait for it")
            self.lost += 1

    def finish(self) -> None:
        """Ask it to close when it has taken what waits."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self.gone = True

    def join(self, until: float) -> None:
        """Wait for its end, no longer than until this moment of the monotonic clock."""
        self._thread.join(0.0 if self.gone else max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(f"did not finish in {FINISHING:g} s")

    @property
    def up(self) -> bool:
        """Whether it takes what comes."""
        return not self.gone and self._breaker.circuit.row == 0

    @property
    def waiting(self) -> int:
        """Rounds and events that wait for it."""
        return self._waiting.qsize()

    def _serve(self) -> None:
        try:
            opened = self._opener()
        except Exception as error:  # a sink that cannot be opened is one that a run goes on without
            self._give_up(cause(error))
            self.ready.set()
            return
        self.line = opened.line
        self._since = 0.0
        self.ready.set()
        while (call := self._waiting.get()) is not None and not self.gone:
            self._since = time.monotonic()
            self._take(opened.sink, call)
            self._since = 0.0
        self._close(opened.sink)

    def _take(self, sink: Sink, call: Callable[[Sink], None]) -> None:
        def guarded() -> None:
            try:
                call(sink)
            except Exception as error:  # whatever it raises is a failure of this sink, and concerns it alone
                raise SinkFails(cause(error)) from None

        try:
            self._breaker.call(guarded)
        except BreakerOpen:
            self.lost += 1
        except SinkFails as error:
            self.lost += 1
            self._warn(f"{error}; left alone for a while, then tried again")

    def _close(self, sink: Sink) -> None:
        try:
            sink.close()
        except Exception as error:  # likewise
            self._warn(f"{cause(error)} at its end")

    def _give_up(self, reason: str) -> None:
        if self.gone:
            return
        self.gone = True
        self.lost += self._waiting.qsize()
        self._warn(f"{reason}; left out from here on")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("sink %s: %s; the run goes on", self.name, what)


class FanOut:
    """All sinks of a run or a worker; without any, nothing happens and no thread runs.

    Attributes:
      sinks: each behind its breaker.
    """

    def __init__(self, openers: Mapping[str, Opener], limits: Limits = LIMITS) -> None:
        """Open all of them, each in its thread, and wait a little.

        Args:
          openers: by name.
          limits: of their breakers.
        """
        self.sinks: Sequence[GuardedSink] = tuple(GuardedSink(name, each, limits) for name, each in openers.items())
        until = time.monotonic() + PATIENCE
        for sink in self.sinks:
            sink.ready.wait(max(0.0, until - time.monotonic()))

    @property
    def lines(self) -> tuple[str, ...]:
        """What the sinks that are open have to tell."""
        return tuple(sink.line for sink in self.sinks if sink.line)

    def round(self, row: Row) -> None:
        """Hand a round to every sink; at once."""
        if self.sinks:
            kept = dict(row)
            for sink in self.sinks:
                sink.put(lambda one: one.round(kept))

    def event(self, event: Event) -> None:
        """Hand an event to every sink; at once."""
        for sink in self.sinks:
            sink.put(lambda one: one.event(event))

    @property
    def waiting(self) -> int:
        """Rounds and events that wait for a sink, of all of them."""
        return sum(sink.waiting for sink in self.sinks)

    def health(self) -> dict[str, tuple[bool, int]]:
        """By sink: whether it takes what comes, and how much it missed."""
        return {sink.name: (sink.up, sink.lost) for sink in self.sinks}

    def close(self) -> None:
        """Let them finish, for ``FINISHING`` seconds in all."""
        for sink in self.sinks:
            sink.finish()
        until = time.monotonic() + FINISHING
        for sink in self.sinks:
            sink.join(until)
