"""Lives of seeds: read back from traces that are written from known lives."""

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.actions import NONE, Op
from esper.leyline.stages import Stage
from esper.nissa.seeds import COURSE, Fate, lives, survival
from esper.nissa.trace import Trace

S = Stage
COURSES = (
    (S.GERMINATED,),
    (S.GERMINATED, S.TRAINING),
    (S.GERMINATED, S.TRAINING, S.BLENDING),
    (S.GERMINATED, S.TRAINING, S.BLENDING, S.SHADOWING),
    (S.GERMINATED, S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY),
)
BLOCKED = 3
"""Decisions a slot stays blocked after a cull."""


class SeedCourse(NamedTuple):
    gap: int  # decisions before it is placed
    kind: int
    stays: tuple[int, ...]  # decisions in each stage after the first
    fate: Fate


@st.composite
def a_life(draw):
    course = draw(st.sampled_from(COURSES))
    stays = tuple(draw(st.integers(1, 3)) for _ in course)
    fate = draw(st.sampled_from([Fate.DECISION, Fate.CLOCK, Fate.GOVERNOR]))
    return SeedCourse(draw(st.integers(0, 3)), draw(st.integers(0, 4)), stays, fate)


def blank(length, envs, slots):
    """A trace in which nothing happens."""
    pair, triple = (length, envs), (length, envs, slots)
    fields = {name: torch.zeros(pair, dtype=torch.int16) for name in ("action", "op", "refusal", "failed", "verdict")}
    fields |= {name: torch.full(pair, NONE, dtype=torch.int16) for name in ("slot", "kind", "blend")}
    fields |= {name: torch.full(triple, int(S.DORMANT), dtype=torch.int8) for name in ("during", "stage")}
    fields |= {name: torch.zeros(triple) for name in ("alpha", "effect", "effect_error")}
    fields |= {name: torch.zeros(pair) for name in ("accuracy", "loss", "reward")}
    return Trace(
        **fields,
        rolled_back=torch.zeros(pair, dtype=torch.bool),
        blueprint=torch.full(triple, NONE, dtype=torch.int16),
        terms=torch.zeros(*pair, 1),
        term_names=("nothing",),
        diagnostics=None,
    )


def write(trace, env, slot, plan, fossilize):
    """Play a slot's lives one after the other into a trace; return what ``lives`` must find of those that fit.

    Only one slot per environment acts, so that a decision belongs to one seed.
    """
    length, now, expected = trace.length, 0, []
    for life in plan:
        born = now + life.gap
        if born >= length:
            break
        trace.op[born, env], trace.slot[born, env], trace.kind[born, env] = int(Op.GERMINATE), slot, life.kind
        now, reached, ended, fate = born, 0, length, Fate.ALIVE
        for index, stay in enumerate(life.stays):
            for _ in range(stay):
                if now < length:
                    trace.during[now, env, slot] = trace.stage[now, env, slot] = int(COURSE[index])
                    reached = index
                now += 1
        if now < length and life.fate is Fate.DECISION:
            trace.op[now, env], trace.slot[now, env] = int(Op.CULL), slot
            trace.during[now, env, slot], trace.stage[now, env, slot] = int(S.CULLED), int(S.EMBARGOED)
            ended, fate = now, life.fate
        elif now <= length and life.fate is not Fate.DECISION:
            trace.stage[now - 1, env, slot] = int(S.CULLED)
            trace.rolled_back[now - 1, env] = life.fate is Fate.GOVERNOR
            ended, fate = now, life.fate
        expected.append([env, slot, life.kind, born, ended, reached, fate])
        if fate is Fate.ALIVE:
            if fossilize and trace.during[-1, env, slot] == int(S.PROBATIONARY):
                trace.stage[-1, env, slot] = int(S.FOSSILIZED)
                expected[-1][-2:] = [len(COURSE) - 1, Fate.FOSSILIZED]
            break
        now += BLOCKED
    return expected


@given(st.lists(st.lists(a_life(), max_size=4), min_size=1, max_size=4), st.booleans(), st.integers(1, 40))
def test_lives_are_read_back(plans, fossilize, length):
    trace = blank(length, len(plans), 3)
    expected = [row for env, plan in enumerate(plans) for row in write(trace, env, env % 3, plan, fossilize)]
    found = lives(trace)
    rows = torch.stack(tuple(found), dim=1).tolist()
    assert sorted(rows) == sorted(list(map(int, row)) for row in expected)
    assert found.age.tolist() == [row[4] - row[3] for row in rows]


def test_a_changed_blueprint_is_one_seed_culled_and_one_placed():
    trace = blank(4, 1, 2)
    trace.op[0, 0], trace.slot[0, 0], trace.kind[0, 0] = int(Op.GERMINATE), 1, 2
    trace.op[2, 0], trace.slot[2, 0], trace.kind[2, 0] = int(Op.CHANGE_BLUEPRINT), 1, 4
    trace.during[:, 0, 1] = torch.tensor([S.GERMINATED, S.TRAINING, S.GERMINATED, S.TRAINING])
    trace.stage[:, 0, 1] = int(S.TRAINING)
    found = torch.stack(tuple(lives(trace)), dim=1).tolist()
    assert found == [[0, 1, 2, 0, 2, 1, Fate.DECISION], [0, 1, 4, 2, 4, 1, Fate.ALIVE]]


def test_a_refused_germination_places_nothing():
    trace = blank(3, 2, 2)
    trace.refusal[:] = 2
    assert lives(trace).born.numel() == 0
    assert survival(lives(trace))["reached"]["TRAINING"] is None and survival(lives(trace))["median_cull_age"] is None


def test_survival_by_hand():
    """Four seeds: one culled in training after 2 epochs, one in blending after 5, one alive, one fossilized."""
    trace = blank(12, 4, 1)
    three = (
        SeedCourse(0, 0, (1, 1), Fate.CLOCK),
        SeedCourse(0, 1, (1, 2, 2), Fate.GOVERNOR),
        SeedCourse(0, 1, (1, 30), Fate.CLOCK),
    )
    for env, life in enumerate((*three, SeedCourse(0, 1, (1, 2, 2, 1, 30), Fate.CLOCK))):
        write(trace, env, 0, [life], fossilize=True)
    found = survival(lives(trace))
    assert found["count"] == 4
    assert list(found["reached"].values()) == [1.0, 1.0, 0.5, 0.25, 0.25, 0.25]
    assert found["fate"] == {"ALIVE": 0.25, "FOSSILIZED": 0.25, "DECISION": 0.0, "CLOCK": 0.25, "GOVERNOR": 0.25}
    assert found["median_cull_age"] == 2
