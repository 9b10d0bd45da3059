"""The breaker against a plain rendering of its rules, under drawn calls, times and answers; what it promises."""

import math
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from resilience_worlds import Simulated

from esper.utils.resilience.breaker import Breaker, BreakerOpen, Circuit, Limits, Phase, admit, report, threshold
from esper.utils.resilience.services import SERVICES, Service


class Plain:
    """The rules in plain Python: it keeps the whole history of outcomes, and computes the error rate from all of it."""

    def __init__(self, failures, recovery, successes, timeout, weight):
        self.failures, self.recovery, self.successes, self.timeout = failures, recovery, successes, timeout
        self.weight, self.name, self.history, self.opened = weight, "closed", [], None
        self.closed_calls, self.probe, self.probe_since, self.good = set(), None, None, 0

    def rate(self):
        """Weighted sum over the outcomes before the failures that are last, while it is closed; else over all."""
        seen = list(self.history)
        while self.name == "closed" and seen and seen[-1]:
            seen.pop()
        return sum(self.weight * (1 - self.weight) ** age for age, failed in enumerate(reversed(seen)) if failed)

    def in_a_row(self):
        count = 0
        while count < len(self.history) and self.history[-1 - count]:
            count += 1
        return min(count, self.since_closed)

    since_closed = 0

    def trip(self, now):
        self.name, self.opened, self.closed_calls, self.probe = "open", now, set(), None

    def ask(self, call, now):
        if self.name == "half-open" and self.probe is not None and now - self.probe_since >= self.timeout:
            self.history.append(True)
            self.trip(now)
        if self.name == "open" and now - self.opened >= self.recovery:
            self.name, self.good = "half-open", 0
        if self.name == "closed":
            self.closed_calls.add(call)
            return True
        if self.name == "half-open" and self.probe is None:
            self.probe, self.probe_since = call, now
            return True
        return False

    def tell(self, call, failed, now):
        if self.name == "closed" and call in self.closed_calls:
            self.closed_calls.discard(call)
            if failed is None:
                return
            before = self.rate()
            self.history.append(failed)
            self.since_closed += 1
            if failed and self.in_a_row() >= max(1, math.ceil(self.failures * (1 - before))):
                self.trip(now)
        elif self.name == "half-open" and call == self.probe:
            self.probe = None
            if failed is None:
                return
            self.history.append(failed)
            if failed:
                self.trip(now)
            else:
                self.good += 1
                if self.good == self.successes:
                    self.name, self.closed_calls, self.since_closed = "closed", set(), 0


class Calls(RuleBasedStateMachine):
    """Calls begin, end well, badly, without a word on the service, or never; time passes."""

    @initialize(
        failures=st.integers(1, 6),
        recovery=st.integers(0, 8),
        successes=st.integers(1, 4),
        timeout=st.integers(1, 6),
        weight=st.sampled_from([0.125, 0.25, 0.5]),
    )
    def begin(self, failures, recovery, successes, timeout, weight):
        self.limits = Limits(failures, recovery, successes, timeout, weight)
        self.plain, self.circuit = Plain(*self.limits), Circuit()
        self.now, self.out, self.number = 0.0, {}, 0

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def ask(self):
        self.number += 1
        before = self.circuit
        self.circuit, admitted = admit(self.limits, self.circuit, self.now)
        assert admitted == self.plain.ask(self.number, self.now)
        if before.phase is Phase.OPEN and self.now - before.since < self.limits.recovery:
            assert not admitted
        if admitted:
            self.out[self.number] = self.circuit.era, self.circuit.phase
        else:
            assert self.circuit.phase is Phase.OPEN or self.circuit.probing

    @rule(pick=st.integers(0, 10**6), failed=st.sampled_from([True, True, False, False, None]))
    def answer(self, pick, failed):
        if self.out:
            call = sorted(self.out)[pick % len(self.out)]
            era, _ = self.out.pop(call)
            self.circuit = report(self.limits, self.circuit, era, failed, self.now)
            self.plain.tell(call, failed, self.now)

    @rule()
    def recover(self):
        """Whatever happened: a service that is sound again is taken back, after waits that are bounded."""
        self.out.clear()
        self.now += self.limits.timeout
        for _ in range(self.limits.successes + 2):
            self.ask()
            if self.number not in self.out:
                self.now += self.limits.recovery
                self.ask()
            era, _ = self.out.pop(self.number)
            self.circuit = report(self.limits, self.circuit, era, False, self.now)
            self.plain.tell(self.number, False, self.now)
        assert self.circuit.phase is Phase.CLOSED

    @invariant()
    def agree(self):
        if not hasattr(self, "plain"):
            return
        assert self.circuit.phase.value == self.plain.name
        assert self.circuit.probing == (self.plain.probe is not None)
        assert self.circuit.rate == pytest.approx(self.plain.rate(), abs=1e-12)
        probes = [
            call for call, (era, phase) in self.out.items() if phase is Phase.HALF_OPEN and era == self.circuit.era
        ]
        assert len(probes) <= 1


