"""Sites: the places of a host where a slot can sit."""

from typing import NamedTuple

from torch import Tensor


class Site(NamedTuple):
    """The features a slot sees, per sample.

    Attributes:
      kind: what the features are ("conv", "token", "vector", or a third party's word); a blueprint names the kinds
        it fits.
      shape: shape of one sample's features, such as (C, H, W) or (T, D).
      channel_axis: index of the channels within ``shape``.
      time_axis: index of an axis along which no position may see a later one, if there is such an axis.
    """

    kind: str
    shape: tuple[int, ...]
    channel_axis: int
    time_axis: int | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    def pool(self, features: Tensor) -> Tensor:
        """Mean over everything but networks, samples, time and channels.

        Args:
          features: [n, B, *shape].

        Returns:
          [n, B, channels], or [n, B, T, channels] where there is an axis of time.
        """
        kept = {axis % len(self.shape) for axis in (self.channel_axis, self.time_axis) if axis is not None}
        others = [2 + axis for axis in range(len(self.shape)) if axis not in kept]
        return features.mean(others) if others else features


def conv_site(channels: int, height: int, width: int) -> Site:
    """Feature maps [C, H, W]."""
    return Site("conv", (channels, height, width), 0)


def token_site(length: int, width: int) -> Site:
    """Sequences [T, D] of a causal model."""
    return Site("token", (length, width), 1, time_axis=0)


def vector_site(width: int) -> Site:
    """Vectors [D]."""
    return Site("vector", (width,), 0)
