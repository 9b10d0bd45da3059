"""Beginnings of random orders, from the library, against Threefry in Python's integers and whole permutations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.tezzeret.native.library import library
from esper.tezzeret.shuffle import shuffled
from esper.utils import rng

WORD = st.integers(0, 2**32 - 1)


def block(key, counter):
    """Threefry-2x32 with 20 rounds, as its authors describe it."""
    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = keys[0], (counter + keys[1]) % 2**32
    for number, turn in enumerate([13, 15, 26, 6, 17, 29, 16, 24] * 2 + [13, 15, 26, 6], start=1):
        x = (x + y) % 2**32
        y = (y * 2**turn % 2**32 + y // 2 ** (32 - turn)) ^ x
        if number % 4 == 0:
            step = number // 4
            x, y = (x + keys[step % 3]) % 2**32, (y + keys[(step + 1) % 3] + step) % 2**32
    return x, y


@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=3), st.integers(1, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_it_is_the_order_of_threefrys_numbers(keys, n, data):
    assert library() is not None
    count = data.draw(st.integers(0, n))
    found = shuffled(torch.tensor(keys), n, count).tolist()
    for key, row in zip(keys, found, strict=True):
        words = [block(key, place) for place in range(n)]
        numbers = [x << 31 | y >> 1 for x, y in words]
        assert row == sorted(range(n), key=lambda place: (numbers[place], place))[:count]


@pytest.mark.parametrize(("n", "count"), [(26_158, 512), (50_000, 1), (1_077, 1_024), (4_000, 3_999), (3, 3)])
def test_it_begins_as_the_whole_order_does(n, count):
    assert library() is not None
    keys = rng.fold_in(rng.key(7).expand(2, 5, 2), torch.arange(10).reshape(2, 5))
    assert torch.equal(shuffled(keys, n, count), rng.permutation(keys, n)[..., :count])


def test_a_single_key_gives_a_single_order():
    assert library() is not None
    assert torch.equal(shuffled(rng.key(3), 40, 7), rng.permutation(rng.key(3), 40)[:7])


def test_threads_do_not_change_it():
    assert library() is not None
    keys, before = rng.split(rng.key(1), 33), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = shuffled(keys, 500, 60)
        torch.set_num_threads(2)
        assert torch.equal(shuffled(keys, 500, 60), alone)
    finally:
        torch.set_num_threads(before)
