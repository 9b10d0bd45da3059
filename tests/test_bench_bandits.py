"""The studies of selectors and of the rule of thumb: figures by hand, what is kept, who wins, and what is written."""

import math
from types import SimpleNamespace

import pytest
import torch

import esper
from esper.leyline.actions import Action, Blend, Op
from esper.runtime.evaluate import EvaluateSettings
from esper.runtime.policies import heuristic_of
from esper.utils.settings import read_file

NUMBERS = {"test_accuracy": [60.0, 80.0, 70.0], "utility": [59.0, 77.0, 70.0], "germinated": [1.0, 4.0, 0.0]}


@pytest.fixture
def book(bench_module, tmp_path):
    bandits, book = bench_module("bandits"), bench_module("book")

    def played(**columns):
        """A page of three environments; what is not given, nobody measured."""
        rest = dict.fromkeys(book.COLUMNS, [math.nan] * 3) | columns
        return lambda: book.Page("p", **{name: torch.tensor(values) for name, values in rest.items()}, facts={})

    return bandits, played, lambda setup: book.Book(tmp_path / "book.json", setup)


def test_gain_per_adaptation_is_a_ratio_of_sums(book):
    """Gains 10, 20 and 0 over 1, 4 and 0 seeds: 30 / 5; against a rival of 60 / 10 the same, so 0 and 0 %."""
    bandits, played, open_book = book
    pages = open_book({"envs": 3})
    mine = pages.page("mine", played(**NUMBERS))
    wait = pages.page("wait", played(**NUMBERS | {"test_accuracy": [50.0, 60.0, 70.0], "germinated": [0.0] * 3}))
    twice = {"test_accuracy": [70.0, 100.0, 70.0], "germinated": [2.0, 8.0, 0.0]}
    rival = pages.page("rival", played(**NUMBERS | twice))
    found = bandits.row(mine, wait, {"rival": rival})
    assert found["effectiveness"]["mean"] == 6.0 and found["adaptations"] == pytest.approx(5 / 3)
    assert found["effectiveness"]["low"] == 0.0, "three environments alike that grew nothing"
    assert found["effectiveness"]["high"] == 10.0, "or the first alone"
    for end in ("mean", "low", "high"):
        assert found["minus rival"][end] == pytest.approx(0.0)
    assert found["over rival"]["mean"] == pytest.approx(0.0)


def test_what_was_played_is_not_played_again(book):
    _, played, open_book = book
    first = open_book({"envs": 3}).page("mine", played(**NUMBERS))
    again = open_book({"envs": 3}).page("mine", lambda: pytest.fail("played again"))
    assert again.policy == "p" and again.utility.tolist() == NUMBERS["utility"]
    for a, b in zip(first[1:-1], again[1:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    other = NUMBERS | {"utility": [1.0, 2.0, 3.0]}
    assert open_book({"envs": 4}).page("mine", played(**other)).utility.tolist() == [1.0, 2.0, 3.0]


def test_candidates_are_drawn_from_their_ranges(bench_module):
    tune, kinds = bench_module("tune_rule"), ("a", "b", "c")
    drawn = [tune.draw(number, kinds) for number in range(200)]
    assert drawn[0] == {} and drawn[1:] == [tune.draw(number, kinds) for number in range(1, 200)]
    for name, values in tune.RANGES.items():
        assert {each[name] for each in drawn[1:]} == set(values)
    assert len({each["rotation"] for each in drawn[1:]}) == 15, "every ordered choice of some of three"


def test_the_search_keeps_the_better_half_and_writes_what_reads_back(bench_module, monkeypatch, tmp_path):
    """Twelve candidates whose scores are known but for noise of the seeds: the best on average wins."""
    tune = bench_module("tune_rule")
    worth = {number: 10.0 * number % 37 for number in range(12)}
    monkeypatch.setattr(tune, "score", lambda scene, outcome: outcome)
    rounds = tune.search(None, range(12), lambda scene, candidate, seed: worth[candidate] + seed % 3)
    assert [len(each["scores"]) for each in rounds] == [12, 6, 3, 2]
    assert [tune.plays(number) for number in (1, 2, 3, 12, 36)] == [1, 2, 5, 23, 73]
    assert [each["seed"] for each in rounds] == [0, 2, 4, 6]
    ranked = sorted(worth, key=lambda number: -worth[number])
    assert [int(number) for number in rounds[-1]["scores"]] == ranked[:2]
    monkeypatch.undo()
    winner = tune.draw(3, ("norm", "conv_light"))
    path = tmp_path / "rule.toml"
    path.write_text(tune.toml(winner), encoding="utf-8")
    blends = (Blend.SIGMOID,)
    assert heuristic_of(read_file(EvaluateSettings, path)["heuristic"], blends) == heuristic_of(winner, blends)


def test_the_first_seed_of_an_episode_counts(bench_module):
    """Two of three environments plant; one begins with the first arm, one with the second, whatever follows."""
    bandits, codec = bench_module("bandits"), esper.make("synthetic", 1, backend="eager").codec
    plants = [index for index, action in enumerate(codec.actions) if action.op is Op.GERMINATE]
    one, other = (codec.actions[index] for index in (plants[0], plants[-1]))
    nothing = Action(Op.WAIT)
    played = [[nothing, other, nothing], [one, one, nothing], [other, nothing, nothing]]
    op, slot, kind = (
        torch.tensor([[int(getattr(action, name)) for action in row] for row in played], dtype=torch.int16)
        for name in ("op", "slot", "blueprint")
    )
    arms = torch.tensor([plants[0], plants[-1]])
    found = bandits.first_arms(codec, arms, SimpleNamespace(op=op, slot=slot, kind=kind))
    assert found == [0.5, 0.5]
    assert bandits.first_arms(codec, arms, SimpleNamespace(op=op[:1], slot=slot[:1], kind=kind[:1])) == [0.0, 1.0]
