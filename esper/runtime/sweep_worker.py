"""A sweep's worker: starts ``esper`` as a process of its own for every job, and waits for it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from esper.nissa.sinks import METRICS, SinkError, read_rows
from esper.runtime.own import expect_nothing_imported
from esper.runtime.train_settings import TrainSettings
from esper.runtime.worker_pool import Answer, Job, own_surroundings
from esper.utils.settings import read_settings

PATIENCE = 30.0
"""Seconds that a run has to save what it has when the sweep ends."""


def is_whole(folder: Path, words: list[str]) -> bool:
    """Whether a run has all its rounds and its evaluation.

    Args:
      folder: of the run.
      words: of ``esper``, which train it.
    """
    settings = read_settings(TrainSettings, words[1:], "esper train", trust=expect_nothing_imported)
    try:
        rows = read_rows(folder / METRICS)
    except (OSError, SinkError):
        return False
    evaluated = not settings.eval_envs or (folder / "evaluation.json").exists()
    return len(rows) >= settings.rounds and evaluated and (folder / "report.html").exists()


class TrainWorker:
    """See ``esper.runtime.worker_pool.Worker``. A job is ``{"folder": str, "words": list}``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock, self._ended = threading.Lock(), False

    def ask(self, job: Job) -> Answer:
        """Run a process to its end; its status, and the last line on its standard error.

        Raises:
          EOFError: a signal ended it, or this worker was.
        """
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        command = [sys.executable, "-m", "esper", *job["words"]]
        with self._lock:
            if self._ended:
                raise EOFError("the sweep has ended")
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=own_surroundings(),
                text=True,
                encoding="utf-8",
                errors="replace",
                **group,
            )
        _, said = self._process.communicate()
        if self._process.returncode < 0 or self._ended:
            raise EOFError(f"ended with status {self._process.returncode}")
        lines = said.strip().splitlines()
        return {"status": self._process.returncode, "said": lines[-1] if lines else ""}

    def end(self) -> None:
        """Ask the process to stop, which saves what it has, and wait for it."""
        with self._lock:
            self._ended, process = True, self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """The same."""
        self.end()
