"""A process of the case of many at once: a training, a worker or a client of a store, which works when it is told to.

It reads lines of JSON: first what it is, then jobs {"seconds"}, each of which lets it work for so long and is answered
with {"units", "seconds", "wrong"}. Between jobs it does nothing, so that each can be measured alone.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from esper.nissa.sinks import METRICS
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.runtime.worker_pool import Answer, Job, serve_lines
from esper.tezzeret.blueprints import canonical, shipped
from esper.tezzeret.stages import CompileJob, CompilerChild, CompileWorker, enqueue
from esper.urza.store import Artefact, StoreSettings, open_store
from esper.utils.documents import cause, one_line
from esper.utils.failpoints import awaiting
from esper.utils.paths import user_path

PAYLOAD = 1 << 14
"""Bytes that the client puts and gets."""

DOCUMENT = "lora"
"""Shipped document of which the worker compiles copies, each with a name of its own."""

PATIENCE = 120.0
"""Seconds for a training's first round, or for one step."""

POINTS = ("step", "minibatch")
"""Where a training waits for its turn, of ``esper.utils.failpoints``."""


class Pace:
    """Lets a training pass its points while it has its turn.

    Attributes:
      turn: set while it has.
      steps: environment steps that began.
      waiting: whether it waits for its turn.
    """

    def __init__(self) -> None:
        self.turn, self.steps, self.waiting = threading.Event(), 0, threading.Event()

    def met(self, point: str, arrival: int) -> None:
        """Wait at a point for the turn; nothing goes wrong there."""
        del arrival
        if point in POINTS:
            if not self.turn.is_set():
                self.waiting.set()
                self.turn.wait()
                self.waiting.clear()
            self.steps += point == "step"


class PacedTraining:
    """``esper train`` without an end, in a thread.

    Attributes:
      pace: when it has its turn.
      wrong: what ended it; empty while it goes on.
    """

    def __init__(self, settings: TrainSettings) -> None:
        """Begin, and wait behind the first round."""
        self.pace, self.wrong = Pace(), ""
        self._settings, self._rows = settings, user_path(settings.out) / METRICS
        threading.Thread(target=self._train, name="training", daemon=True).start()
        self.pace.turn.set()
        end = time.monotonic() + PATIENCE
        while not self.wrong and not self._has_round() and time.monotonic() < end:
            time.sleep(0.01)
        self.pace.turn.clear()
        self._settle()

    def _has_round(self) -> bool:
        return self._rows.exists() and self._rows.stat().st_size > 0

    def _train(self) -> None:
        try:
            with awaiting(self.pace):
                train(self._settings)
            self.wrong = "it ended by itself"
        except BaseException as error:
            self.wrong = one_line(f"{type(error).__name__}: {cause(error)}")

    def _settle(self) -> None:
        """Until it waits for its turn."""
        if not self.wrong and not self.pace.waiting.wait(PATIENCE):
            self.wrong = f"no step within {PATIENCE:g} s"

    def work(self, job: Job) -> Answer:
        """Have its turn for so many seconds, or longer until a step has begun; units are environment steps."""
        begun, before = time.perf_counter(), self.pace.steps
        self.pace.turn.set()
        time.sleep(job["seconds"])
        while (
            job["seconds"] and not self.wrong and self.pace.steps == before and time.perf_counter() < begun + PATIENCE
        ):
            time.sleep(0.01)
        self.pace.turn.clear()
        self._settle()
        return {"units": self.pace.steps - before, "seconds": time.perf_counter() - begun, "wrong": self.wrong}


def _training(hello: Job) -> Callable[[Job], Answer]:
    torch.set_num_threads(hello["threads"])
    return PacedTraining(TrainSettings(**hello["settings"])).work


def _worker(hello: Job) -> Callable[[Job], Answer]:
    """Documents that are put into the queue and seen through, one after the other."""
    store = open_store(StoreSettings(folder=hello["store"]))
    worker = CompileWorker(store, "bench", CompilerChild() if hello["child"] else None)
    document = json.loads(canonical(shipped()[DOCUMENT]))
    count = [0]

    def one() -> str:
        count[0] += 1
        copy = json.dumps(document | {"name": f"{DOCUMENT}_{count[0]}"}).encode()
        enqueue(store, CompileJob(copy, DOCUMENT, backend="eager"))
        found = worker.work_once()
        return "" if found is not None and found.outcome == "published" else f"a document ended as {found}"

    return _repeated(one)


def _client(hello: Job) -> Callable[[Job], Answer]:
    """Artefacts that are put and got."""
    store = open_store(StoreSettings(folder=hello["store"]))
    count = [0]

    def one() -> str:
        count[0] += 1
        data = hashlib.sha256(b"%d" % count[0]).digest() * (PAYLOAD // 32)
        facts = {"kind": "bench", "name": str(count[0]), "version": "1", "validated": True}
        found = store.get(store.put(data, facts), "bench")
        return "" if isinstance(found, Artefact) and (found.data, found.facts) == (data, facts) else f"got {found}"

    return _repeated(one)


def _repeated(one: Callable[[], str]) -> Callable[[Job], Answer]:
    """Do something again and again for a job's seconds, at least once unless there are none."""

    def work(job: Job) -> Answer:
        begun, units, wrong = time.perf_counter(), 0, ""
        while not wrong and time.perf_counter() - begun < job["seconds"]:
            wrong, units = one(), units + 1
        return {"units": units, "seconds": time.perf_counter() - begun, "wrong": one_line(wrong)}

    return work


KINDS: dict[str, Callable[[Job], Callable[[Job], Answer]]] = {
    "training": _training,
    "worker": _worker,
    "client": _client,
}


def _prepare(hello: Job) -> Any:
    return KINDS[hello["kind"]](hello)


if __name__ == "__main__":
    serve_lines(_prepare)
