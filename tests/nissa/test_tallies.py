"""Metrics: counters never fall, each round counts once, and what is scraped is what was counted."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.nissa.event_record import KINDS, Event, event
from esper.nissa.metric_table import FOREIGN, METRICS_BY_NAME, MOST_MEASURES, TABLE, MetricKind
from esper.nissa.sinks.prometheus import PrometheusSink, tallies_so_far
from esper.nissa.tallies import SECONDS, Change, RunFacts, Tallies, after_round, changed, from_text, of_event, to_text
from esper.utils.compilations import NAMES

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client")
FACTS = RunFacts(("digits",), 800, 32, 24)
SPAN = st.floats(0, 2000)


def row(number, seconds=1.0, **more):
    table = {"round": number, "return": 1.5, "val_accuracy": 50.0, "seconds": seconds, "collect_seconds": seconds / 2}
    return table | {"refused": 0.25, "rolled_back": 0.0, "share_wait": 0.75, "share_cull": 0.25} | more


def scraped(sink):
    """Samples as the client's own parser reads them from the text of a scrape."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=5) as answer:
        families = list(parser.text_string_to_metric_families(answer.read().decode()))
    return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}, families


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), SPAN), max_size=30))
def test_a_round_counts_once_however_often_it_is_played(plays):
    """Against a plain account: of every number that is new, the first time."""
    tallies, seen, took, last = Tallies(), [], [], 0
    for number, seconds in plays:
        before = tallies
        tallies = after_round(tallies, row(number, seconds), FACTS)
        if number > last:
            last = number
            seen.append(number)
            took.append(seconds)
        for series, value in before.values.items():
            if METRICS_BY_NAME[series[0]].kind is MetricKind.COUNTER:
                assert tallies.values[series] >= value
    assert tallies.round == last
    if plays:
        assert tallies.values["esper_rounds", ()] == len(seen)
        assert tallies.values["esper_decisions", ()] == 800 * len(seen)
        assert tallies.values["esper_refused_actions", ()] == 8 * len(seen)
        assert tallies.values["esper_actions", ("cull",)] == 200 * len(seen)
        spread = tallies.spreads["esper_round_seconds", ()]
        assert spread.total == pytest.approx(math.fsum(took))
        sums = [sum(spread.counts[: place + 1]) for place in range(len(SECONDS))]
        assert sums == [sum(value <= bound for value in took) for bound in SECONDS]
        assert sum(spread.counts) == len(took)
    assert from_text(to_text(tallies)) == tallies


def test_what_goes_on_takes_up_where_it_was_seen_last(tmp_path):
    """The file, where it is ahead of the rows: rounds that a killed run repeats were counted. Else the rows."""
    rows = [row(number) for number in (1, 2, 3)]
    folded = tallies_so_far(None, rows, FACTS)
    ahead = after_round(after_round(folded, row(4), FACTS), row(5), FACTS)
    (tmp_path / "state").write_text(to_text(ahead))
    assert tallies_so_far(tmp_path / "state", rows, FACTS) == ahead
    (tmp_path / "state").write_text(to_text(tallies_so_far(None, rows[:1], FACTS)))
    assert tallies_so_far(tmp_path / "state", rows, FACTS) == folded
    for damage in ("", "[]", "{}", '{"round": 9}', '{"round": 9, "values": [1], "spreads": []}', "[" * 100_000, "\0"):
        (tmp_path / "state").write_text(damage)
        assert tallies_so_far(tmp_path / "state", rows, FACTS) == folded
    (tmp_path / "state").write_text(to_text(ahead).replace("esper_rounds", "esper_gone"))
    assert ("esper_gone", ()) not in tallies_so_far(tmp_path / "state", rows, FACTS).values


