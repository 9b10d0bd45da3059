"""Augmentation: against numpy's padding and slicing, and the laws of its randomness."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.augment import Padding, Placement, crop_and_flip, draw_placement, place
from esper.utils import rng

NUMPY = {Padding.ZEROS: "constant", Padding.REFLECT: "reflect"}


def rendered(image, top, left, mirrored, padding, mode):
    """One image [C, H, W], by numpy: pad, cut, reverse."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=NUMPY[mode])
    crop = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return crop[:, :, ::-1] if mirrored else crop


def numbered(n, b, c, h, w):
    """Images of which every pixel of every image is another number, none of them zero."""
    return 1 + torch.arange(n * b * c * h * w, dtype=torch.float32).reshape(n, b, c, h, w)


def keys(n, seed=0):
    return rng.fold_in(rng.key(seed), torch.arange(n))


@st.composite
def scenes(draw):
    n, b, c, h, w = (draw(st.integers(1, most)) for most in (3, 3, 3, 6, 6))
    mode = draw(st.sampled_from(Padding))
    padding = draw(st.integers(0, min(h, w) - 1 if mode is Padding.REFLECT else 9))
    offsets = st.lists(st.integers(0, 2 * padding), min_size=n * b, max_size=n * b)
    top, left = (torch.tensor(draw(offsets)).reshape(n, b) for _ in range(2))
    mirrored = torch.tensor(draw(st.lists(st.booleans(), min_size=n * b, max_size=n * b))).reshape(n, b)
    return numbered(n, b, c, h, w), Placement(top, left, mirrored), padding, mode


@given(scene=scenes())
def test_a_placement_is_numpys_pad_slice_and_reverse(scene):
    images, placement, padding, mode = scene
    out = place(images, placement, padding, mode)
    for i in range(images.shape[0]):
        for b in range(images.shape[1]):
            where = (int(placement.top[i, b]), int(placement.left[i, b]), bool(placement.mirrored[i, b]))
            assert np.array_equal(out[i, b].numpy(), rendered(images[i, b].numpy(), *where, padding, mode))


@pytest.mark.parametrize("mode", Padding)
def test_every_output_is_one_of_the_possible_crops(mode):
    padding, images = 2, numbered(6, 20, 2, 3, 5)
    out = crop_and_flip(keys(6), images, padding, mode)
    seen = set()
    for i in range(6):
        for b in range(20):
            crops = {
                (top, left, mirrored): rendered(images[i, b].numpy(), top, left, mirrored, padding, mode)
                for top in range(2 * padding + 1)
                for left in range(2 * padding + 1)
                for mirrored in (False, True)
            }
            same = {place for place, crop in crops.items() if np.array_equal(out[i, b].numpy(), crop)}
            assert same
            seen |= same
    assert len(seen) > 40  # of 50 crops, in 120 images: they are not all one


def test_pixels_are_moved_bit_for_bit():
    """Not a number with a payload, infinities, signed zeros and subnormals included."""
    patterns = [0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x807FFFFF, 0x3F800000]
    bits = torch.tensor(patterns * 9, dtype=torch.int64).reshape(1, 2, 1, 6, 6).to(torch.int32)
    for mode in Padding:
        moved, plain = (crop_and_flip(keys(1), images, 3, mode) for images in (bits.view(torch.float32), bits))
        assert torch.equal(moved.view(torch.int32), plain)
        assert set(plain.unique().tolist()) <= {*bits.unique().tolist(), 0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_any_dtype(dtype):
    images = (numbered(2, 2, 1, 4, 4) % 200).to(dtype)
    out = crop_and_flip(keys(2), images, 1, Padding.REFLECT)
    assert out.dtype == dtype
    assert torch.equal(out.float(), crop_and_flip(keys(2), images.float(), 1, Padding.REFLECT))


def chi_square(cells, count):
    """Pearson's statistic of cell numbers against equal probability, in standard deviations from its mean."""
    observed = torch.bincount(cells.flatten(), minlength=count).double()
    expected = cells.numel() / count
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - (count - 1)) / (2 * (count - 1)) ** 0.5


