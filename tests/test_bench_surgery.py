"""bench.surgery: a case plays, its operations are done, and training with them ends where it must."""

import pytest
import torch


def test_a_case_plays_and_its_operations_are_done(bench_module):
    bench = bench_module("surgery")
    case = next(case for case in bench.CASES if case.name == "widths doubled, zero")
    found, log, params = bench.play(case, 2, bench.EVERY + bench.CALM + 1)
    assert found.accuracy.shape == (2,) and log.counters["modify_layer"] == log.counters["asked"] == 1
    assert params == log.reports[0].params[1] == 246


@pytest.mark.large
def test_every_case_ends_within_a_point_where_nothing_is_to_be_gained_and_above_on_a_starved_host(bench_module):
    bench, without = bench_module("surgery"), torch.zeros(16)
    for case in bench.CASES:
        found, log, _ = bench.play(case, 16, 30)
        without = found.accuracy if case.plan is None else without
        gained = float((found.accuracy - without).mean())
        print(  # noqa: T201
            f"{case.host} channels, rate {case.rate:g}, {case.name}: {gained:+.2f} points, {log.counters['done']} done"
        )
        assert log.counters["refused"] == 0
        if case.plan is not None and case.host == 2:
            assert gained > 10.0
        elif not case.name.endswith("without a norm"):
            assert abs(gained) < 1.0
