"""Compiling many units at once: as many processes as there are cores, which end when nothing is left to compile.

A process is told a job in a line, and answers with an empty line, or the reason why it cannot be compiled.
"""

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import Future
from threading import Thread
from typing import Any

import torch

from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.kept import Job, compile_job
from esper.tezzeret.inductor.signature import Signature
from esper.utils.torch_private import put_inductor_settings, take_inductor_settings

MOST = 8
"""Processes at most: each holds torch and Inductor in memory."""


class WorkerError(RuntimeError):
    """A job that a process could not compile; one line with the reason."""


def cores() -> int:
    """Processor cores that this process may use."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask is not None else os.cpu_count() or 1


class Workers:
    """Processes that compile what they are given, side by side; they end when this is closed and all is done."""

    def __init__(self) -> None:
        """Start them."""
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.count = min(cores(), MOST)
        settings = json.dumps([take_inductor_settings(), torch.get_num_threads()])
        for _ in range(self.count):
            Thread(target=_serve, args=(self.waiting, settings), daemon=True).start()

    def submit(self, job: Job) -> "Future[None]":
        """Have a job compiled; the result raises ``WorkerError`` where it cannot be."""
        future: Future[None] = Future()
        self.waiting.put((job, future))
        return future

    def close(self) -> None:
        """No more jobs."""
        for _ in range(self.count):
            self.waiting.put(None)


def _serve(waiting: "queue.SimpleQueue[Any]", settings: str) -> None:
    """Hand jobs to a process of one's own until there are no more."""
    try:
        process = _started(settings)
    except OSError as error:
        for _, future in iter(waiting.get, None):
            future.set_exception(WorkerError(f"no process can be started: {error}"))
        return
    with process as worker:
        for job, future in iter(waiting.get, None):
            try:
                reason = _asked(worker, job)
            except Exception as error:  # whoever waits must hear of it
                reason = f"{type(error).__name__}: {error}"
            if reason:
                future.set_exception(WorkerError(reason))
            else:
                future.set_result(None)


def _started(settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from esper.tezzeret.inductor.workers import main; main()", settings]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command,
        env=environment,
        encoding="utf-8",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _asked(worker: "subprocess.Popen[str]", job: Job) -> str:
    """What a process says of a job: nothing, or the reason why it cannot be compiled."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps([job.name, job.code, job.signature.as_table()]) + "\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    return answer.strip() if answer else f"the compiling process ended with status {worker.wait()}"


def main() -> None:
    """Be such a process: compile what standard input holds, a job a line, until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print is no answer
    settings, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    put_inductor_settings(settings)
    for line in sys.stdin:
        name, code, table = json.loads(line)
        answers.write(_compiled(Job(name, code, Signature.from_table(table))) + "\n")
        answers.flush()


def _compiled(job: Job) -> str:
    """Compile a job, and make sure that it can be loaded; the reason where it cannot be."""
    try:
        compile_job(job)
        return "" if store.find(job.name) is not None else "what was compiled cannot be loaded"
    except Exception as error:  # of AOT autograd, Inductor, the compiler, the linker, the file system
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
