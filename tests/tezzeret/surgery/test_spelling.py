"""Operations as words, places where they are legal, and what a log says of them."""

from functools import cache

import pytest
from surgery_nets import HOSTS, patient_of

from esper.leyline.config import ConfigError
from esper.tezzeret.surgery import (
    AddSkip,
    InsertLayer,
    Log,
    ModifyLayer,
    RemoveLayer,
    Rewire,
    SurgeryRules,
    surgery,
)
from esper.tezzeret.surgery.history import ALL, history
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tezzeret.surgery.places import candidates
from esper.tezzeret.surgery.spelling import FORMS, read_operation, read_operations, spelled

WORDS = {
    "insert_layer(new, block0.conv)": InsertLayer("new", "block0.conv"),
    "insert_layer(new, 8, none, norm=none)": InsertLayer("new", "8", "none", norm="none"),
    "remove_layer(name=two)": RemoveLayer("two"),
    " modify_layer( conv ,width = 8 ) ": ModifyLayer("conv", width=8),
    "modify_layer(conv, kernel=5, start=zero)": ModifyLayer("conv", kernel=5, start="zero"),
    "add_skip(one, three, zero)": AddSkip("one", "three", "zero"),
    "rewire(two, source=input)": Rewire("two", "input"),
    "remove_fossil(2)": RemoveFossil(2),
}


@cache
def patient(name="mlp"):
    return patient_of(HOSTS[name]())


def test_words_say_operations_and_operations_their_words():
    assert [read_operation(words) for words in WORDS] == list(WORDS.values())
    assert read_operations("; ".join(WORDS)) == list(WORDS.values()) and read_operations(" ") == []
    for op in WORDS.values():
        assert read_operation(spelled(op)) == op
    assert {form for op in WORDS.values() for form in [type(op)]} == set(FORMS.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("modify_layer", "expected name\\(value"),
        ("modify_layer(conv, width=__import__('os'))", "expected name\\(value"),
        ("modify_layr(conv)", "did you mean modify_layer"),
        ("modify_layer(conv, wide=8)", "'wide=8'; expected name, width, kernel, start"),
        ("modify_layer(conv, width=8, width=9)", "'width=9'"),
        ("modify_layer(conv, width=-8)", "width = '-8'; expected a whole number"),
        ("rewire(name=two, one)", "'one'; expected name, source"),
        ("remove_layer()", "no name; expected name"),
        ("remove_layer(one, two)", "'two'; expected name"),
    ],
)
def test_other_words_are_refused_in_one_line(words, said):
    with pytest.raises(ConfigError, match=said) as raised:
        read_operations(words)
    assert "\n" not in str(raised.value)


def test_what_could_be_asked_for_is_every_operation_at_every_place():
    body = patient().body
    asked = list(candidates(body))
    layers = ["one", "two", "three", "head"]
    assert [op.after for op in asked if isinstance(op, InsertLayer)] == layers
    assert [op.name for op in asked if isinstance(op, RemoveLayer)] == layers
    widths = [(op.name, op.width) for op in asked if isinstance(op, ModifyLayer) and op.width]
    assert widths[:4] == [("one", 12), ("one", 3), ("two", 12), ("two", 3)]
    assert len([op for op in asked if isinstance(op, AddSkip)]) == 12
    # each of four layers could read any other or the input, but for what it reads
    assert len([op for op in asked if isinstance(op, Rewire)]) == 4 * 4 - 3
    assert [op.kernel for op in candidates(patient("cnn").body) if getattr(op, "kernel", 0) and hasattr(op, "start")]
    assert len(asked) == len(set(asked))


def test_a_history_counts_and_averages_each_kind():
    body, learned, samples = patient()
    rules, log = SurgeryRules(topology=True, surgeries_per_epoch=9, accuracy_loss=101.0, growth=9.0), Log()
    for op in (
        ModifyLayer("two", width=9),
        ModifyLayer("two", width=5),
        ModifyLayer("tow", width=9),
        RemoveLayer("two"),
    ):
        body, learned, report = surgery(body, learned, op, samples, rules, log)
        log = log.with_report(report)
    found = history(log)
    assert list(found) == ["modify_layer", "remove_layer", ALL]
    row, done = found["modify_layer"], log.reports[:2]
    assert (row.asked, row.done, row.success) == (3, 2, 2 / 3)
    assert row.loss == pytest.approx(
        (done[1].after.loss - done[0].before.loss) / 2
    )  # the second began where the first ended
    assert row.accuracy == pytest.approx((done[1].after.accuracy - done[0].before.accuracy) / 2)
    assert row.parameters == pytest.approx((3 * (6 + 1 + 6) - 4 * (6 + 1 + 6)) / 2)
    assert found["remove_layer"].done == 0 and found["remove_layer"].loss is None
    assert found[ALL].asked == 4 and history(Log()) == {}
