"""``esper worker``; what it does is in ``esper.runtime.serve``, which takes its time to import."""

from typing import TextIO

from esper.runtime.worker_settings import WorkerSettings


def serve_queue(settings: WorkerSettings, out: TextIO | None = None) -> None:
    """See ``esper.runtime.serve.work``."""
    from esper.runtime.serve import work

    work(settings, out)
