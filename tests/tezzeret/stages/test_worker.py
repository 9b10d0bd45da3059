"""The worker: what it does with a queue, in which order, and what is left when it stops or dies."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.nissa.operations import OperationLog
from esper.nissa.sinks.fan_out import FanOut
from esper.nissa.sinks.protocol import Opened
from esper.nissa.spans import NO_SPANS
from esper.tezzeret.blueprints import canonical, infer, shipped
from esper.tezzeret.blueprints.site_words import pair_of
from esper.tezzeret.stages import CompileJob, CompilerChild, CompileWorker, Confines, ReadyBlueprint, enqueue, fetch
from esper.tezzeret.stages import pipeline as stages
from esper.tezzeret.stages.cost_model import AGEING, predict, predict_job, rank_correlation, urgency
from esper.tezzeret.stages.observer import CompileObserver
from esper.tezzeret.stages.reports import VALIDATION
from esper.urza.store import StoreSettings, Tiers, open_store
from esper.utils.documents import one_line

SIZES = ("lora", "conv_light", "transformer32x2")


def asked(store: Tiers, *names: str, **words: str) -> list[str]:
    return [enqueue(store, CompileJob(canonical(shipped()[name]), name, **words)) for name in names]


def test_what_is_queued_is_published_the_shortest_first(store: Tiers) -> None:
    ids = asked(store, *reversed(SIZES), backend="native")
    broken = enqueue(store, CompileJob(b'{"format": 1}', "broken"))
    worker, ended = CompileWorker(store, "w"), []
    worker.serve(ended.append, drain=True)
    assert [each.request.id for each in ended] == [broken, *reversed(ids)]
    assert worker.counts == {"published": 3, "failed": 1}
    for each in ended[1:]:
        found = store.queue.get(each.request.id)
        assert (found.status.value, found.artefact) == ("characterized", each.id)
        assert isinstance(fetch(store, each.id), ReadyBlueprint)
    refused = store.queue.get(broken)
    assert refused.status.value == "failed" and "parse and validate" in refused.reason
    assert -1 <= worker.correlation() <= 1 and len(worker.measured) == 3


def test_equal_requests_are_found(store: Tiers) -> None:
    asked(store, "lora", backend="native")
    asked(store, "lora", backend="native", site="token:16x32")
    worker = CompileWorker(store, "w")
    worker.serve(drain=True)
    assert worker.counts == {"published": 1, "found": 1}, "a site that is named, and the same one by default"


def test_statuses_on_the_way(store: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """compiling, then validating while the compiled form is looked at, then characterized."""
    (id,), seen, plain = asked(store, "lora", backend="native"), [], stages.build

    def watched(work, log):
        told = log.told

        def look(stage: str) -> None:
            told(stage)
            seen.append((stage, store.queue.get(id).status.value))

        log.told = look
        return plain(work, log)

    monkeypatch.setattr(stages, "build", watched)
    CompileWorker(store, "w").serve(drain=True)
    assert seen[0] == ("lower and compile", "compiling") and (VALIDATION, "validating") in seen
    assert store.queue.get(id).status.value == "characterized"


def test_a_thread_serves_and_stops(store: Tiers) -> None:
    worker = CompileWorker(store, "thread", poll=0.01)
    worker.start()
    (id,) = asked(store, "probe", backend="native")
    deadline = time.monotonic() + 30
    while store.queue.get(id).status.value != "characterized" and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.stop()
    assert store.queue.get(id).status.value == "characterized"
    (other,) = asked(store, "lora", backend="native")
    time.sleep(0.05)
    assert store.queue.get(other).status.value == "proposed", "nobody works any more"


def test_a_lease_is_renewed_and_a_lost_one_is_told(store: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is slow keeps what it has; one that was thought dead writes nothing."""
    asked(store, "lora", backend="native")
    plain = stages.build

    def slowly(work, log):
        time.sleep(0.6)
        assert store.queue.claim("another", lease=60) is None, "it lives"
        return plain(work, log)

    monkeypatch.setattr(stages, "build", slowly)
    worker = CompileWorker(store, "slow", lease=0.3)
    finished = worker.work_once()
    assert finished is not None and finished.outcome == "published"

    def robbed(work, log):
        monkeypatch.setattr(store.queue, "renew", lambda *arguments: False)
        time.sleep(0.15)
        assert store.queue.claim("another", lease=60) is not None
        return plain(work, log)

    monkeypatch.setattr(stages, "build", robbed)
    asked(store, "probe", backend="native")
    finished = CompileWorker(store, "dead", lease=0.1).work_once()
    assert finished is not None and finished.outcome == "lost"
    assert [each.worker for each in store.queue.list() if each.id == finished.request.id] == ["another"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory of others is read from /proc")
def test_asked_to_stop_it_gives_back_what_it_has(store: Tiers) -> None:
    talk = (
        "import json, os, time\nsaid = [json.dumps({'kind': 'ready'}).encode(), b'', b'']\n"
        "message = b''.join(len(part).to_bytes(8, 'big') for part in said) + b''.join(said)\n"
        "os.write(1, len(message).to_bytes(8, 'big') + message)\ntime.sleep(600)"
    )
    (id,) = asked(store, "lora", backend="native")
    with CompilerChild(Confines(), (sys.executable, "-c", talk)) as child:
        worker = CompileWorker(store, "w", child, poll=0.01)
        worker.start()
        deadline = time.monotonic() + 20
        while store.queue.get(id).status.value != "compiling" and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        worker.stop()
    found = store.queue.get(id)
    assert (found.status.value, found.attempts, worker.counts["released"]) == ("proposed", 0, 1)


def test_the_process_ends_in_order(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    with open_store(StoreSettings(folder=folder)) as store:
        (id,) = asked(store, "lora", backend="native")
        command = [sys.executable, "-m", "esper", "worker", "--store", folder, "--poll", "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as process:
            deadline = time.monotonic() + 120
            while store.queue.get(id).status.value != "characterized" and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            out = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 143, out
        assert store.queue.get(id).status.value == "characterized", out
        assert "published 1" in out.splitlines()[-1] and one_line(out.splitlines()[-1]) == out.splitlines()[-1]


def test_predictions_grow_with_costs() -> None:
    document = shipped()["conv_heavy"]
    costs = [infer(document, *pair_of(site)) for site in ("conv:4x4x4", "conv:8x8x8", "conv:16x16x16")]
    seconds = [predict(each, "native") for each in costs]
    assert seconds == sorted(seconds) and len(set(seconds)) == 3
    assert predict(costs[0], "inductor") > predict(costs[2], "native")
    assert predict_job(CompileJob(b"{")) == 0 == predict_job(CompileJob(canonical(document), site="nowhere"))


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4))
def test_nobody_waits_for_ever(predicted: float, waited: float, other: float) -> None:
    """Whoever waited long enough comes before whoever arrives now, however short that is."""
    assert urgency(predicted, predicted / AGEING + 1) < urgency(other, 0)
    assert urgency(predicted, waited) <= urgency(predicted, 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_rank_correlation_by_its_definition(pairs: list[tuple[int, int]]) -> None:
    """Pearson's correlation of the numbers of smaller ones plus half of the equal ones."""
    columns = list(zip(*pairs, strict=True))
    ranks = [[sum(b < a for b in each) + sum(b == a for b in each) / 2 for a in each] for each in columns]
    found = rank_correlation(*columns)
    if any(len(set(each)) == 1 for each in columns):
        assert math.isnan(found)
        return
    means = [sum(each) / len(each) for each in ranks]
    cross = sum((a - means[0]) * (b - means[1]) for a, b in zip(*ranks, strict=True))
    size = math.prod(sum((a - mean) ** 2 for a in each) for each, mean in zip(ranks, means, strict=True)) ** 0.5
    assert math.isclose(found, cross / size, abs_tol=1e-9)


def test_many_failures_and_slow_compilations_are_out_of_the_ordinary(store: Tiers) -> None:
    """Shares and means over the requests that were compiled, told once until they are in order again."""
    worker, ended = CompileWorker(store, "w"), []
    asked(store, "lora", backend="native")
    worker.serve(ended.append, drain=True)
    enqueue(store, CompileJob(b'{"format": 1}', "broken"))
    enqueue(store, CompileJob(b'{"format": 2}', "broken"))
    worker.serve(ended.append, drain=True)
    assert [each.outcome for each in ended] == ["published", "failed", "failed"]
    assert [len(each.anomalies) for each in ended] == [0, 1, 0]
    (found,) = ended[1].anomalies
    assert (found.rule, found.value, found.severity) == ("failed compilations", 0.5, "medium")
    assert found.line_in("request").startswith("anomaly in request 2 (medium): compile_failed = 0.5")


def test_a_mean_of_five_seconds_is_told_and_so_is_the_event() -> None:
    told = []

    class Kept:
        def round(self, row):
            raise AssertionError

        def event(self, event):
            told.append(event.fields)

        def close(self):
            pass

    operations = OperationLog(FanOut({"kept": lambda: Opened(Kept(), "")}), NO_SPANS)
    observer = CompileObserver(operations)
    found = [observer.ended("published", seconds, 1.0, "") for seconds in (4.0, 5.5, 6.0, 9.0)]
    operations.close()
    assert [[each.rule for each in some] for some in found] == [[], [], ["slow compilations"], []]
    assert found[2][0].value == pytest.approx((4 + 5.5 + 6) / 3)
    assert [fields.get("anomalies") for fields in told] == [None, None, 1, None]
    assert observer.ended("released", 99.0, 1.0, "") == observer.ended("lost", 99.0, 1.0, "") == []
