"""The action codec: every combination once, both ways, in a documented order."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.actions import NONE, Action, Blend, Codec, Op, build_codec

NAMES = ("norm", "attention", "depthwise", "conv_light")
OFFERS = st.lists(
    st.sets(st.integers(0, len(NAMES) - 1), min_size=1).map(lambda known: tuple(sorted(known))), max_size=4
).map(tuple)
BLENDS = st.lists(st.sampled_from(Blend), min_size=1, unique=True).map(tuple)


def codec(
    offers: tuple[tuple[int, ...], ...] = ((0, 1), (3,)),
    blends: tuple[Blend, ...] = (Blend.GATED,),
    retarget: bool = False,
) -> Codec:
    return build_codec(offers, blends, NAMES, retarget)


def expected_actions(
    offers: tuple[tuple[int, ...], ...], blends: tuple[Blend, ...], retarget: bool
) -> list[tuple[int, ...]]:
    """What the codec must list, in ascending order of (op, slot, blueprint, blend, target)."""
    placed = [(s, k, b, NONE) for s, known in enumerate(offers) for k, b in itertools.product(known, sorted(blends))]
    bare = [(s, NONE, NONE, NONE) for s in range(len(offers))]
    arguments = {1: placed, 2: bare, 3: bare, 4: bare, 5: placed}
    if retarget:
        arguments[6] = [(s, NONE, NONE, target) for s in range(len(offers)) for target in range(5)]
    return [(0, NONE, NONE, NONE, NONE), *((op, *rest) for op, each in arguments.items() for rest in each)]


@given(OFFERS, BLENDS, st.booleans())
def test_lists_every_combination_once_and_in_order(
    offers: tuple[tuple[int, ...], ...], blends: tuple[Blend], retarget: bool
) -> None:
    built = codec(offers, blends, retarget)
    listed = [tuple(map(int, action)) for action in built.actions]
    assert listed == expected_actions(offers, blends, retarget)
    assert built.ops == tuple(op for op in Op if op != Op.RETARGET or (retarget and offers))
    bare = codec(offers, blends)
    limited = built.limited(bare.ops)
    assert limited.actions == bare.actions and torch.equal(limited.target, bare.target)
    assert len(set(listed)) == len(listed)
    assert listed == sorted(listed)


@given(OFFERS, BLENDS)
def test_size_is_one_and_the_combinations(offers: tuple[tuple[int, ...], ...], blends: tuple[Blend]) -> None:
    assert codec(offers, blends).size == 1 + 3 * len(offers) + 2 * sum(map(len, offers)) * len(blends)


@given(OFFERS, BLENDS)
def test_encode_and_decode_are_inverse(offers: tuple[tuple[int, ...], ...], blends: tuple[Blend]) -> None:
    built = codec(offers, blends, retarget=True)
    for index in range(built.size):
        action = built.decode(index)
        assert built.encode(action) == index
        assert built.encode(Action(*map(int, action))) == index


@given(OFFERS, BLENDS)
def test_columns_hold_the_same_actions(offers: tuple[tuple[int, ...], ...], blends: tuple[Blend]) -> None:
    built = codec(offers, blends, retarget=True)
    columns = torch.stack((built.op, built.slot, built.blueprint, built.blend, built.target), dim=1)
    assert columns.dtype == torch.int64
    assert columns.tolist() == [list(map(int, action)) for action in built.actions]


def test_zero_is_wait_and_the_numbers_of_operations_and_blends_are_fixed() -> None:
    assert codec().decode(0) == Action(Op.WAIT)
    assert [(op.name, op.value) for op in Op] == [
        ("WAIT", 0),
        ("GERMINATE", 1),
        ("ADVANCE", 2),
        ("CULL", 3),
        ("FOSSILIZE", 4),
        ("CHANGE_BLUEPRINT", 5),
        ("RETARGET", 6),
    ]
    assert [(blend.name, blend.value) for blend in Blend] == [
        ("LINEAR", 0),
        ("SIGMOID", 1),
        ("GATED", 2),
        ("COSINE", 3),
    ]


def test_without_slots_only_waiting_is_left() -> None:
    assert codec(offers=()).actions == (Action(Op.WAIT),)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (Action(Op.WAIT), "WAIT"),
        (Action(Op.GERMINATE, 1, 3, Blend.GATED), "GERMINATE slot 1 conv_light gated"),
        (Action(Op.ADVANCE, 0), "ADVANCE slot 0"),
        (Action(Op.CULL, 1), "CULL slot 1"),
        (Action(Op.FOSSILIZE, 0), "FOSSILIZE slot 0"),
        (Action(Op.CHANGE_BLUEPRINT, 0, 0, Blend.GATED), "CHANGE_BLUEPRINT slot 0 norm gated"),
        (Action(Op.RETARGET, 1, target=1), "RETARGET slot 1 alpha 0.25"),
        (Action(Op.RETARGET, 0, target=4), "RETARGET slot 0 alpha 1"),
    ],
)
def test_describes_actions_in_words(action: Action, text: str) -> None:
    built = codec(retarget=True)
    assert built.describe(built.encode(action)) == text


@given(OFFERS, BLENDS)
def test_descriptions_are_distinct(offers: tuple[tuple[int, ...], ...], blends: tuple[Blend]) -> None:
    built = codec(offers, blends, retarget=True)
    assert len({built.describe(index) for index in range(built.size)}) == built.size


@pytest.mark.parametrize("index", [-1, codec().size, 10**6])
def test_an_index_outside_is_refused_with_the_range(index: int) -> None:
    for function in (codec().decode, codec().describe):
        with pytest.raises(ValueError, match=rf"^action index {index}: outside \[0, {codec().size}\)$"):
            function(index)


@pytest.mark.parametrize(
    "action",
    [
        Action(Op.GERMINATE, 1, 0, Blend.GATED),  # not offered in that slot
        Action(Op.GERMINATE, 0, 0, Blend.LINEAR),  # not a blend on offer
        Action(Op.GERMINATE, 0),  # without its arguments
        Action(Op.CULL, 2),  # no such slot
        Action(Op.RETARGET, 0, target=1),  # not an operation of this action space
        Action(Op.WAIT, 0),
    ],
)
def test_a_combination_that_does_not_exist_is_refused_by_name(action: Action) -> None:
    with pytest.raises(ValueError, match=r"^action \(.*\): not one of the codec's 13 combinations$"):
        codec().encode(action)
