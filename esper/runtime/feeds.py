"""What a run or a worker feeds: the sinks and the trace that its settings ask for."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from esper.nissa.event_record import KINDS
from esper.nissa.operations import NO_OPERATIONS, OperationLog
from esper.nissa.public_operations import telling
from esper.nissa.sinks.fan_out import FanOut, Opener
from esper.nissa.sinks.json_lines import LOG
from esper.nissa.sinks.opening import SinkPlace, openers_of, parse_sinks
from esper.nissa.sinks.prometheus import STATE, open_prometheus, require_prometheus, tallies_so_far
from esper.nissa.sinks.protocol import Opened
from esper.nissa.sinks.record import METRICS, SinkError, read_rows
from esper.nissa.sinks.tensorboard import FOLDER, TensorBoardSink, require_tensorboard
from esper.nissa.tallies import Change, RunFacts, Tallies, changed, of_compilations
from esper.nissa.tracing import open_spans, require_tracing
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.runtime.worker_settings import WorkerSettings
from esper.tezzeret.stages.worker import OUTCOMES
from esper.urza.store import Tiers
from esper.utils.compilations import NAMES
from esper.utils.paths import user_path
from esper.version import __version__

EVENTS = [Change("esper_events", 0.0, (kind,)) for kind in KINDS]

BEGINNING = [Change("esper_rounds", 0.0), Change("esper_kernel_failures", 0.0), *EVENTS]
"""Counters that are there from the beginning, so that their first increase is one."""

COMPILING = [of_compilations(name, 0.0) for name in NAMES]
"""The same of runs whose rows tell of compilations."""

WORKER_BEGINNING = [*EVENTS, *(Change("esper_compile_requests", 0.0, (outcome,)) for outcome in OUTCOMES)]
"""The same of a worker."""

LEVELS = ("entries", "bytes", "waiting")
"""Numbers of a store that rise and fall, and are no counters."""


def require_sinks(settings: TrainSettings | WorkerSettings) -> None:
    """Check that everything that is asked for is installed, before anything begins.

    Raises:
      SinkError: a package is missing, or a word is unknown.
      SettingsError: a number of the telemetry profile is not allowed.
    """
    if settings.metrics_port >= 0:
        require_prometheus()
    if settings.trace:
        require_tracing(settings.trace)
    parse_sinks(settings.sinks)
    if isinstance(settings, TrainSettings):
        _ = settings.profile  # whose numbers are checked
    if isinstance(settings, TrainSettings) and settings.tensorboard:
        require_tensorboard()


def telling_calls(settings: TrainSettings, operations: OperationLog) -> AbstractContextManager[None]:
    """A context in which sinks are told of every call of an engine, if the telemetry profile asks for that."""
    return telling(operations if settings.profile.operations and operations.sinks.sinks else None)


class Feed:
    """Sinks that may ask, when they are scraped, how all of them are.

    Attributes:
      sinks: all of them, as soon as they are open.
    """

    def __init__(self) -> None:
        self.sinks = FanOut({})

    def changes(self) -> list[Change]:
        """Health of the sinks."""
        found = list[Change]()
        for name, (up, lost) in self.sinks.health().items():
            kind = name.partition(":")[0]
            found += [Change("esper_sink_up", float(up), (kind,)), Change("esper_sink_lost", lost, (kind,))]
        return found


def run_operations(settings: TrainSettings, folder: Path, scenes: Sequence[Scene], out: TextIO) -> OperationLog:
    """Open what a run asks for, and tell of it.

    Args:
      settings: everything.
      folder: the run directory; its rows are those that the run goes on from.
      scenes: what is played.
      out: where lines for people go.

    Raises:
      SinkError: a log or a trace would be written into the run's own files.
    """
    feed, openers = Feed(), openers_of(settings.sinks, SinkPlace(folder, asdict(settings), out))
    if settings.trace and user_path(settings.trace).resolve() in {folder.resolve() / name for name in (METRICS, LOG)}:
        raise SinkError(f"--trace {settings.trace}: the run's own file; expected another, or otlp:URL")
    rows = read_rows(folder / METRICS)
    if settings.tensorboard:
        openers["tensorboard"] = lambda: Opened(TensorBoardSink(folder / FOLDER, len(rows) + 1))
    if settings.metrics_port >= 0:
        openers["prometheus"] = _run_endpoint(settings, folder, scenes, feed)
    return _opened(feed, openers, settings.trace, "esper-train", out)


def _run_endpoint(settings: TrainSettings, folder: Path, scenes: Sequence[Scene], feed: Feed) -> Opener:
    tasks, environments = tuple(scene.rules.task for scene in scenes), settings.num_envs * len(scenes)
    decisions = sum(settings.num_envs * scene.engine.config.horizon for scene in scenes)
    facts = RunFacts(tasks, decisions, environments, settings.rounds)
    backends = ",".join(dict.fromkeys(scene.engine.backend.name for scene in scenes))
    labels = (folder.name, settings.task, backends, settings.device, __version__)
    address, rows = (settings.metrics_host, settings.metrics_port), read_rows(folder / METRICS)

    def opened() -> Opened:
        tallies = tallies_so_far(folder / STATE, rows, facts)
        told = [Change("esper_run_info", 1.0, labels), Change("esper_rounds_wanted", facts.rounds)]
        told += [*BEGINNING, *(COMPILING if settings.profile.resources else ())]
        return open_prometheus(address, changed(_without_info(tallies), told), facts, folder / STATE, feed.changes)

    return opened


def _without_info(tallies: Tallies) -> Tallies:
    """Tallies whose run may have another name, backend or version by now."""
    kept = {series: value for series, value in tallies.values.items() if series[0] != "esper_run_info"}
    return tallies._replace(values=kept)


def worker_operations(settings: WorkerSettings, store: Tiers, out: TextIO) -> OperationLog:
    """Open what a worker asks for, and tell of it."""
    feed = Feed()
    openers = openers_of(settings.sinks, SinkPlace(Path.cwd(), asdict(settings), out, is_run=False))

    def live() -> Iterable[Change]:
        found = feed.changes()
        found += [
            Change("esper_store_operations", number, (tier, name))
            for tier, counts in store.metrics().items()
            for name, number in counts.items()
            if name not in LEVELS
        ]
        try:
            queue = store.queue.counters()
        except OSError:  # the database is lost: its queue is unknown, and no series says so
            return found
        return [*found, *(Change("esper_queue_requests", number, (name,)) for name, number in queue.items())]

    if settings.metrics_port >= 0:
        address, none = (settings.metrics_host, settings.metrics_port), RunFacts((), 0, 0, 0)
        begun = changed(Tallies(), WORKER_BEGINNING)
        openers["prometheus"] = lambda: open_prometheus(address, begun, none, None, live)
    return _opened(feed, openers, settings.trace, "esper-worker", out)


def _opened(feed: Feed, openers: dict[str, Opener], trace: str, service: str, out: TextIO) -> OperationLog:
    if not openers and not trace:
        return NO_OPERATIONS
    feed.sinks = FanOut(openers)
    out.write("".join(f"{line}\n" for line in feed.sinks.lines))
    out.flush()
    return OperationLog(feed.sinks, open_spans(trace, service))
