"""Failures of a log and of letters, by cause."""

from esper.nissa.failures import FailureRecord, describe, group, read_failures

LOG = """round   1/7  return 1.00
esper: runs/a/metrics.jsonl: disk full: OSError: [Errno 28] No space left on device; the run goes on
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
ZeroDivisionError: division by zero
esper supervise: train was killed by SIGKILL; restart 1 of 5 in 0.4 s
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
OSError: [Errno 28] No space left on device: 'b'
"""


def test_a_log_is_grouped_by_cause_with_a_remedy():
    groups = group(read_failures(LOG.splitlines()))
    found = {each.cause.name: (each.times, each.places) for each in groups}
    assert found == {
        "disk full": (2, ("line 2", "line 9")),
        "unknown": (1, ("line 6",)),
        "killed": (1, ("line 7",)),
        "out of memory": (1, ("line 8",)),
    }
    first, remedy, *_ = describe(groups)
    assert first == "disk full, 2 times: line 2, line 9: OSError: [Errno 28] No space left on device: 'b'"
    assert remedy.startswith("  remedy: free some space") and len(describe(groups)) == 8


def test_records_count_as_often_as_they_failed():
    records = [
        FailureRecord("busy", "a", "x", 3),
        FailureRecord("disk full", "b", "y"),
        FailureRecord("busy", "c", "x"),
    ]
    first, second = group(records)
    assert (first.cause.name, first.times, first.places, first.reason) == ("busy", 4, ("x",), "c")
    assert second.times == 1 and group([]) == [] and list(read_failures(["all is well", ""])) == []
