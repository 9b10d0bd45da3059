"""The child that compiles strangers' documents: ``python -m esper.tezzeret.stages.child``; see ``isolation``.

It reads a request a line, and answers in frames on the pipe that was its standard output; what anything prints goes
to standard error.
"""

import base64
import json
import os
import sys
from contextlib import suppress
from typing import Any

import torch

from esper.tezzeret.blueprints import parse
from esper.tezzeret.stages.building import Built, build, work_of
from esper.tezzeret.stages.frames import LENGTH, join
from esper.tezzeret.stages.reports import STAGES, ReportLog, StageFailed, as_table, failed
from esper.tezzeret.stages.request import CompileJob

MEMORY = "ESPER_CHILD_MEMORY"
"""The environment variable with the bytes that may be reserved beside those that imports have."""


def main() -> None:
    """Answer until the input ends."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    bound_memory(int(os.environ.get(MEMORY, "0")))
    _say(pipe, {"kind": "ready"})
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        torch.set_num_threads(int(asked.pop("threads")))
        key = asked.pop("key")
        request = CompileJob(**asked | {"document": base64.b64decode(asked["document"])})
        _answer(request, key, pipe)


def _answer(request: CompileJob, key: str, pipe: Any) -> None:
    log, built = ReportLog(lambda stage: _say(pipe, {"kind": "stage", "stage": stage})), Built(b"", b"")
    try:
        built = build(work_of(request, parse(request.document, request.place), key), log)
    except StageFailed:
        pass  # it is the last report
    except Exception as error:  # before the first stage
        log.add(failed(STAGES[2], error, 0.0))
    _say(pipe, {"kind": "done", "reports": as_table(tuple(log.reports))}, *built)


def _say(pipe: Any, table: dict[str, Any], package: bytes = b"", code: bytes = b"") -> None:
    message = join((json.dumps(table).encode(), package, code))
    pipe.write(len(message).to_bytes(LENGTH, "big") + message)
    pipe.flush()


def bound_memory(more: int) -> None:
    """Let no more than so many bytes be reserved beside those that are; 0: any. Nothing where that cannot be done."""
    if not more or not sys.platform.startswith("linux"):
        return
    import resource

    with suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="utf-8") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = now + 2 * more
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


if __name__ == "__main__":
    main()
