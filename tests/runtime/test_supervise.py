"""Supervised runs: killed twice they end in the bits of a run that was not; signals, limits and last statuses."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import esper.__main__
from esper.runtime import supervise as module
from esper.runtime.interrupt import Stopped
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.supervise import BACK_OFF, Supervisor, supervise
from esper.utils import failpoints
from esper.utils.resilience.world import World
from esper.utils.settings import SettingsError

SIZES = {"num-envs": 2, "rounds": 5, "horizon": 2, "features": 8, "lstm": 8, "head": 8, "epochs": 1, "minibatches": 1}
WORDS = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
WORDS += ["--task", "synthetic", "--backend", "eager", "--engine", "steps_per_epoch=1", "--eval-envs", "0"]
WORDS += ["--save-every", "0.001", "--progress", "off"]


class Scripted:
    """Processes that do one thing after another, at once: a status, or something that gives one."""

    def __init__(self, *ends):
        self.ends, self.started, self.heard, self.slept = list(ends), [], [], []
        self.world = World(time.monotonic, self.slept.append, lambda: 0.5)

    def start(self, words):
        self.started.append(words)
        return self

    def wait(self):
        end = self.ends.pop(0)
        return end() if callable(end) else end

    def send_signal(self, number):
        self.heard.append(number)


def supervised(script, *words, restarts=3):
    out = io.StringIO()
    status = Supervisor(words, restarts, script.start, script.world).run(out)
    return status, out.getvalue().splitlines()


@pytest.mark.parametrize(("end", "status"), [(0, 0), (2, 2), (130, 130), (143, 143), (-15, 143), (-2, 130)])
def test_what_ends_by_itself_or_was_asked_to_is_not_started_again(tmp_path, end, status):
    script = Scripted(end)
    assert supervised(script, "--out", str(tmp_path / "a")) == (status, [])
    assert script.started == [["train", "--out", str(tmp_path / "a"), "--resume", "auto"]] and not script.slept


def test_restarts_in_vain_end_with_the_last_status(tmp_path):
    script = Scripted(-9, 1, -11, -6, 0)
    status, lines = supervised(script, "--out", str(tmp_path / "a"))
    assert status == 128 + 6 and len(script.started) == 4
    assert script.slept == [min(BACK_OFF.cap, BACK_OFF.base * 2**k) / 2 for k in range(3)]
    assert lines == [
        "esper supervise: train was killed by SIGKILL; restart 1 of 3 in 0.2 s",
        "esper supervise: train ended with status 1; restart 2 of 3 in 0.5 s",
        "esper supervise: train was killed by SIGSEGV; restart 3 of 3 in 1.0 s",
        "esper supervise: train was killed by SIGABRT; no restart is left of 3 without a new checkpoint",
    ]


def test_a_new_checkpoint_gives_all_restarts_back(tmp_path):
    def gets_on(number):
        def end():
            (tmp_path / "a" / "checkpoints" / f"round-{number:06d}").mkdir(parents=True)
            return -9

        return end

    script = Scripted(gets_on(0), gets_on(1), -9, gets_on(2), -9, 0)
    status, lines = supervised(script, "--out", str(tmp_path / "a"), restarts=2)
    assert status == 0 and [line.split("restart ")[1][0] for line in lines] == ["1", "1", "2", "1", "2"]


def test_a_run_that_goes_on_from_another_goes_on_from_its_own_once_it_has_one(tmp_path):
    other = tmp_path / "other" / "checkpoints" / "round-000003"
    other.mkdir(parents=True)

    def gets_on():
        (tmp_path / "a" / "checkpoints" / "round-000003").mkdir(parents=True)
        return -9

    words = ["--resume", str(tmp_path / "other"), "--out", str(tmp_path / "a")]
    script = Scripted(-9, gets_on, 0)
    supervised(script, *words)
    again = ["train", *words, "--out", str(tmp_path / "a"), "--resume", "auto"]
    assert script.started == [["train", *words], ["train", *words], again]


def test_signals_are_passed_on_and_end_it(tmp_path):
    def asked():
        os.kill(os.getpid(), signal.SIGTERM)
        return 1

    script = Scripted(-9, asked, 0)
    before = signal.getsignal(signal.SIGTERM)
    status, lines = supervised(script, "--out", str(tmp_path / "a"))
    assert (status, script.heard, len(lines)) == (1, [signal.SIGTERM], 1)
    script = Scripted(-9)
    script.world = script.world._replace(sleep=lambda seconds: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match="SIGINT"):
        supervised(script, "--out", str(tmp_path / "a"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_real_process_hears_the_signal_once(tmp_path, monkeypatch):
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print('ready', flush=True); signal.pause()"
    made = []

    def start(words):
        made.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0))
        return made[0]

    monkeypatch.setattr(module, "_start", start)
    main = threading.main_thread().ident

    def tell():
        while not made or not made[0].stdout.readline():
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    assert esper.__main__.main(["supervise", "--", "train", "--out", str(tmp_path / "a")]) == 143
    teller.join()
    made[0].stdout.close()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--", "evaluate"],
        ["--restarts", "3", "train"],
        ["--restarts", "-1", "--", "train"],
        ["--", "train", "--rounds", "x"],
    ],
)
def test_other_words_are_refused(words):
    with pytest.raises(SettingsError, match="expected"):
        supervise(words, io.StringIO())


class Forked:
    """``esper`` in a copy of this process, killed as it begins its fourth environment step."""

    def __init__(self, words):
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                with failpoints.awaiting(failpoints.Fault("step", "kill", 4)):
                    status = esper.__main__.main(words)
            finally:
                os._exit(status)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number):
        os.kill(self.pid, number)


def test_a_run_that_is_killed_ends_in_the_bits_of_one_that_is_not(tmp_path):
    assert esper.__main__.main(["train", *WORDS, "--out", str(tmp_path / "whole")]) == 0
    out, slept = io.StringIO(), []
    words = [*WORDS, "--out", str(tmp_path / "killed")]
    world = World(time.monotonic, slept.append, lambda: 0.0)
    assert Supervisor(words, 1, Forked, world).run(out) == 0
    killed = out.getvalue().splitlines()
    assert 2 <= len(killed) <= 4 and all("was killed by SIGKILL; restart 1 of 1 in 0.0 s" in line for line in killed)
    actual, expected = load_run(tmp_path / "killed"), load_run(tmp_path / "whole")
    assert actual.table["done"] == 5 and actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(actual.tensors[name], tensor), name
    rounds = [json.loads(line)["round"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4, 5]
