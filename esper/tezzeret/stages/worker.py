"""The worker: takes requests from a store's queue, compiles, validates and publishes them, one after the other.

What it has it holds by a lease, which a thread renews. Whoever asks a worker to stop gets the request that it has back
into the queue; a worker that dies loses it when the lease ends.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from esper.nissa.anomalies import Anomaly
from esper.tezzeret.stages.cost_model import predict_job, rank_correlation, urgency
from esper.tezzeret.stages.isolation import CompilerChild
from esper.tezzeret.stages.observer import CompileObserver
from esper.tezzeret.stages.pipeline import compile_document
from esper.tezzeret.stages.reports import VALIDATION, StageReport
from esper.tezzeret.stages.request import CompileJob
from esper.urza.store import CompileRequest, Tiers
from esper.urza.store.compile_queue import LEASE

POLL = 2.0
"""Seconds between two looks at an empty queue."""

OUTCOMES = ("published", "found", "failed", "released", "lost")
"""How a request ends; see ``Finished``."""

FACTS = ("place", "site", "dtype", "backend", "device")
"""Facts of a request that a job has."""


class Finished(NamedTuple):
    """A request that a worker had.

    Attributes:
      request: as it was taken.
      id: of what was published; None where nothing was.
      report: the last stage's.
      predicted, seconds: of compilation; of all stages.
      outcome: "published", "found" (it was there), "failed", "released" (asked to stop) or "lost" (the lease was).
      anomalies: what is out of the ordinary since then.
    """

    request: CompileRequest
    id: str | None
    report: StageReport
    predicted: float
    seconds: float
    outcome: str
    anomalies: tuple[Anomaly, ...] = ()


class CompileWorker:
    """A worker. ``serve`` works in this thread, ``start`` in one of its own.

    Attributes:
      counts: requests by outcome, and ``polls``.
      measured: of those that were compiled, predicted and measured seconds.
      observer: who is told.
    """

    def __init__(
        self, store: Tiers, name: str, child: CompilerChild | None = None, lease: float = LEASE, poll: float = POLL
    ) -> None:
        """Take nothing yet.

        Args:
          store: whose queue it is, and where results go.
          name: of the worker, for others.
          child: where documents are compiled; None: in this process.
          lease: seconds.
          poll: seconds between two looks at an empty queue.
        """
        self.store, self.name, self.child, self.lease, self.poll = store, name, child, lease, poll
        self.counts: Counter[str] = Counter()
        self.measured: list[tuple[float, float]] = []
        self.observer = CompileObserver()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._known: dict[str, float] = {}
        if child is not None:
            child.stopping = self._stop.is_set

    def start(self) -> None:
        """Work in a thread until ``stop``."""
        self._thread = threading.Thread(target=self.serve, name=f"esper-worker-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop in order; what is being compiled in a child goes back to the queue. Waits for the thread, if any."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ask_to_stop(self) -> None:
        """Let ``serve`` return soon; for handlers of signals."""
        self._stop.set()

    def serve(self, told: Callable[[Finished], None] = lambda finished: None, drain: bool = False) -> None:
        """Work until asked to stop.

        Args:
          told: hears of every request that ended.
          drain: return when the queue is empty.
        """
        while not self._stop.is_set():
            try:
                finished = self.work_once()
            except OSError:  # the database is lost: it may come back
                self.counts["unreachable"] += 1
                finished = None
            if finished is not None:
                told(finished)
                continue
            if drain:
                return
            self.counts["polls"] += 1
            self._stop.wait(self.poll)

    def work_once(self) -> Finished | None:
        """Take a request and see it through; None where there is none.

        Raises:
          OSError: the store's database is lost.
        """
        request = self.store.queue.claim(self.name, self._order, self.lease)
        if request is None:
            return None
        predicted = self._predicted(request)
        with self._renewed(request), self.observer.request(request.id, self.store.queue.traceparent(request.id)):
            id, reports = compile_document(
                job_of(request), self.store, self.child, self.observer.reported, partial(self._note, request)
            )
        finished = self._end(request, id, reports, predicted)
        self.counts[finished.outcome] += 1
        found = self.observer.ended(finished.outcome, finished.seconds, predicted, finished.report.line.strip())
        finished = finished._replace(anomalies=tuple(found))
        if finished.outcome == "published":
            self.measured.append((predicted, finished.seconds))
        return finished

    def correlation(self) -> float:
        """Rank correlation of predicted and measured seconds; NaN of fewer than two."""
        return rank_correlation([one for one, _ in self.measured], [two for _, two in self.measured])

    def _end(
        self, request: CompileRequest, id: str | None, reports: tuple[StageReport, ...], predicted: float
    ) -> Finished:
        queue, last = self.store.queue, reports[-1]
        seconds = sum(report.seconds for report in reports)
        if id is not None:
            held, outcome = queue.complete(request, id), "found" if "cached" in last.facts else "published"
        elif last.reason == "stopped":
            held, outcome = queue.release(request), "released"
        else:
            held, outcome = queue.fail(request, last.line), "failed"
        return Finished(request, id, last, predicted, seconds, outcome if held else "lost")

    def _note(self, request: CompileRequest, stage: str) -> None:
        self.observer.begun(stage)
        if stage == VALIDATION:
            self.store.queue.validating(request)

    @contextmanager
    def _renewed(self, request: CompileRequest) -> Iterator[None]:
        """The lease is renewed while the block runs."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self.lease / 3):
                try:
                    self.store.queue.renew(request, self.lease)
                except OSError:  # tried again in a while; the lease may be lost then, and `complete` says so
                    self.counts["unreachable"] += 1

        thread = threading.Thread(target=renew, name="esper-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _order(self, request: CompileRequest) -> float:
        return urgency(self._predicted(request), max(0.0, (time.time_ns() - request.created) / 1e9))

    def _predicted(self, request: CompileRequest) -> float:
        if request.id not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[request.id] = predict_job(job_of(request))
        return self._known[request.id]


def job_of(request: CompileRequest) -> CompileJob:
    """What a request asks for; facts that are no words count as missing."""
    words = {name: value for name in FACTS if isinstance(value := request.facts.get(name), str)}
    return CompileJob(request.document, **{"place": request.id[:12]} | words)


def enqueue(store: Tiers, job: CompileJob) -> str:
    """Ask for a job to be done by some worker; at once.

    Returns:
      the request's id, under which the queue tells what became of it.

    Raises:
      StoreError: see ``CompileQueue.enqueue``.
    """
    facts = {name: value for name, value in job._asdict().items() if name in FACTS and name != "place"}
    return store.queue.enqueue(job.document, **facts)
