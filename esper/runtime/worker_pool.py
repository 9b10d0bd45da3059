"""A pool of processes that grows and shrinks with its queue, between a least and a most.

A worker is a process that reads jobs as lines of JSON and answers each with one. It ends when its standard input does,
so that none outlives whoever started it, however that came about.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from esper.utils.documents import to_json

LINGER = 2.0
"""Seconds without a job after which a worker leaves, if there are more than the least."""

ATTEMPTS = 2
"""How often a job is tried whose worker dies."""

APART = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a process is one of a group; a worker is none, wherever it was started from."""

Job = Mapping[str, Any]
Answer = dict[str, Any]


class WorkerError(RuntimeError):
    """Workers died over a job; one line with the job and the last one's status."""


class Worker(Protocol):
    """What does jobs, one at a time."""

    def ask(self, job: Job) -> Answer:
        """Do a job.

        Raises:
          EOFError: the worker is gone; its words say how.
        """

    def end(self) -> None:
        """End it, at once; it may be doing a job for another thread."""

    def close(self) -> None:
        """End it, and let go of what it held."""


class JobDone(NamedTuple):
    """A job with its answer; without one, it cannot be done."""

    job: Job
    answer: Answer | None
    error: str = ""


def wanted(jobs: int, least: int, most: int) -> int:
    """How many workers there should be for so many jobs, waiting or being done."""
    return max(least, min(most, jobs))


class WorkerPool:
    """Workers, and the queue before them.

    ``put`` adds a job and, where there are more jobs than workers, a worker; a worker without a job for ``linger``
    seconds leaves. ``done`` gives answers as they come, in any order.

    Attributes:
      least, most: how many workers there are at least while there was a job, and at most.
      peak: the most that there ever were at once.
    """

    def __init__(self, start: Callable[[], Worker], least: int, most: int, linger: float = LINGER) -> None:
        self._start, self.least, self.most, self._linger = start, least, most, linger
        self._jobs: queue.Queue[tuple[Job, int]] = queue.Queue()
        self._done: queue.Queue[JobDone] = queue.Queue()
        self._lock = threading.Lock()
        self._open, self._size, self._workers, self._closed = 0, 0, set[Worker](), False
        self._threads = list[threading.Thread]()
        self.peak = 0

    @property
    def size(self) -> int:
        """Workers that there are."""
        return self._size

    def put(self, job: Job) -> None:
        """Add a job."""
        with self._lock:
            self._open += 1
            missing = wanted(self._open, self.least, self.most) - self._size
            self._size += max(0, missing)
            self.peak = max(self.peak, self._size)
        self._jobs.put((job, 1))
        for _ in range(missing):
            self._threads.append(threading.Thread(target=self._serve, name="worker", daemon=True))
            self._threads[-1].start()

    def done(self, timeout: float) -> JobDone | None:
        """The next job that is done; None after so many seconds without one."""
        try:
            return self._done.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """End all workers. What they were doing is not done."""
        with self._lock:
            self._closed, workers = True, list(self._workers)
        for worker in workers:
            worker.end()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """The life of one worker, or of several, where they die."""
        worker: Worker | None = None
        while not self._closed:
            try:
                job, attempt = self._jobs.get(timeout=self._linger)
            except queue.Empty:
                if self._leaves():
                    break
                continue
            try:
                worker = self._begun() if worker is None else worker
                self._finish(JobDone(job, worker.ask(job)))
            except (EOFError, OSError) as error:
                self._gone(worker)
                worker = None
                if attempt < ATTEMPTS and not self._closed:
                    self._jobs.put((job, attempt + 1))
                else:
                    self._finish(JobDone(job, None, str(error)))
        self._gone(worker)

    def _begun(self) -> Worker:
        worker = self._start()
        with self._lock:
            self._workers.add(worker)
            late = self._closed
        if late:
            worker.end()
        return worker

    def _gone(self, worker: Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._workers.discard(worker)
            worker.close()

    def _leaves(self) -> bool:
        """Whether a worker without a job is one too many; it counts no longer then."""
        with self._lock:
            leaves = self._size > wanted(self._open, self.least, self.most)
            self._size -= leaves
            return leaves

    def _finish(self, done: JobDone) -> None:
        with self._lock:
            self._open -= 1
        self._done.put(done)


class ProcessWorker:
    """A worker in a process of its own, in a process group of its own: a terminal's Ctrl-C is its starter's to tell."""

    def __init__(self, module: str, hello: Job, threads: int = 1) -> None:
        """Start ``python -m module``.

        Args:
          module: reads lines of JSON, the first of which is ``hello``, and answers each but that one.
          hello: what all jobs have in common.
          threads: of torch, in it.
        """
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        environment = own_surroundings() | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            **group,
        )
        self._tell(hello)

    def ask(self, job: Job) -> Answer:
        """Do a job; see ``Worker``."""
        self._tell(job)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.endswith("\n"):
            raise EOFError(f"a worker ended with status {self._process.wait()}")
        answer: Answer = json.loads(line)
        return answer

    def _tell(self, job: Job) -> None:
        if self._process.stdin is None:
            raise EOFError("a worker has no input")
        try:
            self._process.stdin.write(to_json(job) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise EOFError(f"a worker ended with status {self._process.wait()}") from None

    def end(self) -> None:
        """End it; what it has sealed stays, what it was writing is nobody's."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and close its pipes."""
        self.end()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                continue


def own_surroundings() -> dict[str, str]:
    """The environment of a process that is no part of a group, wherever it was started from."""
    return {name: value for name, value in os.environ.items() if not _of_a_group(name)}


def _of_a_group(name: str) -> bool:
    return name in APART or name.startswith("TORCHELASTIC_")


def serve_lines(prepare: Callable[[Job], Callable[[Job], Answer]]) -> None:
    """Be a worker: the first line of standard input says what all jobs have in common, each further one is a job.

    The process exits as soon as its input ends, in the middle of a job if need be.

    Args:
      prepare: from the first line to what does the jobs.
    """
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    out = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed must not stand among the answers
    threading.Thread(target=listen, name="jobs", daemon=True).start()
    work = prepare(json.loads(lines.get()))
    while True:
        answer = work(json.loads(lines.get()))
        os.write(out, (to_json(answer) + "\n").encode())
