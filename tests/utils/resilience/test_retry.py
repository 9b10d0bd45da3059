"""Back-off: delays in bounds, deadlines kept, and nothing is tried again that must not be."""

import math
import random

import pytest
from resilience_worlds import Simulated

from esper.utils.resilience.retry import RetryPolicy, delay, retry
from esper.utils.resilience.world import REAL


def schedules(count):
    """Calls that always fail for a moment, each under another policy: what was slept, and when attempts began."""
    draw = random.Random(0)
    for number in range(count):
        simulated = Simulated(number)
        base = 10 ** draw.uniform(-3, 1)
        cap, deadline = base * 2 ** draw.uniform(0, 8), 10 ** draw.uniform(-2, 2)
        policy = RetryPolicy(draw.randint(1, 8), base, cap, deadline)
        costs, begun = draw.uniform(0, 0.2) * deadline, []

        def fail(simulated=simulated, costs=costs, begun=begun):
            begun.append(simulated.time)
            simulated.time += costs
            raise TimeoutError

        with pytest.raises(TimeoutError):
            retry(fail, policy, simulated.world)
        yield policy, simulated.slept, begun


def check(count):
    stopped_early = whole = 0
    for policy, slept, begun in schedules(count):
        bounds = [min(policy.cap, policy.base * math.ldexp(1, k)) for k in range(len(slept))]
        assert all(0 <= seconds < bound for seconds, bound in zip(slept, bounds, strict=True))
        assert len(begun) == len(slept) + 1 <= policy.attempts
        assert begun[-1] - begun[0] <= policy.deadline * (1 + 1e-9) + 1e-9
        whole += len(begun) == policy.attempts
        stopped_early += len(begun) < policy.attempts
    assert min(whole, stopped_early) > count / 20


def test_schedules_keep_their_bounds():
    check(4_000)


@pytest.mark.large
def test_a_hundred_thousand_schedules_keep_their_bounds():
    check(100_000)


def test_jitter_is_full():
    """Uniform from 0 to the bound: mean 1/2 and variance 1/12 of it, within six standard errors."""
    chance, policy, count = random.Random(1).random, RetryPolicy(base=0.5, cap=3.0), 20_000
    for number, bound in enumerate((0.5, 1.0, 2.0, 3.0, 3.0)):
        shares = [delay(policy, number, chance) / bound for _ in range(count)]
        mean = sum(shares) / count
        assert abs(mean - 1 / 2) < 6 * math.sqrt(1 / 12 / count)
        assert abs(sum((share - mean) ** 2 for share in shares) / count - 1 / 12) < 6 * math.sqrt(1 / 180 / count)
    assert delay(policy, 10**9, lambda: 0.5) == 1.5


def failing(*errors, result="done"):
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return result

    return call, left


def test_a_call_that_recovers_gives_its_result():
    call, left = failing(ConnectionResetError(), TimeoutError())
    simulated = Simulated()
    assert retry(call, RetryPolicy(3), simulated.world) == "done"
    assert not left and len(simulated.slept) == 2


@pytest.mark.parametrize("error", [ValueError("x: expected y"), KeyError("a"), RuntimeError("a bug"), OSError(28, "x")])
def test_what_no_second_attempt_mends_is_tried_once(error):
    call, left = failing(error, TimeoutError())
    simulated = Simulated()
    with pytest.raises(type(error)) as raised:
        retry(call, world=simulated.world)
    assert raised.value is error and len(left) == 1 and not simulated.slept


def test_what_may_not_be_repeated_is_tried_once():
    call, left = failing(TimeoutError(), TimeoutError())
    with pytest.raises(TimeoutError):
        retry(call, world=Simulated().world, idempotent=False)
    assert len(left) == 1


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base": 0.0}, {"base": 2.0, "cap": 1.0}, {"deadline": -1.0}])
def test_policies_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected attempts >= 1"):
        RetryPolicy(**wrong)


def test_chance_of_the_real_world():
    drawn = [REAL.chance() for _ in range(2_000)]
    assert 0 <= min(drawn) < 0.01 and 0.99 < max(drawn) < 1 and len(set(drawn)) == len(drawn)
