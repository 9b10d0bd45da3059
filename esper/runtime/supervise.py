"""``esper supervise [--restarts N] -- train ...``: a training run that is started again when it dies.

It goes on from its last good checkpoint, so it ends in the bits of a run that never died. A run that ends by itself,
that is not allowed, or that was asked to stop is not started again.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from esper.runtime.interrupt import SIGNALS, Stopped
from esper.runtime.own import expect_nothing_imported
from esper.runtime.policy_checkpoint import SERIES
from esper.runtime.resume import run_folder, source_of
from esper.runtime.train_settings import TrainSettings
from esper.urza import series
from esper.urza.series import Moment
from esper.utils.resilience.retry import RetryPolicy, delay
from esper.utils.resilience.world import REAL, World
from esper.utils.settings import Parser, SettingsError, read_settings
from esper.utils.terminal import output

FINAL = (0, 2, 130, 143)
"""Statuses that are no accident: done, not allowed, asked to stop."""

BACK_OFF = RetryPolicy(base=0.5, cap=10.0)
"""Before a restart; a start takes some seconds more, and both together less than 30."""

RESTARTS = 5


class Child(Protocol):
    """A process that trains."""

    def wait(self) -> int:
        """Its status when it has ended; minus the signal's number, if one ended it."""

    def send_signal(self, number: int) -> None:
        """Pass a signal on, if it still runs."""


class Supervisor:
    """Keeps one run going.

    Attributes:
      restarts: starts in a row that lead to no new checkpoint, beyond the first, before it gives up.
      asked: number of the signal that asked to stop; None while there was none.
    """

    def __init__(
        self, words: Sequence[str], restarts: int, start: Callable[[list[str]], Child], world: World = REAL
    ) -> None:
        """Look at the command.

        Args:
          words: of ``esper train``.
          restarts: see above.
          start: starts ``esper`` with words.
          world: sleep and chance.

        Raises:
          SettingsError: the words are none of ``esper train``.
        """
        self._words, self.restarts, self._start, self._world = list(words), restarts, start, world
        settings = read_settings(TrainSettings, words, "esper train", trust=expect_nothing_imported)
        source = source_of(settings.resume, settings.out, settings.task)
        own = bool(settings.out) or source is None
        self._folder = run_folder(settings.out, settings.task) if own or source is None else source.folder
        self._elsewhere = settings.resume not in ("", "auto")
        self.asked: int | None = None
        self._child: Child | None = None

    def run(self, out: TextIO) -> int:
        """Start the run until it ends for good; a line for every restart.

        Returns:
          its last status, as a shell says it.

        Raises:
          Stopped: asked to stop while no process ran.
        """
        first = newest = self._newest()
        vain = 0
        with self._forwarding():
            while True:
                status = self._live(first)
                if self.asked is not None or status in FINAL:
                    return status
                now = self._newest()
                vain, newest = (1, now) if now != newest else (vain + 1, newest)
                if vain > self.restarts:
                    given_up = f"no restart is left of {self.restarts} without a new checkpoint"
                    out.write(f"esper supervise: train {_told(status)}; {given_up}\n")
                    return status
                seconds = delay(BACK_OFF, vain - 1, self._world.chance)
                when = f"restart {vain} of {self.restarts} in {seconds:.1f} s"
                out.write(f"esper supervise: train {_told(status)}; {when}\n")
                out.flush()
                self._world.sleep(seconds)

    def _live(self, first: tuple[Moment, int] | None) -> int:
        """One process, from start to end."""
        own = not self._elsewhere or self._newest() != first  # else it goes on from where it was told to
        more = ["--out", str(self._folder)] if self._elsewhere else []
        self._child = self._start(["train", *self._words, *([*more, "--resume", "auto"] if own else [])])
        if self.asked is not None:  # while it was being started
            self._child.send_signal(self.asked)
        status = self._child.wait()
        self._child = None
        return status if status >= 0 else 128 - status

    def _newest(self) -> tuple[Moment, int] | None:
        """Moment and time of the newest checkpoint, which tell it from any other."""
        folder = self._folder / SERIES
        moment = max(series.moments(folder), default=None)
        try:
            return None if moment is None else (moment, series.member(folder, moment).stat().st_mtime_ns)
        except FileNotFoundError:
            return None

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Pass signals on that ask to stop; without a process, stop."""

        def forward(number: int, frame: object) -> None:
            self.asked = number
            if self._child is None:
                raise Stopped(number)
            self._child.send_signal(number)

        before = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def supervise(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``[--restarts N] -- train ...``.

    Args:
      arguments: words after ``esper supervise``.
      out: where lines go; the run writes to this process's own output.

    Returns:
      exit status: the run's own.

    Raises:
      SettingsError: the words are not as above.
      Stopped: asked to stop while no process ran.
    """
    words = list(arguments)
    if "--" not in words and words[:1] not in (["-h"], ["--help"]):
        raise SettingsError(f"{' '.join(words) or 'nothing'}: expected [--restarts N] -- train and its settings")
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(prog="esper supervise", usage="esper supervise [--restarts N] -- train ...", allow_abbrev=False)
    text = f"starts in a row without a new checkpoint before it gives up (default {RESTARTS})"
    parser.add_argument("--restarts", type=_count, default=RESTARTS, metavar="N", help=text)
    given = parser.parse_args(words[:cut])
    if words[cut + 1 : cut + 2] != ["train"]:
        raise SettingsError(f"{' '.join(words[cut:])}: expected -- train and its settings")
    return Supervisor(words[cut + 2 :], given.restarts, _start).run(output(out))


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r}: expected an integer from 0")
    return int(word)


def _start(words: list[str]) -> Child:
    """``esper`` in a process group of its own: a terminal's Ctrl-C reaches it once, through the supervisor."""
    group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    return subprocess.Popen([sys.executable, "-m", "esper", *words], stdin=subprocess.DEVNULL, **group)


def _told(status: int) -> str:
    try:
        return f"was killed by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"ended with status {status}"