def test_a_scrape_has_what_was_counted_under_the_names_of_the_table(tmp_path):
    """Read by the Prometheus client's parser."""
    sink = PrometheusSink(
        ("127.0.0.1", 0), Tallies(), FACTS, tmp_path / "state", lambda: [Change("esper_sink_up", 1, ("a",))]
    )
    try:
        for number in (1, 2, 2, 3):
            compiled = {name: float(place) for place, name in enumerate(NAMES)}
            sink.round(row(number, 2.0, kl=0.5, curvature=float(number), text="a", **compiled))
        sink.event(event("stage", False, stage="lower", took=0.02))
        sink.event(event("compile", False, outcome="failed", took=0.5))
        found, families = scraped(sink)
    finally:
        sink.close()
    assert found["esper_rounds_total",] == 3 and found["esper_decisions_total",] == 2400
    assert found["esper_actions_total", "wait"] == 1800 and found["esper_refused_actions_total",] == 24
    assert found["esper_round_seconds_bucket", "1.0"] == 0 and found["esper_round_seconds_bucket", "3.0"] == 3
    assert found["esper_round_seconds_bucket", "+Inf"] == found["esper_round_seconds_count",] == 3
    assert found["esper_round_seconds_sum",] == 6 and found["esper_phase_seconds_sum", "collect"] == 3
    assert found["esper_return", "digits"] == 1.5 and found["esper_measure", "curvature"] == 3
    for place, (what, of) in enumerate(NAMES.values()):
        labels = sorted((of, *({"cache_hits": ["hit"], "cache_misses": ["miss"]}.get(what, []))))
        metric = "esper_cache_lookups" if what.startswith("cache") else f"esper_{what}"
        assert found[f"{metric}_total", *labels] == 3 * place
    assert sum(name[0].startswith(("esper_compilation", "esper_cache")) for name in found) == len(NAMES)
    assert found["esper_stage_failures_total", "lower"] == 1 and found["esper_compile_requests_total", "failed"] == 1
    assert found["esper_events_total", "stage.failed"] == 1 and found["esper_sink_up", "a"] == 1
    names = {metric.name: metric for metric in TABLE}
    for family in families:
        if not family.name.startswith(("process_", "python_")):
            assert family.type == names[family.name].kind.value and family.documentation == names[family.name].help
    assert set(FOREIGN) <= {family.name for family in families} and not any("text" in name for name in found)
    with pytest.raises(OSError):
        scraped(sink)
    again = PrometheusSink(("127.0.0.1", sink.port), Tallies(), FACTS, None)  # the port is free again
    again.close()


def test_labels_are_bounded_and_what_is_not_finite_counts_nothing():
    tallies = Tallies()
    for number in range(MOST_MEASURES + 50):
        tallies = changed(tallies, [Change("esper_measure", 1.0, (str(number),))])
    assert len(tallies.values) == MOST_MEASURES
    for value in (math.nan, math.inf, -1.0):
        tallies = changed(tallies, [Change("esper_decisions", value), Change("esper_round_seconds", value)])
    assert ("esper_decisions", ()) not in tallies.values and not tallies.spreads


def test_every_kind_of_event_is_counted_and_tasks_of_a_run_are_apart():
    tallies = changed(
        Tallies(),
        [change for kind in KINDS for change in of_event(Event(kind, 1, 0.0, {}))],
    )
    assert {labels[0] for name, labels in tallies.values if name == "esper_events"} == set(KINDS)
    both = FACTS._replace(tasks=("a", "b"))
    tallies = after_round(Tallies(), row(1, **{"return/a": 1.0, "return/b": 2.0, "return/c": 3.0}), both)
    returns = {labels: value for (name, labels), value in tallies.values.items() if name == "esper_return"}
    assert returns == {("a",): 1.0, ("b",): 2.0}


def test_events_cost_no_file_each_and_none_is_lost(tmp_path):
    pytest.importorskip("prometheus_client")
    from esper.nissa.event_record import event
    from esper.nissa.sinks.prometheus import PrometheusSink

    state = tmp_path / "prometheus.json"
    sink = PrometheusSink(("127.0.0.1", 0), Tallies(), RunFacts(("t",), 1, 1, 1), state)
    for _ in range(300):
        sink.event(event("run", True))
    assert not state.exists()
    list(sink.collect())
    assert from_text(state.read_text()) == sink.tallies  # kept before it is seen
    sink.event(event("run", True))
    sink.close()
    assert from_text(state.read_text()).values["esper_events", ("run.done",)] == 301