def test_offsets_and_mirrors_are_uniform_and_independent():
    top, left, mirrored = draw_placement(keys(64, seed=5), 1024, 4, True)
    assert set(top.unique().tolist()) == set(left.unique().tolist()) == set(range(9))
    assert abs(chi_square(top, 9)) < 4 and abs(chi_square(left, 9)) < 4
    assert abs(float(mirrored.double().mean()) - 0.5) < 4 * 0.5 / mirrored.numel() ** 0.5
    joint = (top * 9 + left) * 2 + mirrored
    assert abs(chi_square(joint, 162)) < 4  # independent of one another in an image,
    neighbours, environments = joint[:, ::2] % 18 * 18 + joint[:, 1::2] % 18, joint[::2] % 18 * 18 + joint[1::2] % 18
    assert abs(chi_square(neighbours, 324)) < 4 and abs(chi_square(environments, 324)) < 4  # and between images


def test_an_image_depends_on_its_key_and_place_alone():
    images, key = numbered(5, 4, 2, 6, 6), keys(5, seed=3)
    out = crop_and_flip(key, images)
    assert torch.equal(out, crop_and_flip(key, images))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(out[order], crop_and_flip(key[order], images[order]))
    for i in range(5):
        assert torch.equal(out[i : i + 1], crop_and_flip(key[i : i + 1], images[i : i + 1]))
    assert torch.equal(out[:, :2], crop_and_flip(key, images[:, :2]))
    assert not torch.equal(out, crop_and_flip(keys(5, seed=4), images))


def test_shared_minibatches_become_each_environments_own():
    shared = numbered(1, 4, 3, 8, 8).expand(6, -1, -1, -1, -1)
    for mode in Padding:
        out = crop_and_flip(keys(6), shared, 2, mode)
        assert torch.equal(out, crop_and_flip(keys(6), shared.contiguous(), 2, mode))
        assert len({row.numpy().tobytes() for row in out}) == 6
    assert torch.equal(shared[0], numbered(1, 4, 3, 8, 8)[0])  # the input is not written to


def test_the_crop_does_not_depend_on_the_mirror():
    images, key = numbered(3, 9, 1, 5, 7), keys(3)
    cropped = crop_and_flip(key, images, 2, flip=False)
    out, mirrored = crop_and_flip(key, images, 2), draw_placement(key, 9, 2, True).mirrored
    assert torch.equal(out, torch.where(mirrored[..., None, None, None], cropped.flip(-1), cropped))
    assert torch.equal(crop_and_flip(key, images, 0, flip=False), images)


def test_it_is_one_graph():
    torch.compiler.reset()
    whole = torch.compile(crop_and_flip, fullgraph=True, backend="eager")
    images = numbered(2, 3, 1, 5, 5)
    assert torch.equal(whole(keys(2), images, 2, Padding.REFLECT), crop_and_flip(keys(2), images, 2, Padding.REFLECT))


@pytest.mark.parametrize(
    ("key", "shape", "padding", "mode", "message"),
    [
        (keys(2), (2, 3, 8, 8), 1, Padding.ZEROS, r"images must be \[n, B, C, H, W\] with H and W at least 1, got"),
        (keys(2), (2, 3, 1, 0, 8), 0, Padding.ZEROS, "H and W at least 1"),
        (keys(3), (2, 3, 1, 8, 8), 1, Padding.ZEROS, r"keys must be int64 \[2, 2\], got torch.int64 of shape \(3, 2\)"),
        (keys(2).int(), (2, 3, 1, 8, 8), 1, Padding.ZEROS, r"keys must be int64 \[2, 2\], got torch.int32"),
        (
            keys(2),
            (2, 3, 1, 8, 4),
            4,
            Padding.REFLECT,
            r"padding must be from 0 to 3 for reflect around \(8, 4\), got 4",
        ),
        (keys(2), (2, 3, 1, 8, 4), -1, Padding.ZEROS, "padding must be from 0 to 32768 for zeros"),
    ],
)
def test_what_does_not_fit_is_refused(key, shape, padding, mode, message):
    with pytest.raises(ValueError, match=message):
        crop_and_flip(key, torch.zeros(shape), padding, mode)
