"""The child: what it may use, and that nothing of it is left when it used more."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from esper.tezzeret.stages import NAMES, STAGES, CompileJob, CompilerChild, Confines, compile_document
from esper.tezzeret.stages.isolation import used
from esper.urza.store import Tiers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of others is read from /proc")

TALK = """
import json, os, subprocess, sys, time
def say(table, *parts):
    parts = [json.dumps(table).encode(), *parts, *[b""] * (2 - len(parts))]
    message = b"".join(len(part).to_bytes(8, "big") for part in parts) + b"".join(parts)
    os.write(1, len(message).to_bytes(8, "big") + message)
say({"kind": "ready"})
asked = json.loads(sys.stdin.buffer.readline())
"""
"""How a child talks, without torch."""

ILL: dict[str, tuple[str, str]] = {
    "never answers": ("deadline", "time.sleep(600)"),
    "leaves a grandchild that holds the pipe": (
        "deadline",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)",
    ),
    "takes memory": (
        "memory",
        "held = bytearray(300 << 20)\nfor i in range(0, len(held), 4096): held[i] = 1\ntime.sleep(600)",
    ),
    "lets another take memory": (
        "memory",
        "subprocess.Popen([sys.executable, '-c', 'h = bytes([1]) * (300 << 20); import time; time.sleep(600)'])\n"
        "time.sleep(600)",
    ),
    "dies": ("died", "sys.stderr.write('out of luck\\n'); sys.exit(3)"),
    "says nonsense": ("died", "say({'kind': 'done'})"),
    "says what is no message": ("died", "os.write(1, b'x' * 64)"),
    "gives a pickle": ("died", "say({'kind': 'done', 'reports': 'cos\\nsystem'}, b'\\x80\\x04.')"),
}


def processes() -> set[int]:
    """Of sessions that are not this one's."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != os.getsid(0) and fields[0] != "Z":
                found.add(int(folder.name))
    return found


@pytest.mark.parametrize("name", ILL)
def test_an_ill_child_is_ended_with_all_that_it_started(name: str, store: Tiers, request_of) -> None:
    reason, body = ILL[name]
    confines = Confines(seconds=30.0 if reason != "deadline" else 0.6, memory=100 << 20)
    asked, before = request_of("lora"), processes()
    with CompilerChild(confines, (sys.executable, "-c", TALK + body)) as child:
        begun = time.monotonic()
        id, reports = compile_document(asked, store, child)
        assert time.monotonic() - begun < 20
    assert id is None and reports[-1].reason == reason, reports[-1].line
    assert [report.stage for report in reports] == list(NAMES[:3]) and not reports[-1].passed
    assert store.list() == ()
    deadline = time.monotonic() + 5
    while (left := processes() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in left if "time.sleep(600)" in _command(pid)]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return ""


def test_a_stage_is_named_in_which_it_was_ended(store: Tiers, request_of) -> None:
    body = f"say({{'kind': 'stage', 'stage': {STAGES[4]!r}}})\ntime.sleep(600)"
    with CompilerChild(Confines(seconds=0.5), (sys.executable, "-c", TALK + body)) as child:
        _, reports = compile_document(request_of("lora"), store, child)
    assert reports[-1].stage == STAGES[4] and reports[-1].reason == "deadline"


def test_a_document_is_compiled_in_it_as_it_is_here(
    store: Tiers, child: CompilerChild, request_of: Callable[..., CompileJob]
) -> None:
    id, reports = compile_document(request_of("conv_light"), store, child)
    assert id is not None and [report.stage for report in reports] == list(NAMES)
    refused, reports = compile_document(request_of("conv_light", dtype="float64"), store, child)
    assert refused is None and reports[-1].stage == STAGES[2] and "float32" in reports[-1].line
    other, _ = compile_document(request_of("lora"), store, child)
    assert other is not None, "it goes on after a failure"


def test_one_that_was_ended_is_started_anew(tmp_path: Path, request_of) -> None:
    marker = "if os.path.exists(MARK): say({'kind': 'done', 'reports': []})\nopen(MARK, 'w')\nsys.exit(1)"
    code = TALK + marker.replace("MARK", json.dumps(str(tmp_path / "mark")))
    with CompilerChild(Confines(), (sys.executable, "-c", code)) as child:
        first = child.ask(request_of("lora", site="vector:8"), "k")
        again = child.ask(request_of("lora", site="vector:8"), "k")
    assert first.failed is not None and first.failed.reason == "died" and again.failed is None


def test_limits_hold_before_anything_is_allocated(store: Tiers, request_of) -> None:
    """A billion parameters are refused by shapes alone, with no child at all."""
    before = used(os.getpgid(0))
    with CompilerChild(command=(sys.executable, "-c", "raise SystemExit")) as child:
        id, reports = compile_document(request_of("conv_light", site="conv:11000x4x4"), store, child)
    assert id is None and reports[-1].stage == STAGES[1] and "parameters" in reports[-1].line
    assert used(os.getpgid(0)) - before < 64 << 20