def run(sequences):
    how = settings(max_examples=sequences, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Calls, settings=how)


def test_drawn_calls_agree_with_the_plain_rules():
    run(30)


@pytest.mark.large
def test_ten_thousand_drawn_sequences_agree_with_the_plain_rules():
    run(10_000)


@pytest.mark.parametrize(
    ("service", "failures", "recovery", "successes"), [("cache", 5, 30, 3), ("compiler", 3, 45, 2), ("any", 5, 60, 3)]
)
def test_a_service_is_left_alone_and_taken_back(service, failures, recovery, successes):
    """By the numbers of the table, through calls alone."""
    simulated, made = Simulated(), []
    breaker = Service(service, simulated.world).breaker

    def call(error=None):
        made.append(error)
        if error is not None:
            raise error

    for _ in range(failures):
        assert breaker.circuit.phase is Phase.CLOSED
        with pytest.raises(OSError):
            breaker.call(lambda: call(OSError(5, "broken")))
    with pytest.raises(
        BreakerOpen, match=rf"{service}: left alone after {failures} failures in a row, for .* {recovery} s"
    ):
        breaker.call(call)
    simulated.time += recovery - 0.5
    with pytest.raises(BreakerOpen):
        breaker.call(call)
    assert len(made) == failures
    simulated.time += 0.5
    for _ in range(successes):
        assert breaker.circuit.phase is not Phase.CLOSED
        breaker.call(call)
    assert breaker.circuit.phase is Phase.CLOSED
    assert Service("another", simulated.world).breaker.limits == Limits(5, 60, 3, 30) == SERVICES["files"].limits


def test_the_threshold_falls_as_errors_grow():
    limits = Limits(failures=5, weight=0.5)
    assert [threshold(limits, rate) for rate in (0.0, 0.19, 0.2, 0.5, 0.61, 1.0)] == [5, 5, 4, 3, 2, 1]
    circuit = Circuit()
    for failed in (True, False) * 8:  # r tends to 1/3 of every other call: w = 1/2 gives 1/3 after a success
        circuit = report(limits, circuit, circuit.era, failed, 0.0)
    assert circuit.rate == pytest.approx(1 / 3, abs=1e-4) and threshold(limits, circuit.rate) == 4


def test_a_slow_call_gives_its_result_and_counts_as_failed():
    simulated = Simulated()
    breaker = Breaker("slow", Limits(failures=1, timeout=2.0), simulated.world)
    assert breaker.call(lambda: (simulated.sleep(2.5), "late")[1]) == "late"
    assert breaker.circuit.phase is Phase.OPEN


def test_wrong_calls_and_interrupts_say_nothing_of_the_service():
    breaker = Breaker("any", Limits(failures=1), Simulated().world)
    for error in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            breaker.call(lambda error=error: (_ for _ in ()).throw(error))
    assert breaker.circuit == Circuit()


def test_of_many_threads_one_probes():
    simulated, entered, leave = Simulated(), [], threading.Event()
    breaker = Breaker("any", Limits(failures=1, recovery=1.0), simulated.world)
    with pytest.raises(OSError):
        breaker.call(lambda: (_ for _ in ()).throw(OSError(5, "broken")))
    simulated.time += 1.0
    refused = []

    def probe():
        try:
            breaker.call(lambda: (entered.append(1), leave.wait(10)))
        except BreakerOpen as error:
            refused.append(str(error))

    threads = [threading.Thread(target=probe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.05)
    leave.set()
    for thread in threads:
        thread.join()
    assert len(entered) == 1 and refused == ["any: left alone while one call tries it"] * 7


def test_an_open_breaker_ends_the_attempts():
    simulated, made = Simulated(), []
    service = Service("compiler", simulated.world)

    def call():
        made.append(1)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        service.call(call)
    assert len(made) == 3 and service.breaker.circuit.phase is Phase.OPEN
    with pytest.raises(BreakerOpen):
        service.call(call)
    assert len(made) == 3 and len(simulated.slept) == 2
