"""Rows that are drawn all at once are those that ``Layout.init`` draws one tensor at a time, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import esper
from esper.engine import step
from esper.kasmina.layout import Layout, Param
from esper.kasmina.slot import Slot
from esper.kasmina.sowing import buffer_kinds, draw_rows, list_rows, param_kinds
from esper.leyline.actions import Blend
from esper.leyline.stages import Stage
from esper.leyline.streams import Stream
from esper.utils import rng
from esper.utils.upload import upload

E, CPU = 6, torch.device("cpu")


@st.composite
def layouts(draw: Any) -> Layout:
    kinds = st.sampled_from(("constant", "uniform", "positive", "normal"))
    drawn = draw(st.lists(st.tuples(kinds, st.integers(1, 5), st.sampled_from((0.1, 1.0, 3.0))), max_size=4))
    return Layout(tuple(Param(f"p{i}", (size,), kind, scale) for i, (kind, size, scale) in enumerate(drawn)))


@st.composite
def slots(draw: Any) -> tuple[Slot, ...]:
    made, start, buffer_start = [], 0, 0
    for number in range(draw(st.integers(1, 3))):
        rows = [draw(st.one_of(st.none(), layouts())) if kind else draw(layouts()) for kind in range(3)]
        held, gate = [None if row is None else draw(layouts()) for row in rows], draw(layouts())
        width = max(row.size for row in rows if row is not None) + gate.size + draw(st.integers(0, 2))
        buffer_width = max(row.size for row in held if row is not None)
        point: Any = number
        made.append(
            Slot(point, point, None, None, tuple(rows), tuple(held), gate, (), start, width, buffer_start, buffer_width)
        )
        start, buffer_start = start + width, buffer_start + buffer_width
    return tuple(made)


@given(slots(), st.integers(0, 2**32), st.data(), st.sampled_from((torch.float32, torch.float64)))
def test_rows_are_those_of_the_layouts(slots, seed, data, dtype):
    keys = rng.fold_in(rng.key(seed), torch.arange(E))
    possible = [(s, k) for s, slot in enumerate(slots) for k in range(3) if slot.layouts[k] is not None]
    chosen = data.draw(st.lists(st.tuples(st.integers(0, E - 1), st.sampled_from(possible)), min_size=1, max_size=8))
    rows = np.array([row for row, _ in chosen])
    groups = np.array([slot * 3 + kind for _, (slot, kind) in chosen])
    arenas = (param_kinds(slots, CPU), buffer_kinds(slots, CPU))
    listed = upload([list_rows(kinds, rows, groups) for kinds in arenas], CPU)
    fresh = [draw_rows(kinds, each, keys[rows], dtype) for kinds, each in zip(arenas, listed, strict=True)]
    want: list[tuple[int, int, float]] = []
    held: list[tuple[int, int, float]] = []
    for row, (place, kind) in chosen:
        slot, key = slots[place], keys[row : row + 1]
        own, gate = slot.row(kind).init(key, dtype)[0], slot.gate.init(rng.fold_in(key, int(Stream.GATE)), dtype)[0]
        between = torch.zeros(slot.width - len(own) - len(gate), dtype=dtype)
        numbers = torch.cat((own, between, gate)).tolist()
        want += [(row, slot.start + i, number) for i, number in enumerate(numbers)]
        numbers = slot.buffer_row(kind).init(key, dtype)[0].tolist()
        numbers += [0.0] * (slot.buffer_width - len(numbers))
        held += [(row, slot.buffer_start + i, number) for i, number in enumerate(numbers)]
    for places, values, expected in zip(listed, fresh, (want, held), strict=True):
        assert values.dtype == dtype
        found = zip(places.envs.tolist(), places.columns.tolist(), values.tolist(), strict=True)
        assert list(found) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_writes_the_rows_of_its_seeds_alone(dtype, small_task):
    engine = esper.make(small_task, E, backend="eager", precision=dtype, blends=(Blend.LINEAR, Blend.GATED))
    structure, codec = engine.structure, engine.codec
    state = engine.init(7)
    plants = [index for index in range(codec.size) if codec.decode(index).op.name == "GERMINATE"]
    actions = [plants[0], 0, plants[-1], 0, plants[len(plants) // 2], 0]
    hypers = engine.hypers.replace(seed_lr=torch.zeros_like(engine.hypers.seed_lr))
    after, _ = step(structure, engine.backend, hypers, state, engine.data, torch.tensor(actions))
    assert not after.seeds.params[1::2].any()
    for env in (0, 2, 4):
        action = codec.decode(actions[env])
        slot = structure.slots[action.slot]
        key = rng.fold_in(state.key[env : env + 1], int(Stream.SOW), 0, action.slot)
        row = after.seeds.params[env, slot.columns]
        own = slot.row(action.blueprint).init(key, row.dtype)[0]
        assert torch.equal(row[: own.shape[0]], own)
        assert int(after.slots.stage[env, action.slot]) == int(Stage.TRAINING)
        outside = torch.ones(structure.num_seed_params, dtype=torch.bool)
        outside[slot.columns] = False
        assert not after.seeds.params[env, outside].any()
