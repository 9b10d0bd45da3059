"""A dataset of recorded episodes as learners take it: checked, cut into windows, and parted into two lots of episodes.

Nothing of it stays in memory but two numbers of each step: what was earned from there on, and the place.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.simic.offline.rows import expect_batch
from esper.utils import rng

LOTS = 0x0FF2
"""Folded into the seed for which episodes are held out."""

CHUNK = 512
"""Episodes that are looked at at a time."""


class OfflineData(NamedTuple):
    """A dataset, ready to learn from.

    Attributes:
      episodes: where it is read.
      to_go: float32 [steps]; discounted rewards from each step to the end of its episode.
      taught: windows that are learned from, int64 [W, 2] of first row and rows.
      held_out: places of the episodes that are not, int64 [n].
    """

    episodes: Episodes
    to_go: Tensor
    taught: Tensor
    held_out: Tensor

    def windows(self, table: Tensor) -> TensorDictBase:
        """Windows [B, T] with "to_go", by first row and rows."""
        batch = self.episodes.window(table)
        inside = torch.arange(batch.shape[1]).expand(batch.shape)
        rows = torch.where(batch["valid"], table[:, :1] + inside, table[:, :1])
        return batch.set("to_go", torch.where(batch["valid"], self.to_go[rows], 0.0))

    def taught_windows(self, numbers: Tensor) -> TensorDictBase:
        """Some of the windows that are learned from."""
        return self.windows(self.taught[numbers])

    def whole(self, places: Tensor) -> TensorDictBase:
        """Whole episodes."""
        return self.windows(self.episodes.windows(0, places))


def offline_data(
    episodes: Episodes, seed: int, gamma: float, window: int = 0, held_out: float = 0.0, places: Tensor | None = None
) -> OfflineData:
    """A dataset, checked and cut.

    Args:
      episodes: from ``Episodes.open``.
      seed: of which episodes are held out.
      gamma: discount per decision of ``to_go``.
      window: decisions in a window at most; 0: whole episodes.
      held_out: share of the episodes that nothing is learned from, at least one if it is not 0.
      places: of the episodes that count; None: all.

    Raises:
      EpisodesError: there is no episode to learn from; a recorded action is outside its mask; or a number is not
        finite.
    """
    chosen = torch.arange(len(episodes)) if places is None else places
    kept_out = min(max(1, round(held_out * len(chosen))), len(chosen)) if held_out else 0
    if len(chosen) <= kept_out:
        raise EpisodesError(
            f"{episodes.folder}: {len(chosen)} episodes, of which {kept_out} are held out; expected more"
        )
    order = chosen[rng.permutation(rng.fold_in(rng.key(seed), LOTS), len(chosen))]
    apart, taught = order[:kept_out].sort().values, order[kept_out:].sort().values
    for some in chosen.split(CHUNK):
        _expect_sound(episodes, episodes.windows(0, some))
    return OfflineData(episodes, _to_go(episodes, gamma), episodes.windows(window, taught), apart)


def _expect_sound(episodes: Episodes, table: Tensor) -> None:
    """Raise unless every decision of some episodes was legal, and every number of them is finite."""
    batch = episodes.window(table)
    try:
        expect_batch(batch)
    except ValueError as error:
        raise EpisodesError(f"{episodes.folder}: {error}; expected legal decisions only") from None
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        bad = ~batch[key].isfinite().all(-1)
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            name, number, step = key if isinstance(key, str) else key[1], batch["episode"][place], batch["step"][place]
            raise EpisodesError(
                f"{episodes.folder}: episode {int(number)}, step {int(step)}: {name} is not finite; expected a number"
            )


def _to_go(episodes: Episodes, gamma: float) -> Tensor:
    """Discounted rewards from every row to the end of its episode, float32 [steps]."""
    reward = episodes.read("reward").double()
    found, ends = reward.clone(), episodes.starts + episodes.lengths
    for back in range(2, int(episodes.lengths.max()) + 1):
        rows = (ends - back)[episodes.lengths >= back]
        found[rows] += gamma * found[rows + 1]
    return found.float()
