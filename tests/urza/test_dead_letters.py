"""The queue of dead letters: nothing acknowledged is lost, nothing goes away by itself, hostile files are refused."""

import errno
import os
import random
import signal
import sqlite3
import time

import pytest

from esper.urza.dead_letters import FILE, ROOM, DeadLetterError, DeadLetters, LetterState

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
LATE = TimeoutError("timed out")


@pytest.fixture
def queue(tmp_path):
    times = iter(range(1000))
    opened = DeadLetters(tmp_path / FILE, lambda: float(next(times)))
    yield opened
    opened.close()


def test_a_letter_waits_until_it_is_done_however_often_it_fails(queue):
    number = queue.put("file", "report.html", b"old", FULL)
    (letter,) = queue.waiting()
    assert letter == (number, "file", "report.html", letter.payload, "disk full", letter.reason, 1, 0.0, 0.0)
    assert "No space left on device" in letter.reason and queue.payload(letter) == b"old"
    for _ in range(50):
        queue.failed_again(number, LATE)
    assert queue.put("file", "report.html", b"new", FULL) == number
    (letter,) = queue.waiting()
    assert (letter.attempts, letter.first, letter.last, queue.payload(letter)) == (52, 0.0, 51.0, b"new")
    assert queue.end(number, LetterState.DONE) and not queue.end(number, LetterState.DONE)
    assert queue.waiting() == [] and queue.ended() == {LetterState.DONE: 1, LetterState.DROPPED: 0}
    assert queue.put("file", "report.html", b"again", LATE) > number


def test_letters_of_one_payload_share_it_and_a_drop_is_remembered(queue, tmp_path):
    first, second = queue.put("file", "a", b"same", FULL), queue.put("file", "b", b"same", FULL)
    queue.end(first, LetterState.DROPPED)
    (letter,) = queue.waiting()
    assert letter.number == second and queue.payload(letter) == b"same"
    queue.end(second, LetterState.DONE)
    queue.finish()
    assert DeadLetters(tmp_path / FILE).ended() == {LetterState.DONE: 1, LetterState.DROPPED: 1}


def test_a_queue_that_held_nothing_leaves_nothing(tmp_path):
    queue = DeadLetters(tmp_path / FILE)
    queue.reserve()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 2 * ROOM
    queue.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_queue_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE letters (number)")
    other.close()
    hostile = DeadLetters(tmp_path / "hostile")
    hostile._open.execute("CREATE TRIGGER t AFTER INSERT ON letters BEGIN DELETE FROM letters; END")
    hostile.close()
    (tmp_path / "noise").write_bytes(random.Random(0).randbytes(5000))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("other", "hostile", "noise", "fifo", "link", "no/folder"):
        with pytest.raises(DeadLetterError, match=rf"^\S*{name}: .*expected [^\n]*$"):
            DeadLetters(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_a_payload_that_is_not_what_was_put_is_refused(queue):
    queue.put("file", "a", b"x" * 100, FULL)
    for body in (b"", b"noise", None):
        with queue._written():
            queue._open.execute(
                "UPDATE payloads SET body = ?" if body is not None else "DELETE FROM payloads",
                (body,) * (body is not None),
            )
        with pytest.raises(DeadLetterError, match="letter 1: its payload is damaged"):
            queue.payload(queue.waiting()[0])


def put_without_end(path, acknowledged):
    """Puts letters and ends every third, saying each number when that is done."""
    queue = DeadLetters(path)
    for count in range(1_000_000):
        number = queue.put("file", f"{os.getpid()}-{count}", b"%d" % count * 100, FULL)
        os.write(acknowledged, b"+%d\n" % number)
        if count % 3 == 0:
            queue.end(number, LetterState.DONE)
            os.write(acknowledged, b"-%d\n" % number)


def killed_at_random(path, draw):
    """What a process that was killed at a random moment had acknowledged: numbers put, numbers ended."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            put_without_end(path, sink)
        finally:
            os._exit(1)
    os.close(sink)
    with open(source, "rb", buffering=0) as heard:
        said = heard.read(3)  # it is at work
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = (said + heard.readall()).split(b"\n")[:-1]
    return [{int(line[1:]) for line in lines if line.startswith(sign)} for sign in (b"+", b"-")]


def survive(path, kills):
    """After each kill: letters that were acknowledged are there, and those whose end was acknowledged have ended.

    An end may be on the disk that was not acknowledged: at most one a kill.
    """
    draw, put, ended = random.Random(7), set(), set()
    for number in range(1, kills + 1):
        for known, new in zip((put, ended), killed_at_random(path, draw), strict=True):
            known |= new
        queue = DeadLetters(path)
        assert queue._open.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        states = dict(queue._open.execute("SELECT number, state FROM letters"))
        assert put <= states.keys() and len(states.keys() - put) <= number
        assert all(states[each] == "done" for each in ended)
        assert sum(states[each] == "done" for each in put - ended) <= number
        for letter in queue.waiting()[-3:]:
            assert queue.payload(letter)
        queue.close()
    return len(put)


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path):
    assert survive(tmp_path / FILE, 6) >= 6


@pytest.mark.large
def test_nothing_acknowledged_is_lost_in_three_hundred_kills(tmp_path):
    assert survive(tmp_path / FILE, 300) >= 300
