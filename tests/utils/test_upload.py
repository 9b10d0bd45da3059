"""Arrays that go up together come out as they were."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.utils.upload import packed, unpacked, upload

SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
ARRAYS = st.lists(st.tuples(SHAPES, st.booleans(), st.integers(0, 2**31)), max_size=6)


def array_of(shape, flags, seed):
    numbers = np.random.default_rng(seed).integers(-(2**62), 2**62, shape)
    return np.asarray(numbers % 2 == 0 if flags else numbers)


@given(ARRAYS)
def test_packed_arrays_are_unpacked_bit_for_bit(drawn):
    arrays = [array_of(*each) for each in drawn]
    buffer = torch.from_numpy(packed(arrays))
    assert buffer.dtype == torch.uint8 and buffer.numel() == sum(array.nbytes for array in arrays)
    for array, found in zip(arrays, unpacked(buffer, arrays), strict=True):
        assert found.shape == array.shape
        np.testing.assert_array_equal(found.numpy(), array, strict=True)


def test_a_tree_keeps_its_form_and_a_cpu_its_memory():
    rows = np.arange(3)
    tree = upload({"a": (1, rows), "b": None, "c": [rows > 1]}, torch.device("cpu"))
    assert tree["a"][0] == 1 and tree["b"] is None and tree["c"][0].tolist() == [False, False, True]
    rows[0] = 7
    assert tree["a"][1].tolist() == [7, 1, 2]
