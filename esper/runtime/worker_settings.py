"""Settings of ``esper worker``."""

from dataclasses import dataclass

from esper.runtime.sink_settings import METRICS_HOST, METRICS_PORT, SINKS, TRACE
from esper.utils.settings import setting


@dataclass(frozen=True)
class WorkerSettings:
    """Compile, validate and publish the blueprints that are queued in a store."""

    store: str = setting("", "folder of the store; empty = the store of the environment (ESPER_STORE_...)")
    poll: float = setting(2.0, "seconds between two looks at an empty queue", low=0.01, high=3600.0)
    lease: float = setting(120.0, "seconds after which others may take what a dead worker had", low=1.0, high=86400.0)
    seconds: float = setting(300.0, "for one document, at most", low=1.0, high=86400.0)
    memory: int = setting(2048, "megabytes for one document, at most", low=16, high=1 << 20)
    drain: bool = setting(False, "end when the queue is empty")
    metrics_port: int = setting(-1, METRICS_PORT, -1, 65535)
    metrics_host: str = setting("127.0.0.1", METRICS_HOST)
    trace: str = setting("", TRACE)
    sinks: str = setting("", SINKS)
