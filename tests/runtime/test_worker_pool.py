"""The pool of worker processes: it grows with a burst, shrinks after it, and outlives its workers."""

import json
import os
import subprocess
import sys
import time

import pytest

from esper.runtime.worker_pool import ProcessWorker, WorkerPool, wanted

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")

ECHO = """
import json, os, sys, time

hello = json.loads(sys.stdin.readline())
for line in sys.stdin:
    job = json.loads(line)
    if "die" in job and not os.path.exists(job["die"]):
        open(job["die"], "w").close()
        os._exit(7)
    if job.get("always"):
        os._exit(9)
    time.sleep(job.get("seconds", 0))
    answer = {"number": job["number"], "hello": hello["hello"], "pid": os.getpid(), "rank": os.environ.get("RANK")}
    print(json.dumps(answer), flush=True)
"""
"""A worker that has nothing to import."""

SERVING = """
import os, sys, time
from esper.runtime.worker_pool import serve_lines

def prepare(hello):
    print("not an answer")

    def work(job):
        time.sleep(job.get("seconds", 0))
        return {"number": job["number"], "hello": hello["hello"], "pid": os.getpid()}

    return work

serve_lines(prepare)
"""

STARTER = """
import json, subprocess, sys, time
worker = subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for line in ({"hello": "all"}, {"number": 0}, {"number": 1, "seconds": 600}):
    print(json.dumps(line), file=worker.stdin, flush=True)
print(worker.stdout.readline(), end="", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "echo_worker.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setenv("RANK", "3")
    return lambda: ProcessWorker("echo_worker", {"hello": "all"})


def answers(pool, count):
    found = []
    while len(found) < count:
        done = pool.done(30)
        assert done is not None
        found.append(done)
    return found


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_bursts_make_it_grow_and_quiet_makes_it_shrink(start):
    pool = WorkerPool(start, 1, 3, linger=0.3)
    try:
        pool.put({"number": 0})
        assert answers(pool, 1)[0].answer == {"number": 0, "hello": "all", "pid": pool_pid(pool), "rank": None}
        assert pool.size == 1
        for burst in range(2):
            for number in range(9):
                pool.put({"number": number, "seconds": 0.05})
            assert pool.size == 3
            done = answers(pool, 9)
            assert sorted(each.answer["number"] for each in done) == list(range(9)), burst
            assert until(lambda: pool.size == 1)
        assert pool.peak == 3
    finally:
        pool.close()
    assert pool.done(0.01) is None


def pool_pid(pool):
    (worker,) = pool._workers
    return worker._process.pid


def test_a_job_whose_worker_dies_is_done_by_another_and_given_up_after_two(start, tmp_path):
    pool = WorkerPool(start, 1, 2, linger=0.3)
    try:
        pool.put({"number": 1, "die": str(tmp_path / "died")})
        assert answers(pool, 1)[0].answer["number"] == 1
        pool.put({"number": 2, "always": True})
        (done,) = answers(pool, 1)
        assert done.answer is None and "status 9" in done.error
        pool.put({"number": 3})
        assert answers(pool, 1)[0].answer["number"] == 3
    finally:
        pool.close()


def test_a_worker_does_not_outlive_whoever_started_it(start, tmp_path):
    """Its starter is killed in the middle of a job."""
    (tmp_path / "serving.py").write_text(SERVING)
    command = [sys.executable, "-c", STARTER, str(tmp_path / "serving.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        answer = json.loads(starter.stdout.readline())
        assert alive(answer["pid"])
        starter.kill()
        starter.wait()
    assert answer == {"number": 0, "hello": "all", "pid": answer["pid"]}
    assert until(lambda: not alive(answer["pid"]))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_as_many_are_wanted_as_there_are_jobs_within_bounds():
    assert [wanted(jobs, 2, 4) for jobs in range(7)] == [2, 2, 2, 3, 4, 4, 4]
