"""What errors mean: the table against errors that the system, SQLite, torch and subprocess really raise."""

import errno
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.leyline.config import ConfigError
from esper.utils.documents import cause
from esper.utils.resilience.breaker import BreakerOpen
from esper.utils.resilience.causes import CAUSES, PATTERNS, UNKNOWN, Nature, by_name, cause_of, cause_of_text


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def locked_database(path):
    first, second = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    try:
        first.execute("CREATE TABLE a (b)")
        first.execute("BEGIN IMMEDIATE")
        return raised(lambda: second.execute("BEGIN IMMEDIATE"))
    finally:
        first.close()
        second.close()


def refused_connection():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = unused.getsockname()
    return raised(lambda: socket.create_connection(place, timeout=5))


def no_handles():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        return raised(lambda: os.open(os.devnull, os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def child(code, **more):
    return raised(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, **more))


def test_errors_that_are_really_raised(tmp_path):
    (tmp_path / "file").write_text("")
    cases = {
        "busy": [locked_database(tmp_path / "a"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")],
        "connection lost": [refused_connection(), ConnectionResetError("reset")],
        "too many open files": [no_handles()],
        "killed": [child("import os; os.kill(os.getpid(), 9)")],
        "program failed": [child("raise SystemExit(3)")],
        "too slow": [child("import time; time.sleep(9)", timeout=0.01), TimeoutError("timed out")],
        "nothing there": [raised((tmp_path / "file" / "b").read_text), raised((tmp_path / "c").read_text)],
        "out of memory": [MemoryError(), raised(lambda: torch.empty(2**46)), torch.OutOfMemoryError("CUDA")],
        "disk fails": [OSError(errno.EIO, "Input/output error")],
        "disk full": [raised(lambda: Path("/dev/full").write_text("x"))] if Path("/dev/full").exists() else [],
        "value not allowed": [ConfigError("a = 1: expected 2"), KeyError("a"), TypeError("b")],
        "numbers not finite": [FloatingPointError("overflow")],
        "service left alone": [BreakerOpen("files: left alone after 5 failures in a row, for another 9 s")],
        "unknown": [RuntimeError("of no kind"), Exception()],
    }
    found = {name: {cause_of(error).name for error in errors} for name, errors in cases.items()}
    assert found == {name: {name} if errors else set() for name, errors in cases.items()}
    for errors in cases.values():
        for error in errors:  # a log has the words alone; only what it says by its kind is lost
            assert cause_of_text(cause(error)) in (cause_of(error), UNKNOWN), error


def test_the_table_says_one_thing_once():
    numbers = [number for row in CAUSES for number in row.numbers]
    assert len(numbers) == len(set(numbers)) and len({row.name for row in CAUSES}) == len(CAUSES)
    for row in CAUSES:
        assert by_name(row.name) is row and row.remedy
        for number in row.numbers:
            error = OSError(number, os.strerror(number))
            assert cause_of(error) is row
            assert PATTERNS[row.name].search(str(error))
    assert by_name("nothing of the kind") is UNKNOWN


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), ConfigError("x"), IndexError()])
def test_what_the_caller_did_wrong_is_not_the_services_fault(error):
    assert cause_of(error).nature is Nature.CALLER
