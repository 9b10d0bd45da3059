"""The governor: judgements against a model in plain Python, containment and recovery."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.leyline.actions import Action, Op
from esper.leyline.codes import Verdict
from esper.leyline.config import SampleOrder
from esper.leyline.hypers import build_hypers
from esper.leyline.stages import FAILURE, LIVE, Stage
from esper.leyline.state import Governor
from esper.tolaria.governor import _remember, judge

GUESS = math.log(10)
HYPERS = build_hypers({}, 1, torch.float64, torch.device("cpu"))


class GovernorModel:
    """The rules of ``governor``, one environment, plain floats."""

    def __init__(self):
        self.window, self.spikes = [], 0

    def judge(self, loss):
        verdict = Verdict.CALM
        if not math.isfinite(loss):
            verdict = Verdict.NONFINITE
        elif len(self.window) >= 10:
            mean, sigma = statistics.fmean(self.window), statistics.pstdev(self.window)
            if mean < 0.6 * GUESS and abs(loss - GUESS) < 0.065 * GUESS:
                verdict = Verdict.RANDOM_GUESS
            elif loss > 12 and loss > mean + 6 * sigma and loss > 3 * mean:
                verdict = Verdict.SPIKE if self.spikes + 1 >= 3 else Verdict.WATCHED
        self.spikes = self.spikes + 1 if verdict == Verdict.WATCHED else 0
        if verdict == Verdict.CALM:
            self.window = [*self.window, loss][-20:]
        return verdict


losses = st.one_of(
    st.floats(0.01, 1.5), st.floats(1.5, 14), st.floats(12, 200), st.sampled_from([GUESS, math.nan, math.inf])
)


@given(st.lists(st.floats(0.2, 1.2), min_size=0, max_size=25), st.lists(losses, min_size=1, max_size=12))
@settings(max_examples=150)
def test_judgement_equals_the_model(calm, wild):
    model = GovernorModel()
    zero = torch.zeros(1, dtype=torch.int64)
    governor = Governor(
        losses=torch.zeros(1, 20, dtype=torch.float64), filled=zero, spikes=zero, rollbacks=zero, batch_size=[1]
    )
    for loss in [*calm, *wild]:
        tensor = torch.tensor([loss], dtype=torch.float64)
        verdict = judge(HYPERS, governor, tensor, torch.isfinite(tensor), GUESS)
        assert int(verdict) == model.judge(loss)
        governor = _remember(governor, tensor, verdict)
        assert governor.losses[0, 20 - int(governor.filled) :].tolist() == pytest.approx(model.window)


def test_three_spikes_in_a_row_and_not_two():
    model = GovernorModel()
    calm = [model.judge(1.0 + 0.01 * i) for i in range(12)]
    assert set(calm) == {Verdict.CALM}
    assert [model.judge(50.0) for _ in range(3)] == [Verdict.WATCHED, Verdict.WATCHED, Verdict.SPIKE]


def grown_state(engine, epochs):
    """Environments with a seed in every slot, germinated one after the other and advanced where allowed."""
    state, codec = engine.init(5), engine.codec
    kinds = [codec.encode(Action(Op.GERMINATE, slot, 4, 2)) for slot in range(3)]
    for epoch in range(epochs):
        action = torch.full((engine.config.num_envs,), kinds[epoch] if epoch < 3 else 0)
        fossilize = torch.tensor([codec.encode(Action(Op.FOSSILIZE, 0))])
        mask = engine.mask(state)
        action = torch.where(mask[:, fossilize[0]] & (action == 0), fossilize, action)
        state, _ = engine.step(state, action)
    return state


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, 5, sample_order=SampleOrder.INDEPENDENT)


@pytest.fixture(scope="module")
def grown(engine):
    state = grown_state(engine, 8)
    assert state.slots.stage[VICTIM, 0] == int(Stage.FOSSILIZED), "the fossilized case must occur"
    return state


VICTIM = 2


def poisoned(state, place, value):
    def poison(leaf):
        leaf = leaf.clone()
        leaf[VICTIM].view(-1)[3] = value
        return leaf

    if place == "host parameter":
        return state.replace(host=state.host.replace(params=poison(state.host.params)))
    if place == "host moment":
        return state.replace(host=state.host.replace(moments=poison(state.host.moments)))
    if place == "running statistic":
        return state.replace(buffers=poison(state.buffers))
    if place == "seed parameter":
        return state.replace(seeds=state.seeds.replace(params=poison(state.seeds.params)))
    return state.replace(seeds=state.seeds.replace(moments=poison(state.seeds.moments)))


def leaves(tree):
    return {key: leaf for key, leaf in tree.items(True, True)}


def assert_contained(engine, clean, dirty, event):
    """Every other environment is bit-identical, and the victim is finite again."""
    others = torch.arange(engine.config.num_envs) != VICTIM
    for key, leaf in leaves(dirty).items():
        assert torch.equal(leaf[others], leaves(clean)[key][others]), key
        if key[-1] != "best_loss":
            assert torch.isfinite(leaf[VICTIM]).all(), key
    assert int(event.judgement.verdict[VICTIM]) == Verdict.NONFINITE
    assert int(dirty.governor.rollbacks[VICTIM]) == 1 + int(clean.governor.rollbacks[VICTIM])
    stages = dirty.slots.stage[VICTIM].tolist()
    assert not set(stages) & {int(s) for s in LIVE}
    assert torch.equal(dirty.host.params[VICTIM], dirty.snapshot.host.params[VICTIM])
    assert torch.equal(dirty.buffers[VICTIM], dirty.snapshot.buffers[VICTIM])


PLACES = ["host parameter", "host moment", "running statistic", "seed parameter", "seed moment"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bomb_stays_in_its_environment(engine, grown, place, value):
    wait = torch.zeros(engine.config.num_envs, dtype=torch.int64)
    clean, _ = engine.step(grown, wait)
    dirty, event = engine.step(poisoned(grown, place, value), wait)
    assert_contained(engine, clean, dirty, event)
    again, after = engine.step(dirty, wait)
    assert int(after.judgement.verdict[VICTIM]) == Verdict.CALM
    assert torch.isfinite(again.host.params).all()


def test_a_bad_data_row_stays_in_its_environment(engine, grown, with_bad_row):
    wait, victims = torch.zeros(engine.config.num_envs, dtype=torch.int64), torch.arange(5) == VICTIM
    clean, _ = engine.step(grown, wait)
    dirty, event = with_bad_row(engine, grown, victims, math.nan).step(grown, wait)
    assert_contained(engine, clean, dirty, event)


def test_rollback_restores_fossils_and_culls_live_seeds(engine, grown):
    """The victim's fossilized seeds come back bit for bit; its live ones are culled, the rest blank."""
    fossil = grown.slots.stage[VICTIM] == int(Stage.FOSSILIZED)
    wait = torch.zeros(engine.config.num_envs, dtype=torch.int64)
    dirty, event = engine.step(poisoned(grown, "host parameter", math.nan), wait)
    assert torch.equal(dirty.slots.stage[VICTIM] == int(Stage.FOSSILIZED), fossil)
    widths = [slot.width for slot in engine.structure.slots]
    assert len(set(widths)) > 1 and fossil.any() and not fossil.all()
    parts, snapshot = (part.params[VICTIM].split(widths) for part in (dirty.seeds, dirty.snapshot.seeds))
    for slot, keeps in enumerate(fossil.tolist()):
        assert torch.equal(parts[slot], snapshot[slot] if keeps else torch.zeros_like(parts[slot]))
        assert parts[slot].any() == keeps
    live = torch.isin(grown.slots.stage[VICTIM], torch.tensor([int(s) for s in LIVE]))
    assert torch.equal(event.judgement.culled[VICTIM], live)
    assert {int(s) for s in dirty.slots.stage[VICTIM][live]} <= {int(s) for s in FAILURE}


def test_a_seed_is_in_the_snapshot_before_it_may_be_permanent(engine):
    state = grown_state(engine, 8)
    fossil = state.slots.stage == int(Stage.FOSSILIZED)
    assert (state.slots.in_snapshot | ~fossil).all()


def test_no_environments_snapshot_depends_on_the_seeds_of_others(small_task):
    """An environment germinates beside one that grew before, and beside one that never does: its own fields agree."""
    engine = esper.make(small_task, 2, backend="eager", deterministic="strict", snapshot_epochs=1)
    grow = engine.codec.op.eq(int(Op.GERMINATE)).nonzero()[0].item()
    seen = []
    for neighbour in (grow, 0):
        state, fields = engine.init(0), []
        for step in range(6):
            action = torch.tensor([grow if step == 2 else 0, neighbour if step == 1 else 0])
            state, _ = engine.step(state, action)
            fields.append((state.slots.in_snapshot[0].tolist(), state.snapshot.seeds.params[0].tolist()))
        seen.append((fields, state.slots.stage[1].tolist()))
    (grown, beside), (alone, none) = seen
    assert beside != none and any(any(held) for held, _ in alone)
    assert grown == alone
