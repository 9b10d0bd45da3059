"""Augmentation of images on the device, from keys: a random crop of the padded image, and a mirror image.

What is random (``draw_placement``) is apart from what is done with it (``place``). Pixels are moved, never
computed with: an output's values are input values, or zeros of the padding, bit for bit. Everything is traceable and
works row by row, so an environment's images depend on its own key alone.

Source: He et al., "Deep residual learning for image recognition", 2016, 4.2 (CIFAR-10: 4 pixels of zeros on each side,
a random crop of the image's own size, or of its mirror image).
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.utils import rng
from esper.utils.documents import cause

_WORDS = 3  # random words for an image: row, column, mirror


Augment = Callable[[Tensor, Tensor], Tensor]
"""An augmentation of one's own: (key int64 [n, 2], samples [n, B, *shape]) -> samples of the same shape and type. What
is random is drawn from the keys (``esper.utils.rng``), and sample b of row i depends on ``key[i]``, b and itself alone.
"""


class Padding(Enum):
    """What lies around an image."""

    ZEROS = "zeros"
    REFLECT = "reflect"  # the image's mirror image at its border row or column, which is not repeated


class Placement(NamedTuple):
    """Where the crops are.

    Attributes:
      top, left: int64 [n, B]; the crop's first row and column in the padded image, 0 to 2 * padding. The middle
        one, ``padding``, is the image itself.
      mirrored: bool [n, B]; whether the crop's columns are reversed.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor


def crop_and_flip(
    key: Tensor, images: Tensor, padding: int = 4, mode: Padding = Padding.ZEROS, flip: bool = True
) -> Tensor:
    """Crop every image at random from its padded self and reverse half of them left to right.

    Args:
      key: int64 [n, 2]; used for this draw only.
      images: [n, B, C, H, W] of any dtype; may be expanded along n (stride 0): the output is each row's own.
      padding: pixels on each side, at least 0; below H and W where reflected.
      mode: what the padding is. Of standardised images, zero is the mean colour.
      flip: whether to mirror.

    Returns:
      [n, B, C, H, W]. Image b of row i depends on ``key[i]``, b and ``images[i, b]`` alone.

    Raises:
      ValueError: shapes or padding that do not fit.
    """
    _check(key, images, padding, mode)
    return place(images, draw_placement(key, images.shape[1], padding, flip), padding, mode)


def draw_placement(key: Tensor, count: int, padding: int, flip: bool) -> Placement:
    """Draw placements: key int64 [n, 2] to [n, count] each.

    Offsets are uniform on 0 .. 2 * padding (from 32 bits: no probability is off by more than 2**-32), mirrors have
    probability 1/2 (never, unless ``flip``); all independent. Image b's placement does not depend on ``count``, and
    its crop does not depend on ``flip``.
    """
    words = rng.bits(key, (count, _WORDS))
    offsets = (words[..., :2] * (2 * padding + 1)) >> 32
    mirrored = words[..., 2] >= 2**31 if flip else torch.zeros_like(words[..., 2], dtype=torch.bool)
    return Placement(offsets[..., 0], offsets[..., 1], mirrored)


def place(images: Tensor, placement: Placement, padding: int, mode: Padding) -> Tensor:
    """Cut the crops: images [n, B, C, H, W] and placements [n, B] to [n, B, C, H, W], by one gather."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + placement.top.unsqueeze(-1) - padding
    columns = torch.arange(width, device=images.device)
    columns = torch.where(placement.mirrored.unsqueeze(-1), width - 1 - columns, columns)
    columns = columns + placement.left.unsqueeze(-1) - padding
    row, row_inside = _source(rows, height, mode)
    column, column_inside = _source(columns, width, mode)
    index = row.unsqueeze(-1) * width + column.unsqueeze(-2)
    pixels = images.flatten(-2)
    cut = pixels.gather(-1, index.flatten(-2).unsqueeze(-2).expand_as(pixels)).view(images.shape)
    if mode is Padding.REFLECT or padding == 0:
        return cut
    inside = (row_inside.unsqueeze(-1) & column_inside.unsqueeze(-2)).unsqueeze(-3)
    return torch.where(inside, cut, torch.zeros_like(cut))


def _source(index: Tensor, size: int, mode: Padding) -> tuple[Tensor, Tensor]:
    """Which of ``size`` rows (or columns) a row of the padded image shows, and whether it lies inside the image."""
    inside = (index >= 0) & (index < size)
    if mode is Padding.REFLECT:
        return (size - 1) - ((size - 1) - index.abs()).abs(), inside
    return index.clamp(0, size - 1), inside


def _check(key: Tensor, images: Tensor, padding: int, mode: Padding) -> None:
    """ValueError unless keys, images and padding fit together."""
    shape = tuple(images.shape)
    if images.ndim != 5 or 0 in shape[-2:]:
        raise ValueError(f"images must be [n, B, C, H, W] with H and W at least 1, got shape {shape}")
    if key.dtype != torch.int64 or key.shape != (shape[0], 2):
        raise ValueError(f"keys must be int64 [{shape[0]}, 2], got {key.dtype} of shape {tuple(key.shape)}")
    most = min(shape[-2:]) - 1 if mode is Padding.REFLECT else 2**15
    if not 0 <= padding <= most:
        raise ValueError(f"padding must be from 0 to {most} for {mode.value} around {shape[-2:]}, got {padding}")


TRIAL_ROWS, TRIAL_SAMPLES = 3, 4


def check_own(place: str, augment: Augment, samples: Tensor) -> None:
    """Try an augmentation of one's own.

    Args:
      place: what messages call it.
      augment: the function.
      samples: [n, *shape], at least one; as training sees them.

    Raises:
      ConfigError: it fails, gives another shape, type or device, or numbers that are not finite; writes into its
        arguments; gives others when called again; or a row's samples depend on other rows; one line.
    """
    picks = torch.arange(TRIAL_ROWS * TRIAL_SAMPLES, device=samples.device) % len(samples)
    batch = samples[picks].unflatten(0, (TRIAL_ROWS, TRIAL_SAMPLES))
    keys = rng.fold_in(rng.key(0).to(samples.device), torch.arange(TRIAL_ROWS, device=samples.device))
    given = batch.clone(), keys.clone()
    try:
        first, again = augment(keys, batch), augment(keys, batch)
        alone = augment(keys[1:2], batch[1:2])
    except Exception as error:  # whatever a function does
        raise ConfigError(f"{place}: {cause(error)}") from error
    if not torch.equal(given[0], batch) or not torch.equal(given[1], keys):
        raise ConfigError(f"{place}: writes into its arguments; expected new tensors")
    if not isinstance(first, Tensor) or (first.shape, first.dtype, first.device) != _kind(batch):
        found = f"{first.dtype} {list(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise ConfigError(f"{place}: gave {found}; expected {batch.dtype} {list(batch.shape)} on {batch.device}")
    if not bool(first.isfinite().all()):
        raise ConfigError(f"{place}: gave numbers that are not finite")
    if not torch.equal(first, again):
        raise ConfigError(f"{place}: gave other samples for the same keys; expected draws from the keys alone")
    if not torch.allclose(alone[0], first[1], rtol=1e-4, atol=1e-5):
        raise ConfigError(f"{place}: samples of a row depend on other rows; expected each by its own key")


def _kind(batch: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return batch.shape, batch.dtype, batch.device
