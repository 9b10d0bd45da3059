"""What ``esper worker`` does: it compiles what the store's queue holds, until it is asked to stop."""

import math
import os
import socket
import threading
from contextlib import ExitStack, closing
from typing import TextIO

from esper.runtime.feeds import require_sinks, worker_operations
from esper.runtime.interrupt import Watch, watched
from esper.runtime.worker_settings import WorkerSettings
from esper.tezzeret.stages import CompileObserver, CompilerChild, CompileWorker, Confines, Finished
from esper.urza.store import StoreSettings, from_environment, open_store
from esper.utils.documents import one_line
from esper.utils.terminal import output


def work(settings: WorkerSettings, out: TextIO | None = None) -> CompileWorker:
    """Serve until SIGINT or SIGTERM, or until the queue is empty.

    Args:
      settings: everything.
      out: where a line for every request goes, and counters at the end.

    Returns:
      the worker, which has stopped.

    Raises:
      StoreError: the store cannot be opened.
      Stopped: it was asked to; what it had is in the queue again.
    """
    out = output(out)
    require_sinks(settings)
    where = StoreSettings(folder=settings.store) if settings.store else from_environment()
    with ExitStack() as stack:
        store = stack.enter_context(open_store(where))
        child = stack.enter_context(CompilerChild(Confines(settings.seconds, settings.memory << 20)))
        watch = stack.enter_context(watched())
        operations = stack.enter_context(closing(worker_operations(settings, store, out)))
        name = f"{socket.gethostname()}:{os.getpid()}"
        worker = CompileWorker(store, name, child, settings.lease, settings.poll)
        worker.observer = CompileObserver(operations)
        done = threading.Event()
        stack.callback(done.set)
        threading.Thread(target=_look, args=(watch, worker, done), daemon=True).start()
        out.write(f"worker {name}: {_counts(store.queue.counters())}\n")
        out.flush()
        with operations("worker", name=name):
            worker.serve(lambda finished: _tell(finished, out), settings.drain)
        out.write(summary(worker) + "\n")
        out.flush()
        watch.check()
    return worker


def _look(watch: Watch, worker: CompileWorker, done: threading.Event) -> None:
    """Hand a signal on to the worker."""
    while not done.wait(0.05):
        if watch.number is not None:
            worker.ask_to_stop()
            return


def _tell(finished: Finished, out: TextIO) -> None:
    place = str(finished.request.facts.get("site", "")) or "its usual site"
    what = f"as {finished.id[:16]}" if finished.id is not None else finished.report.line.strip()
    out.write(
        one_line(
            f"{finished.request.id[:12]}  {finished.outcome} for {place} in {finished.seconds:.2f} s "
            f"(predicted {finished.predicted:.2f} s)  {what}"
        )
        + "\n"
        + "".join(f"{one_line(each.line_in('request'))}\n" for each in finished.anomalies)
    )
    out.flush()


def summary(worker: CompileWorker) -> str:
    """Counters, and how well times were predicted."""
    found, correlation = _counts(worker.counts), worker.correlation()
    told = f"; rank correlation of predicted and measured times {correlation:.2f}" if math.isfinite(correlation) else ""
    return f"worker {worker.name}: {found}{told}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()) if number) or "nothing"
