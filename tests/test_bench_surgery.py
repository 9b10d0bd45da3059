"""bench.surgery: a case plays, and its operations are done."""


def test_a_case_plays_and_its_operations_are_done(bench_module):
    bench = bench_module("surgery")
    case = next(case for case in bench.CASES if case.name == "widths doubled, zero")
    found, log, params = bench.play(case, 2, bench.EVERY + bench.CALM + 1)
    assert found.accuracy.shape == (2,) and log.counters["modify_layer"] == log.counters["asked"] == 1
    assert params == log.reports[0].params[1] == 246
