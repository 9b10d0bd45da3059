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
    """

    kind: str
    shape: tuple[int, ...]
    channel_axis: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    def pool(self, features: Tensor) -> Tensor:
        """Mean over everything but networks, samples and channels.

        Args:
          features: [n, B, *shape].

        Returns:
          [n, B, channels].
        """
        others = [2 + axis for axis in range(len(self.shape)) if axis != self.channel_axis % len(self.shape)]
        return features.mean(others) if others else features


def conv_site(channels: int, height: int, width: int) -> Site:
    """Feature maps [C, H, W]."""
    return Site("conv", (channels, height, width), 0)
