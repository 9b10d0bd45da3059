"""A process of its own in which strangers' documents are compiled: with a deadline, a limit of memory, and no way back
but bytes that are read and checked.

The child has a session of its own and is killed with all that it started. It bounds its own address space after its
imports, of which torch's reserve much; the memory that it and its children really use is watched from here.
"""

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from esper.tezzeret.stages.frames import LENGTH, split
from esper.tezzeret.stages.reports import NAMES, STAGES, StageReport, failed, from_table
from esper.tezzeret.stages.request import CompileJob
from esper.utils.documents import one_line

PARTS = (1 << 20, 1 << 29, 1 << 28)
"""Bytes of an answer's parts at most: what is said, the package, compiled code."""

LOOK = 0.05
"""Seconds between two looks at the child's memory."""


class Confines(NamedTuple):
    """What a child may use.

    Attributes:
      seconds: of one document.
      memory: bytes beside those that it has after its imports; of itself, and of all that it starts.
      start: seconds until it is ready.
    """

    seconds: float = 300.0
    memory: int = 2 << 30
    start: float = 120.0


class Answer(NamedTuple):
    """What a child says.

    Attributes:
      reports: of the stages that it ran.
      failed: the report of the stage that did not pass; None if all did.
      package, code: see ``esper.tezzeret.stages.building.Built``; empty after a failure.
    """

    reports: tuple[StageReport, ...]
    failed: StageReport | None
    package: bytes = b""
    code: bytes = b""


class CompilerChild:
    """A child that compiles one document after the other; it is started when it is needed, and anew after a kill.

    Attributes:
      confines: what it may use.
      stopping: asked again and again whether it shall be ended.
    """

    def __init__(self, confines: Confines | None = None, command: tuple[str, ...] = ()) -> None:
        """Nothing is started.

        Args:
          confines: what it may use.
          command: what is run, if not this package's own child.
        """
        self.confines = confines or Confines()
        self.command = command or (sys.executable, "-m", "esper.tezzeret.stages.child")
        self.stopping: Callable[[], bool] = lambda: False
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: queue.Queue[bytes | None] = queue.Queue()
        self._words: IO[bytes] | None = None
        self._base, self._lock = 0, threading.Lock()

    def ask(self, request: CompileJob, key: str, begun: Callable[[str], None] = lambda stage: None) -> Answer:
        """Have a document compiled; one at a time.

        Args:
          request: with its site.
          key: of it.
          begun: hears of every stage that begins.
        """
        with self._lock:
            started, stage = time.monotonic(), STAGES[2]
            try:
                self._begin()
                self._send(request, key)
                return self._listen(time.monotonic() + self.confines.seconds, begun)
            except _Gone as gone:
                self._kill()
                report = failed(gone.stage if gone.stage in NAMES else stage, gone, time.monotonic() - started)
                return Answer((), report)
            except BaseException:
                self._kill()
                raise

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._kill()

    def __enter__(self) -> "CompilerChild":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        self._words, self._heard = tempfile.TemporaryFile(), queue.Queue()  # noqa: SIM115 (closed with the child)
        own = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "ESPER_CHILD_MEMORY": str(self.confines.memory)}
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=os.environ | own | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(target=_hear, args=(self._process.stdout, self._heard), daemon=True).start()
        said = self._next(time.monotonic() + self.confines.start, "starting", watched=False)
        if said[0].get("kind") != "ready":
            raise _Gone("died", "an answer before it was asked", "that it is ready")
        self._base = used(self._process.pid)

    def _send(self, request: CompileJob, key: str) -> None:
        asked = request._asdict() | {"document": base64.b64encode(request.document).decode(), "key": key}
        line = json.dumps(asked | {"threads": torch.get_num_threads()}).encode() + b"\n"
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise _Gone("died", f"the child died: {self._last_words()}", "a package") from None

    def _listen(self, deadline: float, begun: Callable[[str], None]) -> Answer:
        stage = ""
        while True:
            try:
                said, package, code = self._next(deadline, f"{self.confines.seconds:g} s", watched=True)
                if said.get("kind") == "stage":
                    stage = str(said.get("stage"))
                    begun(stage)
                    continue
                reports = from_table(said["reports"])
            except _Gone as gone:
                gone.stage = stage
                raise
            except (ValueError, KeyError, TypeError) as error:
                raise _Gone("died", f"the child's answer cannot be read: {error}", "an answer") from None
            last = reports[-1] if reports and not reports[-1].passed else None
            return Answer(reports, last, package, code)

    def _next(self, deadline: float, limit: str, watched: bool) -> tuple[dict[str, Any], bytes, bytes]:
        """The next message.

        Raises:
          _Gone: it takes too long, uses too much, or the child is dead.
        """
        assert self._process is not None
        while True:
            if self.stopping():
                raise _Gone("stopped", "asked to stop", "another worker")
            if time.monotonic() > deadline:
                raise _Gone("deadline", f"not done after {limit}", "less")
            with suppress(queue.Empty):
                found = self._heard.get(timeout=LOOK)
                if found is None:
                    raise _Gone("died", f"the child died: {self._last_words()}", "a package")
                said, package, code = split(found, PARTS)
                table = json.loads(said)
                return (table if isinstance(table, dict) else {}), package, code
            more = used(self._process.pid) - self._base if watched else 0
            if more > self.confines.memory:
                found_text = f"{more >> 20} MB of memory beside the {self._base >> 20} MB that the child has anyway"
                raise _Gone("memory", found_text, f"at most {self.confines.memory >> 20} MB")

    def _last_words(self) -> str:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        if self._words is None:
            return "no message"
        self._words.seek(0)
        lines = self._words.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        status = None if self._process is None else self._process.returncode
        return one_line(f"exit status {status}: {lines[-1] if lines else 'no message'}")[:300]

    def _kill(self) -> None:
        """End the child and everything that it started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(OSError):
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        if self._words is not None:
            self._words.close()
            self._words = None


class _Gone(Exception):
    """A child that gives nothing any more; ``reason``: "deadline", "memory", "died" or "stopped"."""

    def __init__(self, reason: str, found: str, expected: str) -> None:
        super().__init__(found)
        self.reason, self.found, self.expected, self.stage = reason, found, expected, ""


def _hear(pipe: IO[bytes], heard: "queue.Queue[bytes | None]") -> None:
    """Read messages until there are no more; None is the end."""
    with suppress(OSError, ValueError):
        while len(head := pipe.read(LENGTH)) == LENGTH and (size := int.from_bytes(head, "big")) <= sum(PARTS) + 64:
            heard.put(pipe.read(size))
    heard.put(None)


def used(group: int, proc: str = "/proc") -> int:
    """Bytes of memory that the processes of a group use; 0 where nothing tells."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    for folder in Path(proc).glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += page * int((folder / "statm").read_text(encoding="utf-8").split()[1])
    return total
